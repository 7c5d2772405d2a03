"""A training recipe: one TOML file that says what is trained, on what, and how."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """One data set: where it lives on the hub, what its file is called on disk, how a record becomes text.

    ``format`` is one of the names in :data:`specdecodes.train.data.FORMATS`. ``hub`` is what ``datasets.load_dataset``
    takes first: a hub id, or ``json`` or ``text`` with ``data_files`` naming a public address.
    """

    name: str
    file: str
    format: str
    hub: str = ""
    config: str | None = None
    split: str = "train"
    data_files: str | None = None


@dataclass(frozen=True)
class Training:
    """Optimisation settings; ``tokens`` counts every token the model is trained on, repeats included.

    ``optimizer``: ``muon`` (Muon for matrices, AdamW for the rest) or ``adamw``.
    ``schedule``: ``wsd`` (warm-up, constant, linear decay over ``decay`` of the steps) or ``cosine``.
    ``held_out``: share of the documents kept for the evaluation loss.
    """

    tokens: int
    block: int = 512
    rows: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 2e-5
    adamw_lr: float | None = None
    weight_decay: float = 0.1
    warmup: float = 0.01
    schedule: str = "cosine"
    decay: float = 0.5
    held_out: float = 0.02
    eval_steps: int = 100
    save_steps: int = 100
    bf16: bool = True
    compile: bool = False
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "block", "rows", "accumulate", "eval_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}: expected at least 1, got {getattr(self, name)}")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"training.optimizer: expected 'muon' or 'adamw', got {self.optimizer!r}")
        if self.schedule not in ("wsd", "cosine"):
            raise ValueError(f"training.schedule: expected 'wsd' or 'cosine', got {self.schedule!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"training.held_out: expected a share in [0, 1), got {self.held_out}")

    @property
    def steps(self) -> int:
        """Optimiser steps on one process."""
        return -(-self.tokens // (self.block * self.rows * self.accumulate))


@dataclass(frozen=True)
class Distillation:
    """Loss weights of ``kl_weight * KL(target || draft) + ce_weight * CE`` per unpadded token (STree, section 4)."""

    target: str
    kl_weight: float = 1.0
    ce_weight: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; ``model`` holds the keyword arguments of ``AutoConfig.for_model`` plus ``model_type``."""

    task: str
    model: dict[str, Any]
    data: tuple[Source, ...]
    training: Training
    vocab_size: int = 4096
    distillation: Distillation | None = None
    path: Path = field(default_factory=Path)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed TOML, an unknown or missing setting, a value out of range.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {path}: expected TOML, got {error}") from error
    known = {"task", "model", "data", "training", "tokenizer", "distillation"}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"recipe {path}: unknown table {unknown[0]!r}; known: {', '.join(sorted(known))}")
    task = raw.get("task")
    if task not in ("pretrain", "distill"):
        raise ValueError(f"recipe {path}: task: expected 'pretrain' or 'distill', got {task!r}")
    if task == "distill" and "distillation" not in raw:
        raise ValueError(f"recipe {path}: a distill recipe needs a [distillation] table with target = FOLDER or hub id")
    if "model_type" not in raw.get("model", {}):
        raise ValueError(f"recipe {path}: [model] needs model_type, for example model_type = 'mamba2'")
    return Recipe(
        task=task,
        model=raw["model"],
        data=tuple(_build(Source, entry, f"{path}: [[data]]") for entry in raw.get("data", ())),
        training=_build(Training, raw.get("training", {}), f"{path}: [training]"),
        vocab_size=raw.get("tokenizer", {}).get("vocab_size", 4096),
        distillation=_build(Distillation, raw["distillation"], f"{path}: [distillation]")
        if task == "distill"
        else None,
        path=path,
    )


def _build(kind: type, values: dict[str, Any], where: str) -> Any:  # noqa: ANN401 - returns an instance of kind
    names = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"recipe {where}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(names))}")
    required = {
        n for n, f in names.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(f"recipe {where}: missing setting {missing[0]!r}")
    return kind(**values)
