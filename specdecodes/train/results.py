"""What a training leaves behind: checkpoints to go on from, the model, and what is known about both."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from specdecodes.benchmark.journal import replace_json
from specdecodes.benchmark.provenance import commit, hardware, versions
from specdecodes.train.recipe import Recipe

STATE = "trainer_state.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; one that a kill has cut off is passed over."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))  # the Trainer writes it last
        except (OSError, ValueError):
            continue
        return path
    return None


def same_training(output: Path, recipe: Recipe, facts: Mapping[str, Any], write: bool) -> None:
    """Refuse to go on in a folder that another training has begun.

    Args:
        output: the folder that holds ``checkpoints/``.
        recipe: its settings must be those of the first run, but for how often to look and to save.
        facts: what else must not change (data, processes).
        write: whether this process writes the settings down when there are none.

    Raises:
        ValueError: names the first difference.
    """
    path = output / "checkpoints" / "recipe.json"
    training = vars(recipe.training).items()
    now = {f"model.{name}": value for name, value in recipe.model.items()}
    now |= {f"training.{n}": value for n, value in training if n not in ("eval_steps", "save_steps", "compile")}
    if recipe.task == "pretrain":
        now["tokenizer.vocab_size"] = recipe.tokenizer.vocab_size
    if recipe.distillation:
        now |= {f"distillation.{n}": value for n, value in vars(recipe.distillation).items() if n != "target"}
    now |= facts
    now = json.loads(json.dumps(now))
    if not path.exists():
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--output: {output} holds checkpoints of another training: {name}: expected {before.get(name)!r}, "
                f"got {now.get(name)!r}; go on with what it was begun with, or name another folder"
            )


class RunLog(TrainerCallback):
    """Notes, per run of the command, how long it ran, from which step to which, on what; survives a kill.

    Args:
        output: the folder that is trained into; the notes are ``checkpoints/runs.json``. Time counts from now.
        write: whether this process writes the file.
    """

    def __init__(self, output: Path, write: bool = True) -> None:
        self.output = output
        self.checkpoints = output / "checkpoints"
        self._path = self.checkpoints / "runs.json"
        self._write = write
        self._start = time.monotonic()
        earlier = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {"runs": []}
        self.run: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": versions(),
            "commit": commit(),
        }
        self.runs: list[dict[str, Any]] = [*earlier["runs"], self.run]

    def runs_on(self, device: torch.device) -> None:
        """Where this process has the model."""
        self.run["hardware"] = hardware(device)

    @property
    def seconds(self) -> float:
        """Wall time of all runs so far, work that a kill has lost included."""
        return round(sum(run.get("seconds", 0.0) for run in self.runs), 1)

    def note(self, step: int) -> None:
        """This run has come to ``step``."""
        self.run.setdefault("from_step", step)
        self.run |= {"to_step": step, "seconds": round(time.monotonic() - self._start, 1)}
        if self._write:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            replace_json(self._path, {"runs": self.runs})

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step a run starts from."""
        self.note(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Every few steps."""
        self.note(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """With every checkpoint."""
        self.note(state.global_step)


def tokens_seen(steps: int, blocks: int, block: int, rows: int, accumulate: int, processes: int = 1) -> int:
    """Tokens that ``steps`` optimiser steps were trained on; the last step of an epoch takes what is left of it.

    Args:
        blocks: in the training set; several processes fill up the last batches of an epoch from its start.
        block: tokens of a block.
        rows, accumulate, processes: batch size of one process, batches of a step, processes.
    """
    together = rows * processes
    epoch = blocks if processes == 1 else -(-blocks // together) * together
    per_epoch = -(-epoch // (together * accumulate))
    epochs, rest = divmod(steps, per_epoch)
    return (epochs * epoch + rest * together * accumulate) * block


def save_model(model: PreTrainedModel, weights: Mapping[str, Tensor], tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    """Write a model folder so that a kill leaves either nothing loadable or all of it.

    Matrices and convolutions are stored in bfloat16, vectors in float32: in the embedded target they are 0.1 % of the
    parameters and make half of the rounding error (KL to the float32 model 1.0e-5 instead of 2.0e-5 nats a token;
    almost all of it from the norms' scales and D, next to nothing from A_log and dt_bias).

    Args:
        model: gives the configuration.
        weights: the trained values, by name.
        tokenizer: is saved beside them.
        folder: exists or not.
    """
    tied = model.all_tied_weights_keys
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16 if tensor.ndim > 1 else torch.float32)
        for name, tensor in weights.items()
        if tied.get(name) not in weights
    }
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=state)
    config = copy.deepcopy(model.config)
    config.dtype = "bfloat16"  # what to load it in where nothing else is said
    config.use_cache = True  # the Trainer turns it off
    config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    mode = (partial / "config.json").stat().st_mode
    # config.json last: without it, nothing loads.
    (folder / "config.json").unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda p: p.name == "config.json"):
        path.chmod(mode)  # safetensors would let nobody else read the weights
        path.replace(folder / path.name)
    partial.rmdir()


def mean_loss(history: list[dict[str, Any]], last: int = 10) -> float | None:
    """The mean of the last logged training losses; the Trainer's own mean forgets what came before a resume."""
    losses = [entry["loss"] for entry in history if "loss" in entry][-last:]
    return sum(losses) / len(losses) if losses else None
