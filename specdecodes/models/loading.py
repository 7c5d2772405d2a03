"""Load targets and drafts from a folder, a hub id, a model object or the package's own assets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specdecodes import assets
from specdecodes.models.families import check_supported

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
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: got {str(device)!r}, but this machine (or this build of torch) has no CUDA; use 'cpu'"
        )
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
    """Load a causal model for inference; an object is taken as it is.

    Raises:
        ValueError: one line naming ``role`` (target or draft), what is wrong and the way out.
    """
    if isinstance(source, PreTrainedModel):
        check_supported(source.config)
        return source.eval()
    path = resolve(source)
    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        raise ValueError(f"{role}: the folder {source!r} has no config.json; expected a Hugging Face model folder")
    try:
        check_supported(AutoConfig.from_pretrained(path))
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{role}: {source!r} holds a pickle checkpoint that would run code when loaded; convert it to safetensors"
        ) from error
    except (OSError, KeyError) as error:
        raise ValueError(f"{role}: cannot load {source!r}: {_first_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{role}: {source!r}: {_first_line(error)}") from error
    return model.to(device).eval()


def load_tokenizer(source: Any, tokenizer: Any) -> Any:  # noqa: ANN401 - tokenizers have no common base
    """The tokenizer given (an object, folder or hub id), else the one that lies beside the target, else None.

    Raises:
        ValueError: a named tokenizer that cannot be loaded.
    """
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    if tokenizer is None and isinstance(source, PreTrainedModel):
        return None
    name = tokenizer or source
    try:
        return AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError, KeyError) as error:
        if tokenizer is None:
            return None
        raise ValueError(f"tokenizer: cannot load {tokenizer!r}: {_first_line(error)}") from error


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


def resolve(source: str) -> str:
    """A name of the package's own assets as a folder; anything else as it is."""
    return str(assets.folder(source)) if source in assets.NAMES else source


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
