"""Kernels of other projects, imported from a folder of the user's and called on our inputs. None of their code is here.

An adapter says in which module and function a peer keeps its kernel, what the function must take, and how it is called.
Modules are imported without the ``__init__`` of the packages above them, which would ask for compiled extensions.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from specdecodes.benchmark.kernels.problems import Problem

Function = Callable[..., Any]


@dataclass(frozen=True)
class Peer:
    """An adapter.

    Attributes:
        project: whose it is. module: dotted, below the folder. function: in it. parameters: that it must have.
        op: ours, whose place it takes. chain: whether it knows no trees.
        call: from the function and ``Problem.given`` to a call without arguments that returns y as our op does.
    """

    project: str
    module: str
    function: str
    parameters: tuple[str, ...]
    op: str
    call: Callable[[Function, dict[str, Any]], Callable[[], Tensor]]
    chain: bool = False


@dataclass(frozen=True)
class Loaded:
    """A peer's function."""

    name: str
    peer: Peer
    function: Function

    def bound(self, problem: Problem) -> Problem:
        """The same problem, run by the peer."""
        run = self.peer.call(self.function, problem.given)
        return replace(problem, run=lambda: (run(),))


def _mamba_ssm(function: Function, given: dict[str, Any]) -> Callable[[], Tensor]:
    """One token: state [B, H, P, N] in place; x, dt [B, H, P]; A [H, P, N]; B, C [B, G, N]; D, dt_bias [H, P].

    As its Mamba-2 layer calls it: what heads share has stride 0, which the kernel looks for in the bias too.
    """
    x, state = given["x"], given["state"]
    dt, D = given["dt"][..., None].expand(x.shape), given["D"][:, None].expand(x.shape[1:])
    A = given["A"][:, None, None].expand(state.shape[1:])
    settings = {"D": D, "z": None, "dt_bias": torch.zeros_like(given["D"])[:, None].expand(D.shape)}
    return lambda: function(state, x, dt, A, given["B"], given["C"], dt_softplus=False, **settings)


def _fla(function: Function, given: dict[str, Any]) -> Callable[[], Tensor]:
    """A sequence: q, k [B, T, H, K] as they come; v [B, T, H, V]; g, beta [B, T, H]; state [B, H, K, V]."""
    names = ("q", "k", "v", "beta")
    settings = {"initial_state": given["state"], "output_final_state": False, "use_qk_l2norm_in_kernel": True}
    tensors = {**{name: given[name] for name in names}, "g": given["g"][..., 0].contiguous()}
    return lambda: function(**tensors, **settings)[0]


def _stree(function: Function, given: dict[str, Any]) -> Callable[[], Tensor]:
    """A tree of fewer nodes than a chunk of 256, the length that its models use; its states have the model's dtype."""
    tensors = {name: given[name] for name in ("x", "A", "B", "C", "D")}
    state, mask = given["state"].to(given["x"].dtype), given["ancestors"].long()
    return lambda: function(**tensors, dt=given["steps"], dA_mask=mask, chunk_size=256, initial_states=state)[0]


PEERS = {
    "mamba-ssm": Peer(
        "https://github.com/state-spaces/mamba, 2.0 or later",
        "mamba_ssm.ops.triton.selective_state_update",
        "selective_state_update",
        ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus"),
        op="mamba2_step",
        call=_mamba_ssm,
    ),
    "flash-linear-attention": Peer(
        "https://github.com/fla-org/flash-linear-attention",
        "fla.ops.gated_delta_rule.fused_recurrent",
        "fused_recurrent_gated_delta_rule",
        ("q", "k", "v", "g", "beta", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel"),
        op="gated_delta_tree",
        call=_fla,
        chain=True,
    ),
    "stree": Peer(
        "https://github.com/wyc1997/stree",
        "mamba_ssm.ops.triton.tree_scan",
        "tree_scan_mask_combined_fwd",
        ("x", "dt", "A", "B", "C", "dA_mask", "chunk_size", "D", "initial_states"),
        op="mamba2_tree",
        call=_stree,
    ),
}
"""By the name that ``--peer`` takes."""


def load_peer(text: str) -> Loaded:
    """The function that ``NAME=FOLDER`` names.

    Raises:
        ValueError: no such name; a folder that is none or lacks the module; a module that does not import; a function
            that is not there or takes other arguments.
    """
    name, equals, place = text.partition("=")
    if not equals or not place:
        raise ValueError(f"--peer: expected NAME=FOLDER, got {text!r}; for example --peer stree=../stree")
    if name not in PEERS:
        raise ValueError(f"--peer: expected one of {', '.join(sorted(PEERS))}, got {name!r}")
    peer, folder = PEERS[name], Path(place)
    file = Path(*peer.module.split(".")).with_suffix(".py")
    # A checkout, or a source folder in it, or an environment's site-packages: all have the package at their top.
    roots = [each for each in (folder, folder / "src", folder.parent) if (each / file).is_file()]
    if not roots:
        raise ValueError(f"--peer: {name}: expected a folder that holds {file} ({peer.project}), got {place!r}")
    try:
        with _found_in(roots[0].resolve(), peer.module):
            module = importlib.import_module(peer.module)
    except (ImportError, AttributeError, SyntaxError, RuntimeError, OSError) as error:
        raise ValueError(f"--peer: {name}: {file} does not import here: {error}") from error
    return Loaded(name, peer, _function(name, peer, module))


def _function(name: str, peer: Peer, module: ModuleType) -> Function:
    function: Function | None = getattr(module, peer.function, None)
    if function is None:
        raise ValueError(f"--peer: {name}: expected a function {peer.function} in {module.__file__}, got none")
    taken = inspect.signature(function).parameters
    if missing := [each for each in peer.parameters if each not in taken]:
        raise ValueError(
            f"--peer: {name}: expected {peer.function} to take {', '.join(missing)}, got {', '.join(taken)}; "
            f"use a version of {peer.project} that does"
        )
    return function


@contextmanager
def _found_in(root: Path, module: str) -> Iterator[None]:
    """Import the packages above ``module`` as empty ones, from ``root``; forget them, and what was there before stays.

    Two peers may have packages of one name, and so may an installed one.
    """
    *packages, _ = module.split(".")
    top = packages[0]
    before = _taken_out(top)
    for depth in range(1, len(packages) + 1):
        name = ".".join(packages[:depth])
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*packages[:depth]))]
        sys.modules[name] = package
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        _taken_out(top)
        sys.modules.update(before)


def _taken_out(top: str) -> dict[str, ModuleType]:
    """Remove a package and all below it from the imported modules; returns them."""
    names = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
    return {name: sys.modules.pop(name) for name in names}
