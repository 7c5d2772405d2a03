"""Load targets and drafts from a folder, a hub id, a model object or the package's own assets."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specdecodes import assets
from specdecodes.core.settings import SettingWarning
from specdecodes.models import state_spaces
from specdecodes.models.checkpoints import WEIGHT_FILES, damaged_file, is_original, read_config, stored_shapes
from specdecodes.models.families import RefusedError, causal_config, check_supported
from specdecodes.models.target import Target
from specdecodes.plugin import nearest, registry

if TYPE_CHECKING:
    from specdecodes.plugin import Context

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "fp64": torch.float64,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device to run on; None is CUDA where there is one, else the CPU.

    Raises:
        ValueError: not a device, or CUDA where there is none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'cpu' or 'cuda[:N]', got {device!r}") from error
    if parsed.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda[:N]', got {str(device)!r}")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: got {str(device)!r}, but this machine (or this build of torch) has no CUDA; use 'cpu'"
        )
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {str(device)!r}")
    return parsed


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """The dtype to load weights in; None is float32 on a CPU and the checkpoint's own on a GPU.

    Raises:
        ValueError: unknown name.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def load_model(
    source: str | PreTrainedModel,
    role: str,
    device: torch.device,
    dtype: torch.dtype | str,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal model for inference; an object is taken as it is.

    Code that comes with a checkpoint is run with ``trust_remote_code`` alone.

    Raises:
        ValueError: one line naming ``role`` (target, draft or model), what is wrong and the way out; a RefusedError
            where the files are as they should be.
    """
    if isinstance(source, PreTrainedModel):
        check_supported(source.config)
        return source.eval()
    if not isinstance(source, str):
        raise ValueError(
            f"{role}: expected a folder, a hub id or a transformers.PreTrainedModel, got {type(source).__name__}"
        )
    path = _existing(source, role)
    try:
        config, renamed = read_config(path, trust_remote_code=trust_remote_code)
        check_supported(causal_config(config))
        _check_weights(path)
    except Exception as error:  # a damaged config.json fails with errors of every kind
        kind = RefusedError if isinstance(error, RefusedError) else ValueError
        raise kind(f"{role}: cannot load {source!r}: {_reason(error)}{_way_out(role, source)}") from error
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # its annotation knows no report
            path,
            config=config,
            dtype=dtype,
            key_mapping=renamed or None,
            trust_remote_code=trust_remote_code,
            weights_only=True,  # a pickle's numbers, and no code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # damaged files fail with errors of every kind
        if (reason := _weights_reason(error, role, source, path, config)) is None:
            raise
        raise ValueError(reason) from error
    model, report = loaded
    _check_complete(report, role, source)
    if renamed:
        model._weight_conversions = None  # or it would be saved under the old names
    return model.to(device).eval()


def check_own(model: PreTrainedModel, device: str | torch.device | None, dtype: str | torch.dtype | None) -> None:
    """Refuse a device or a dtype, each None where it was left out, that a loaded target does not have.

    Raises:
        ValueError: as said.
    """
    where = parse_device(device)
    same = where.type == model.device.type and where.index in (None, model.device.index or 0)
    if device is not None and not same:
        raise ValueError(
            f"device: expected {str(model.device)!r}, where the loaded target is, or none, got {str(device)!r}; "
            "move the model yourself, or leave it out"
        )
    wanted = parse_dtype(dtype, where)
    if dtype is not None and wanted != model.dtype:
        own, given = (str(each).removeprefix("torch.") for each in (model.dtype, wanted))
        raise ValueError(
            f"dtype: expected {own!r}, the loaded target's own, or none, got {given!r}; "
            f"convert it with model.to(torch.{given}), or leave it out"
        )


def _weights_reason(error: Exception, role: str, source: str, path: str, config: Any) -> str | None:  # noqa: ANN401
    """What a user reads in the place of ``error``; None where it is no checkpoint's fault."""
    if damaged := damaged_file(path):
        file, reason = damaged
        return f"{role}: {str(file)!r} is damaged: {reason}; fetch or save it again"
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{role}: {source!r} holds a pickle checkpoint that would run code when loaded; convert it to safetensors"
        )
    if isinstance(error, NotImplementedError):  # transformers compares a tied head with embeddings that do not fit
        size = (config.vocab_size, config.hidden_size)
        other = next((i for i in stored_shapes(path) if "embed" in i[0] and i[1] != size), None)
        return other and _mismatch(role, source, *other, size)
    if isinstance(error, MemoryError | RuntimeError) and "memory" in str(error):
        return None
    return f"{role}: cannot load {source!r}: {_reason(error)}"


