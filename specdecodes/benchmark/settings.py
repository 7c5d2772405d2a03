"""What a benchmark run is asked to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from specdecodes.benchmark.questions import EMBEDDED, Question
from specdecodes.benchmark.records import BASELINE
from specdecodes.core.sampling import SamplingParams
from specdecodes.plugin import check_lossless, registry

_NOT_PART_OF_THE_RESULT = {"out_dir", "log_dir", "resume", "lossless_only"}


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run depends on; the command line's flags have the same names.

    Attributes:
        target, draft, tokenizer: as for :func:`specdecodes.load`; names or loaded objects.
        modes: what is compared with plain decoding, which always runs and need not be named.
        propose, build_tree, verify, commit_state: replace one part of every mode but the baseline; names or objects.
        settings: components' settings. A mode gets those that its components take, ``mode.key`` goes to one mode only.
        questions, hub_id, raw, prompt_tokens, start, end, categories, max_questions: see
            :func:`specdecodes.benchmark.questions.load_questions`.
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty: see :class:`SamplingParams`.
        seed: every answer's seed follows from it; all modes get the same one for the same turn.
        dtype, device, trust_remote_code, compile, max_length: as for :func:`specdecodes.load`, for the baseline too.
        threads: torch's (None: as is).
        repeat: answers per turn and mode. warmup: rounds before measuring.
        perplexity: also score every answer with the target (outside the clock).
        out_dir: the run's folder; None makes one named after the time below ``log_dir`` (None: ``runs``).
            With both, ``out_dir`` gets the answers and ``log_dir`` the summary.
        lossless_only: refuse modes in which a lossy verifier decides.
        resume: go on with the run in ``out_dir``, or with the latest one below ``log_dir``.
    """

    target: Any = "embedded"
    draft: Any = None
    tokenizer: Any = None
    modes: Sequence[str] = ("stree",)
    propose: Any = None
    build_tree: Any = None
    verify: Any = None
    commit_state: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    questions: str = EMBEDDED
    hub_id: str | None = None
    raw: bool = False
    prompt_tokens: int | None = None
    start: int = 0
    end: int | None = None
    categories: Sequence[str] = ()
    max_questions: int | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    compile: bool = False
    max_length: int | None = None
    threads: int | None = None
    repeat: int = 1
    warmup: int = 1
    perplexity: bool = False
    out_dir: Path | None = None
    log_dir: Path | None = None
    resume: bool = False
    lossless_only: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("repeat", self.repeat >= 1, "at least 1"),
            ("warmup", self.warmup >= 0, "0 (none) or more"),
            ("threads", self.threads is None or self.threads >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("modes", len(self.modes) > 0, "at least one mode"),
        )
        for name, good, expected in checks:
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")
        self.params(0)
        object.__setattr__(self, "modes", canonical_modes(self.modes))
        if self.lossless_only:
            for mode in self.modes:
                check_lossless(registry(), mode, None if mode == BASELINE else self.verify)
        replaced = [name for name in ("propose", "build_tree", "verify", "commit_state") if getattr(self, name)]
        if self.modes == (BASELINE,) and (replaced or self.settings):
            name = (replaced or list(self.settings))[0]
            raise ValueError(
                f"{name}: expected a mode beside the baseline to change, got modes {BASELINE!r} alone; "
                "the baseline always stays as it is, add a mode"
            )

    def params(self, seed: int) -> SamplingParams:
        """How one answer is decoded."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return SamplingParams(seed=seed, **{name: getattr(self, name) for name in names})

    @property
    def target_name(self) -> str:
        """The target's short name, fit for a file name."""
        return short_name(self.target)

    def model_id(self, mode: str) -> str:
        """The name of one mode's answers: target and mode."""
        return f"{self.target_name}-{mode}"

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values; loaded objects by their names."""
        names = [f.name for f in fields(self) if f.name not in _NOT_PART_OF_THE_RESULT]
        return {name: plain_value(getattr(self, name)) for name in names}

    def fingerprint(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What two runs must share for one to go on with the other's answers."""
        asked = json.dumps([[q.question_id, q.category, q.turns] for q in questions], ensure_ascii=False)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        return {**self.to_json(), "text of the questions": f"{len(questions)} questions, sha256 {digest}"}


def canonical_modes(names: Sequence[str]) -> tuple[str, ...]:
    """The baseline, then the modes that ``names`` (aliases allowed) stand for, each once.

    Raises:
        ValueError: an unknown mode.
    """
    components = registry()
    return tuple(dict.fromkeys([BASELINE, *(components.get("mode", name).name for name in names)]))


def short_name(model: Any) -> str:  # noqa: ANN401 - a name or a loaded model
    """The last part of a folder's or hub id's name; a loaded model's family where it has no name."""
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "") or model.config.model_type
    return Path(name).name or str(name).strip("/") or "model"


def plain_value(value: Any) -> Any:  # noqa: ANN401
    """``value`` as plain JSON values; a loaded model by its short name, another object by its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain_value(item) for item in value]
    return short_name(value) if hasattr(value, "config") else type(value).__name__
