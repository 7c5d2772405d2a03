"""A training recipe: one TOML file that says what is trained, on what, and how."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

TABLES = ("task", "model", "data", "training", "tokenizer", "distillation")


@dataclass(frozen=True)
class Source:
    """One data set: where it lives on the hub, what its file is called on disk, how a record becomes text.

    ``format`` is one of the names in :data:`specdecodes.train.data.FORMATS`. ``hub`` is what ``datasets.load_dataset``
    takes first: a hub id, or ``json`` or ``text`` with ``data_files`` naming a public address. ``split`` is the hub's
    and may be a slice (``train[:1000]``); a file on disk is read whole.
    """

    name: str
    file: str
    format: str
    hub: str = ""
    config: str | None = None
    split: str = "train"
    data_files: str | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What is trained as a tokenizer: a byte-level BPE of ``vocab_size`` entries, 256 bytes and 5 marks included."""

    vocab_size: int = 4096

    def __post_init__(self) -> None:
        if self.vocab_size < 261:
            raise ValueError(f"tokenizer.vocab_size: expected at least 261, got {self.vocab_size}")


@dataclass(frozen=True)
class Training:
    """Optimisation settings; ``tokens`` counts every token the model is trained on, repeats included.

    ``rows`` is the batch of one process; with several, a step sees ``rows * accumulate * processes`` blocks.
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
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "adamw_lr"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) > 0, "a number above 0")
        for name in ("weight_decay", "max_grad_norm"):
            self._expect(name, getattr(self, name) >= 0, "at least 0")
        self._expect("optimizer", self.optimizer in ("muon", "adamw"), "'muon' or 'adamw'")
        self._expect("schedule", self.schedule in ("wsd", "cosine"), "'wsd' or 'cosine'")
        for name in ("held_out", "warmup"):
            self._expect(name, 0 <= getattr(self, name) < 1, "a share in [0, 1)")
        self._expect("decay", 0 < self.decay <= 1 - self.warmup, "a share in (0, 1], at most 1 - warmup")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"training.{name}: expected {expected}, got {getattr(self, name)!r}")

    def tokens_per_step(self, processes: int = 1) -> int:
        """Tokens that one optimiser step sees when every batch is full."""
        return self.block * self.rows * self.accumulate * processes

    def steps(self, processes: int = 1) -> int:
        """Optimiser steps that ``tokens`` take on this many processes."""
        return -(-self.tokens // self.tokens_per_step(processes))


@dataclass(frozen=True)
class Distillation:
    """Loss weights of ``kl_weight * KL(target || draft) + ce_weight * CE`` per unpadded token, as STree has it.

    ``embeddings``: how the draft's begin, ``random`` or ``principal`` (see ``distill.principal_embeddings``).
    """

    target: str
    kl_weight: float = 1.0
    ce_weight: float = 0.0
    embeddings: str = "random"

    def __post_init__(self) -> None:
        for name in ("kl_weight", "ce_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"distillation.{name}: expected at least 0, got {getattr(self, name)}")
        if not self.kl_weight and not self.ce_weight:
            raise ValueError("distillation: expected kl_weight or ce_weight above 0, got 0 for both")
        if self.embeddings not in ("random", "principal"):
            raise ValueError(f"distillation.embeddings: expected 'random' or 'principal', got {self.embeddings!r}")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; ``model`` holds the keyword arguments of ``AutoConfig.for_model`` plus ``model_type``."""

    task: str
    model: dict[str, Any]
    data: tuple[Source, ...]
    training: Training
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    distillation: Distillation | None = None
    path: Path = field(default_factory=Path)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed TOML, an unknown or missing setting, a value of the wrong type or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--recipe: expected a TOML file, got {path}; no such file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return _parse(raw, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path}: expected UTF-8 text, got {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {path}: expected TOML, got {error}") from error
    except ValueError as error:
        raise ValueError(f"recipe {path}: {error}") from error


def _parse(raw: dict[str, Any], path: Path) -> Recipe:
    if unknown := sorted(set(raw) - set(TABLES)):
        raise ValueError(f"unknown table {unknown[0]!r}; known: {', '.join(TABLES)}")
    task = raw.get("task")
    if task not in ("pretrain", "distill"):
        raise ValueError(f"task: expected 'pretrain' or 'distill', got {task!r}")
    if (task == "distill") != ("distillation" in raw):
        raise ValueError(
            "a distill recipe needs a [distillation] table with target = FOLDER or hub id"
            if task == "distill"
            else "[distillation]: expected none in a pretrain recipe; set task = 'distill'"
        )
    if task == "distill" and "tokenizer" in raw:
        raise ValueError("[tokenizer]: expected none in a distill recipe, which takes the target's")
    model, data = raw.get("model"), raw.get("data")
    if not isinstance(model, dict) or "model_type" not in model:
        raise ValueError("[model] needs model_type, for example model_type = 'mamba2'")
    if not isinstance(data, list) or not data:
        raise ValueError("expected at least one [[data]] table")
    return Recipe(
        task=task,
        model=model,
        data=tuple(_build(Source, entry, "[[data]]") for entry in data),
        training=_build(Training, raw.get("training", {}), "[training]"),
        tokenizer=_build(Vocabulary, raw.get("tokenizer", {}), "[tokenizer]"),
        distillation=_build(Distillation, raw["distillation"], "[distillation]") if task == "distill" else None,
        path=path,
    )


def _build(kind: type, values: Any, where: str) -> Any:  # noqa: ANN401 - what TOML holds; returns an instance of kind
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table, got {values!r}")
    names = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"{where}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(names))}")
    required = {n for n, f in names.items() if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise ValueError(f"{where}: missing setting {missing[0]!r}")
    for name, annotation in get_type_hints(kind).items():
        if name in values and not any(_fits(values[name], t) for t in get_args(annotation) or (annotation,)):
            expected = (get_args(annotation) or (annotation,))[0].__name__
            raise ValueError(f"{where}: {name}: expected {expected}, got {values[name]!r}")
    return kind(**values)


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