def _existing(source: str, role: str) -> str:
    """``source`` as a folder that may hold a model, or as a hub id.

    Raises:
        ValueError: no such folder, or one without a configuration.
    """
    path = Path(resolve(source))
    if source in assets.NAMES and not path.is_dir():
        raise ValueError(f"{role}: this copy of specdecodes comes without {source!r}; name a model folder or a hub id")
    if not source or not path.is_dir():
        if not _HUB_ID.fullmatch(source):
            raise ValueError(_no_folder(role, source))
        return source
    if not (path / "config.json").exists():
        raise ValueError(f"{role}: the folder {source!r} has no config.json; expected a Hugging Face model folder")
    return str(path)


def _no_folder(role: str, source: str) -> str:
    return f"{role}: expected a folder, a hub id or 'embedded', got {source!r}; no such folder"


def _way_out(role: str, source: str) -> str:
    """What to do where ``source``, no folder, is not found on the hub either; nothing for a folder."""
    if Path(source).is_dir():
        return ""
    known = [*assets.DRAFTS, *registry().names("drafter")] if role == "draft" else list(assets.NAMES)
    near = nearest(source, known)
    return f"; did you mean {near!r}?" if near else "; check the name, or name a folder that holds the model"


def _check_weights(path: str) -> None:
    folder = Path(path)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise ValueError("it holds no weights; expected model.safetensors, or its shards, beside config.json")


def _check_complete(report: Mapping[str, Any], role: str, source: str) -> None:
    """Refuse a checkpoint that leaves weights as they were drawn at random, or has some that nothing uses."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ValueError(_mismatch(role, source, name, stored, wanted))
    other = "fetch the config.json that belongs to them, or pass a model that you have loaded yourself"
    for names, what, way_out in (
        (report["missing_keys"], "lacks {} that its config.json asks for", "fetch or save all of its files"),
        (report["unexpected_keys"], "holds {} that its config.json has no place for", other),
    ):
        if names:
            count = f"{len(names)} weight{'s' * (len(names) > 1)}"
            raise ValueError(f"{role}: {source!r} {what.format(count)}: {_listed(sorted(names))}; {way_out}")


def _mismatch(role: str, source: str, name: str, stored: Sequence[int], wanted: Sequence[int]) -> str:
    fit = f"{name}: expected {tuple(wanted)}, got {tuple(stored)}"
    return f"{role}: the weights of {source!r} do not fit its config.json: {fit}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    """The first of ``names``, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def is_embedded(model: PreTrainedModel) -> bool:
    """Whether ``model`` was loaded from the package's own target."""
    return Path(model.name_or_path or "") == assets.folder("embedded")


def load_tokenizer(
    source: Any,  # noqa: ANN401 - a name or a model
    tokenizer: Any,  # noqa: ANN401 - tokenizers have no common base
    *,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Any:  # noqa: ANN401
    """The tokenizer given (an object, folder or hub id), else the one that lies beside the target, else None.

    The original ``state-spaces`` checkpoints come without one and get GPT-NeoX's. Where that cannot be loaded a warning
    says so, unless ``quiet``.

    Raises:
        ValueError: a named tokenizer that cannot be loaded, or a damaged one beside the target.
    """
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    if tokenizer is None and isinstance(source, PreTrainedModel):
        return None
    given = source if tokenizer is None else tokenizer
    name, original = resolve(given), False
    path = Path(name)
    if tokenizer is None and not _has_tokenizer(path):
        original = is_original(name)
        if path.is_dir() and not original:
            return None
    if not _HUB_ID.fullmatch(given) and not (given and path.is_dir()):
        raise ValueError(_no_folder("tokenizer", given))
    if path.is_dir() and not original and not _has_tokenizer(path):
        raise ValueError(f"tokenizer: the folder {given!r} holds none; expected tokenizer.json or its like")
    try:
        if original:
            name = state_spaces.TOKENIZER
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exceptions
        if original and not quiet:
            warnings.warn(
                f"tokenizer: {source!r} comes without one, and {name!r}, which it was trained with, cannot be loaded "
                f"({_reason(error)}); name a folder that holds it as tokenizer (--tokenizer)",
                SettingWarning,
                stacklevel=2,
            )
        if original or (tokenizer is None and not path.is_dir()):
            return None  # a hub repository without a tokenizer cannot be told from other failures
        raise ValueError(f"tokenizer: cannot load {tokenizer or source!r}: {_reason(error)}") from error


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES)


