"""Files of named arrays: safetensors (no pickle) with the name and the version of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from specdecodes.benchmark.journal import replace

Arrays = Mapping[str, NDArray[Any]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class ArrayFile:
    """One kind of file.

    Attributes:
        name: what messages call it. format, version: what its metadata says it is.
        way_out: ends the messages: how to come by a right one.
    """

    name: str
    format: str
    version: str
    way_out: str

    def read(self, path: str | Path, make: Callable[[Mapping[str, str], Arrays], Made]) -> Made:
        """What ``make`` makes of the metadata and the arrays; where it raises ValueError or KeyError, they are damaged.

        Raises:
            ValueError: no such file, a pickle or something else that is no safetensors file, another format or
                version, a damaged one.
        """
        if not Path(path).is_file():
            raise ValueError(f"{self.name}: expected a file, got {str(path)!r}, which is none; {self.way_out}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}: {path}: expected a safetensors file, got something else or a damaged one ({error}); "
                f"{self.way_out}"
            ) from error
        if (metadata.get("format"), metadata.get("version")) != (self.format, self.version):
            got = f"format {metadata.get('format')!r}, version {metadata.get('version')!r}"
            raise ValueError(
                f"{self.name}: {path}: expected format {self.format!r}, version {self.version!r}, got {got}; "
                f"{self.way_out}"
            )
        try:
            return make(metadata, arrays)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.name}: {path}: damaged ({error}); {self.way_out}") from error

    def write(self, path: str | Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        """Write what :meth:`read` reads, replacing an earlier file in one go."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header = {"format": self.format, "version": self.version, **metadata}
        replace(Path(path), [save(contiguous, header)])
