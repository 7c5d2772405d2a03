"""Load targets and drafts from a folder, a hub id, a model object or the package's own assets."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specdecodes import assets
from specdecodes.models.families import causal_config, check_supported

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
_WEIGHT_FILES = ("*.safetensors", "*.bin")
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
    source: str | PreTrainedModel, role: str, device: torch.device, dtype: torch.dtype | str
) -> PreTrainedModel:
    """Load a causal model for inference; an object is taken as it is. Code that comes with a checkpoint is never run.

    Raises:
        ValueError: one line naming ``role`` (target or draft), what is wrong and the way out.
    """
    if isinstance(source, PreTrainedModel):
        check_supported(source.config)
        return source.eval()
    path = _existing(source, role)
    try:
        check_supported(causal_config(AutoConfig.from_pretrained(path, trust_remote_code=False)))
        _check_weights(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # its annotation knows no report
            path, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{role}: {source!r} holds a pickle checkpoint that would run code when loaded; convert it to safetensors"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{role}: the weights of {source!r} are damaged ({error}); fetch or save them again"
        ) from error
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{role}: cannot load {source!r}: {_reason(error)}") from error
    model, report = loaded
    _check_complete(report, role, source)
    return model.to(device).eval()


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
            raise ValueError(f"{role}: expected a folder, a hub id or 'embedded', got {source!r}; no such folder")
        return source
    if not (path / "config.json").exists():
        raise ValueError(f"{role}: the folder {source!r} has no config.json; expected a Hugging Face model folder")
    return str(path)


def _check_weights(path: str) -> None:
    folder = Path(path)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        raise ValueError("it holds no weights; expected model.safetensors, or its shards, beside config.json")


def _check_complete(report: Mapping[str, Any], role: str, source: str) -> None:
    """Refuse a checkpoint that leaves weights as they were drawn at random."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ValueError(
            f"{role}: the weights of {source!r} do not fit its config.json: "
            f"{name}: expected {tuple(wanted)}, got {tuple(stored)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{role}: {source!r} lacks {len(missing)} of the weights that its config.json asks for, "
            f"first {missing[0]}; fetch or save all of its files"
        )


def is_embedded(model: PreTrainedModel) -> bool:
    """Whether ``model`` was loaded from the package's own target."""
    return Path(model.name_or_path or "") == assets.folder("embedded")


def load_tokenizer(source: Any, tokenizer: Any) -> Any:  # noqa: ANN401 - tokenizers have no common base
    """The tokenizer given (an object, folder or hub id), else the one that lies beside the target, else None.

    Raises:
        ValueError: a named tokenizer that cannot be loaded, or a damaged one beside the target.
    """
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    if tokenizer is None and isinstance(source, PreTrainedModel):
        return None
    name = tokenizer or source
    path = Path(resolve(name))
    if tokenizer is None and path.is_dir() and not any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        if tokenizer is None and not path.is_dir():
            return None  # a hub repository without a tokenizer cannot be told from other failures
        raise ValueError(f"tokenizer: cannot load {name!r}: {_reason(error)}") from error


def load_draft(context: Context) -> PreTrainedModel:
    """The draft model that ``context.draft`` names, in the target's dtype and on its device.

    Raises:
        ValueError: none named, or one whose tokenizer is not the target's.
    """
    draft, target = context.draft, context.target
    if draft is None:
        raise ValueError(
            "draft: this mode drafts with a model; name one (a folder or hub id), or a drafter such as 'ngram'"
        )
    if draft in assets.DRAFTS and not target.is_embedded:
        raise ValueError(
            f"draft: {draft!r} was trained for the embedded target only; name a draft model of your target"
        )
    model = load_model(draft, "draft", target.device, target.dtype)
    if context.tokenizer is not None and isinstance(draft, str):
        own = load_tokenizer(draft, None)
        if own is not None:
            check_same_tokens(context.tokenizer, own)
    return model


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
        return "it comes with code of its own, which is not run; use a model that transformers supports"
    return str(error).strip().split("\n", 1)[0].removeprefix("model: ")