def load_draft(context: Context) -> PreTrainedModel:
    """The draft model that ``context.draft`` names, in the target's dtype and on its device; else the embedded one's.

    Raises:
        ValueError: none named, one on another device, or one whose tokenizer is not the target's.
    """
    draft, target = context.draft, context.target
    if draft is None and target.is_embedded:
        draft = assets.DEFAULT_MODEL
    if draft is None:
        raise ValueError(
            "draft: this mode drafts with a model; name one (a folder or hub id), or a drafter such as 'ngram'"
        )
    if draft in assets.DRAFTS and not target.is_embedded:
        raise ValueError(
            f"draft: {draft!r} was trained for the embedded target only; name a draft model of your target"
        )
    trust = context.trust_remote_code
    model = load_model(draft, "draft", target.device, target.dtype, trust_remote_code=trust)
    if model.device != target.device:
        raise ValueError(f"draft: expected it on the target's device {str(target.device)!r}, got {str(model.device)!r}")
    ours = _tokenizer_beside(target.model, trust) if context.tokenizer is None else context.tokenizer
    theirs = None if ours is None else _tokenizer_beside(model if isinstance(draft, PreTrainedModel) else draft, trust)
    if theirs is not None:
        check_same_tokens(ours, theirs)
    if not bool(Target(model).prefill(torch.tensor([[0]], device=model.device)).isfinite().all()):
        raise ValueError("draft: its logits are not finite; are its weights intact?")
    return model


def _tokenizer_beside(source: str | PreTrainedModel, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """The tokenizer of a checkpoint, or of the folder that a loaded model came from; None where there is none."""
    if isinstance(source, PreTrainedModel):
        source = source.name_or_path or ""
        if not Path(source).is_dir() or not _has_tokenizer(Path(source)):
            return None
    return load_tokenizer(source, None, trust_remote_code=trust_remote_code, quiet=True)


def check_same_tokens(target: Any, draft: Any) -> None:  # noqa: ANN401
    """Refuse a draft whose token ids mean something else.

    Raises:
        ValueError: names the first id that differs.
    """
    ours = {index: token for token, index in target.get_vocab().items()}
    theirs = {index: token for token, index in draft.get_vocab().items()}
    for index in sorted(set(ours) | set(theirs)):
        if ours.get(index) != theirs.get(index):
            raise ValueError(
                f"draft: its tokenizer differs from the target's: id {index} is {theirs.get(index)!r}, "
                f"expected {ours.get(index)!r}; use a draft of the same tokenizer"
            )


def tokenizer_fingerprint(tokenizer: Any) -> str:  # noqa: ANN401
    """What two tokenizers share if and only if every token has the same id in both: 64 hexadecimal digits."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def resolve(source: str) -> str:
    """A name of the package's own assets as a folder; anything else as it is."""
    return str(assets.folder(source)) if source in assets.NAMES else source


def _reason(error: BaseException) -> str:
    """The first line of a library's message, which names no flag of its own."""
    if "trust_remote_code" in str(error):
        return "it comes with code of its own; trust_remote_code (--trust-remote-code) runs it, if you trust it"
    line = str(error).strip().split("\n", 1)[0].removeprefix("model: ").removesuffix(".")
    if isinstance(error, OSError | ValueError) and not isinstance(error, UnicodeError):
        return line
    return f"config.json or another of its files is damaged ({type(error).__name__}: {line})"
