"""Growmap files: tree shapes as lists of children, in JSON or in Sequoia's ``.pt`` format."""

from __future__ import annotations

import io
import json
import pickle
import reprlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdecodes.benchmark.journal import parse_json, replace

SUFFIXES = (".json", ".pt")
FIELDS = ("roots", "branches", "Successors", "mask", "depth", "size")
"""Of Sequoia's dictionary (Chen et al., arXiv 2402.12374):

``Successors[i]`` the children of node i, in draw order; ``roots[d]`` the nodes of depth d; ``branches[d]`` how many
children each of those has; ``mask`` int64 [size, size]: 1 where column j is row i or above it; ``depth`` int64 [size].
"""

Successors = list[list[int]]


def read_growmap(path: Path) -> Successors:
    """The children of every node, in draw order; node 0 is the root, parents come before their children.

    Reads JSON ``{"successors": [[1, 2], [3], [], []]}`` and, from ``.pt``, Sequoia's dictionary (:data:`FIELDS`),
    whose fields must agree with each other. A ``.pt`` file is read with ``weights_only=True``: no code in it is run.

    Raises:
        ValueError: no such file, another format, a cycle, a node with two parents, a second root, children before
            their parent, fields that contradict ``Successors``. The message names the file and the place.
    """
    where = f"tree: growmap {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"tree: cannot read the growmap {path}: {error.strerror}") from error
    if path.suffix == ".pt":
        return _from_sequoia(data, where)
    wanted = 'expected JSON {"successors": [[1, 2], ...]}'
    try:
        values = parse_json(data.decode("utf-8"))
    except ValueError as error:  # its repr may hold the whole file
        raise ValueError(f"{where}: {wanted}, got {error}") from error
    if not isinstance(values, dict) or "successors" not in values:
        raise ValueError(f"{where}: {wanted}, got {reprlib.repr(values)}")
    _check_tree(values["successors"], where)
    return list(values["successors"])


def write_growmap(successors: Sequence[Sequence[int]], path: Path) -> None:
    """Write what :func:`read_growmap` reads: JSON, or Sequoia's dictionary where ``path`` ends in ``.pt``.

    The file is replaced as a whole.

    Raises:
        ValueError: another ending, children that make no tree, a folder that cannot be written to.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"tree: growmap {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    children = [list(below) for below in successors]
    _check_tree(children, f"tree: growmap {path}")
    if path.suffix == ".json":
        data = json.dumps({"successors": children}).encode() + b"\n"
    else:
        buffer = io.BytesIO()
        torch.save(_sequoia(children), buffer)
        data = buffer.getvalue()
    try:
        replace(path, [data])
    except OSError as error:
        raise ValueError(f"tree: cannot write the growmap {path}: {error.strerror}") from error


def _from_sequoia(data: bytes, where: str) -> Successors:
    wanted = f"a dictionary saved with torch.save ({', '.join(FIELDS)})"
    try:
        with warnings.catch_warnings():  # about pickles that are refused anyway
            warnings.simplefilter("ignore")
            growmap = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{where}: expected {wanted}, got a file that is no such thing or that needs code to be read, "
            "which is never run; save plain lists and tensors"
        ) from error
    except Exception as error:
        raise ValueError(f"{where}: expected {wanted}, got a damaged file ({type(error).__name__})") from error
    missing = [name for name in FIELDS if not isinstance(growmap, dict) or name not in growmap]
    if missing:
        got = f"a dictionary without {', '.join(missing)}" if isinstance(growmap, dict) else type(growmap).__name__
        raise ValueError(f"{where}: expected {wanted}, got {got}")
    successors: Successors = growmap["Successors"]
    _check_tree(successors, where, "Successors: ")
    _check_fields(growmap, _sequoia(successors), where)
    return successors


def _sequoia(successors: Successors) -> dict[str, Any]:
    """Sequoia's dictionary for this tree."""
    size = len(successors)
    mask = torch.eye(size, dtype=torch.long)
    depth = [0] * size
    for node, children in enumerate(successors):
        for child in children:
            mask[child] |= mask[node]
            depth[child] = depth[node] + 1
    roots: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for node, level in enumerate(depth):
        roots[level].append(node)
    return {
        "roots": roots,
        "branches": [[len(successors[node]) for node in level] for level in roots],
        "Successors": successors,
        "mask": mask,
        "depth": torch.tensor(depth),
        "size": size,
    }


def _check_fields(got: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Refuse what says something else than what follows from Successors; a level may list its nodes in any order."""

    def differ(name: str, place: str, right: object, wrong: object) -> ValueError:
        return ValueError(
            f"{where}: {name} disagrees with Successors{place}: expected {right}, got {wrong}; "
            "make the growmap anew from its successors"
        )

    if type(got["size"]) is not int or got["size"] != expected["size"]:
        raise differ("size", "", expected["size"], got["size"])
    for name in ("mask", "depth"):
        right, found = expected[name], got[name]
        if not isinstance(found, Tensor) or found.shape != right.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise differ(name, "", f"a tensor of shape {list(right.shape)}", shape)
        wrong = (found != right).nonzero().tolist()
        if wrong:
            at = tuple(wrong[0])
            raise differ(name, f" at {list(at)}", right[at].item(), found[at].item())
    successors, levels = expected["Successors"], expected["roots"]
    for name in ("roots", "branches"):
        if not isinstance(got[name], list) or len(got[name]) != len(levels):
            found = len(got[name]) if isinstance(got[name], list) else type(got[name]).__name__
            raise differ(name, "", f"a list of {len(levels)} levels", found)
    for depth, (level, nodes, counts) in enumerate(zip(levels, got["roots"], got["branches"], strict=True)):
        if not isinstance(nodes, list) or not all(type(node) is int for node in nodes) or sorted(nodes) != level:
            raise differ("roots", f" at depth {depth}", level, nodes)
        right = [len(successors[node]) for node in nodes]
        if counts != right:
            raise differ("branches", f" at depth {depth}", right, counts)


def _check_tree(successors: Any, where: str, field: str = "") -> None:  # noqa: ANN401 - what a file held
    if not isinstance(successors, list) or not successors or not all(isinstance(node, list) for node in successors):
        got = reprlib.repr(successors) if isinstance(successors, list) else type(successors).__name__
        raise ValueError(f"{where}: {field}expected a list of children per node, got {got}")
    count = len(successors)
    parent: dict[int, int] = {}
    for node, children in enumerate(successors):
        for child in children:
            if type(child) is not int or not 0 <= child < count:
                raise ValueError(f"{where}: {field}node {node} has child {child!r}; expected 1 to {count - 1}")
            if child <= node:
                raise ValueError(
                    f"{where}: {field}node {node} has child {child}; children must come after their parent (no cycles)"
                )
            if child in parent:
                raise ValueError(f"{where}: {field}node {child} has two parents, {parent[child]} and {node}")
            parent[child] = node
    orphans = [node for node in range(1, count) if node not in parent]
    if orphans:
        raise ValueError(f"{where}: {field}node {orphans[0]} is a second root; expected one root (node 0)")
    if count == 1:
        raise ValueError(f"{where}: {field}expected at least one child of the root")
