"""Which kind of checkpoint a folder or a hub repository holds, and which of its files are damaged."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from specdecodes.models import state_spaces
from specdecodes.models.families import unsupported
from specdecodes.models.mamba_in_llama import MILConfig
from specdecodes.models.mamba_in_llama.configuration import mamba_file

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_INDEX_FILES = "*.index.json"


def read_config(source: str, *, trust_remote_code: bool) -> tuple[PreTrainedConfig, dict[str, str]]:
    """The configuration of a checkpoint, and which patterns of weight names are to be replaced by what.

    Besides what transformers reads by itself: MambaInLlama (``mamba_config.json`` beside a Llama's ``config.json``)
    and the original ``state-spaces`` files.

    Raises:
        OSError, ValueError: nothing there that can be read; code of its own without ``trust_remote_code``.
        RefusedError: a family that this transformers does not know.
    """
    raw, _ = PreTrainedConfig.get_config_dict(source)
    if state_spaces.is_original(raw):
        return state_spaces.config_of(raw), state_spaces.RENAMED
    kind = raw.get("model_type")
    if kind != MILConfig.model_type and (kind == "llama" or Path(source).is_dir()) and mamba_file(source):
        return MILConfig.from_pretrained(source), {}
    if kind is not None and kind not in CONFIG_MAPPING and "auto_map" not in raw:
        raise unsupported(kind, f"transformers {transformers.__version__} does not know it")
    return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code), {}


def is_original(source: str) -> bool:
    """Whether ``source`` is an original ``state-spaces`` checkpoint (False for what cannot be read)."""
    try:
        return state_spaces.is_original(PreTrainedConfig.get_config_dict(source)[0])
    except (OSError, ValueError):
        return False


def damaged_file(source: str) -> tuple[Path, str] | None:
    """The first file of ``source`` that is not what its name says, and what is wrong with it."""
    for path in _files(source):
        if reason := _damage(path):
            return path, reason
    return None


def stored_shapes(source: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight in the files of ``source``; no numbers are read."""
    for path in _files(source):
        if path.suffix != ".json":
            for name, weight in load_state_dict(path, map_location="meta").items():
                yield name, tuple(weight.shape)


def _files(source: str) -> Iterator[Path]:
    """Indices and weights of a folder, or of what the hub's cache holds of a repository."""
    folder = Path(source)
    if not folder.is_dir():
        config = cached_file(source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if config is None:
            return
        folder = Path(config).parent
    for pattern in (_INDEX_FILES, *WEIGHT_FILES):
        yield from sorted(folder.glob(pattern))


def _damage(path: Path) -> str:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif (broken := _pickle_damage(path)) is not None:
            return broken
    except (SafetensorError, OSError, ValueError) as error:
        return str(error).split("\n", 1)[0]
    return ""


def _pickle_damage(path: Path) -> str | None:
    """``torch.save`` writes a zip archive; before torch 1.6 it was a bare pickle, which begins with 0x80."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        return None if zipfile.is_zipfile(path) else "incomplete archive"
    return None if start[:1] == b"\x80" else "neither an archive nor a pickle"
