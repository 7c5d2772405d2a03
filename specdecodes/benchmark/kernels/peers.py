"""Kernels of other projects, imported from a folder of the user's and called on our inputs. None of their code is here.

An adapter says in which module and functions a peer keeps its kernel, what they must take, and how they are called.
Modules are imported without the ``__init__`` of the packages above them, which would ask for compiled extensions.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from specdecodes.benchmark.kernels.problems import Outputs, Problem

Function = Callable[..., Any]
Call = Callable[[], Outputs]


@dataclass(frozen=True)
class Peer:
    """An adapter.

    Attributes:
        project: whose it is. module: dotted, below the folder. functions: in it, with parameters that each must have.
        op: ours, whose place it takes. chain: whether it knows no trees.
        call: from the functions and ``Problem.given`` to a call without arguments that returns what our op does.
    """

    project: str
    module: str
    functions: Mapping[str, tuple[str, ...]]
    op: str
    call: Callable[..., Call]
    chain: bool = False


@dataclass(frozen=True)
class Loaded:
    """A peer's functions."""

    name: str
    peer: Peer
    functions: list[Function]

    def bound(self, problem: Problem) -> Problem:
        """The same problem, run by the peer."""
        return replace(problem, run=self.peer.call(*self.functions, problem.given))


def _mamba_ssm(function: Function, given: dict[str, Any]) -> Call:
    """One token: state [B, H, P, N] in place; x, dt [B, H, P]; A [H, P, N]; B, C [B, G, N]; D, dt_bias [H, P].

    As its Mamba-2 layer calls it: what heads share has stride 0, which the kernel looks for in the bias too.
    """
    x, state = given["x"], given["state"]
    dt, D = given["dt"][..., None].expand(x.shape), given["D"][:, None].expand(x.shape[1:])
    A = given["A"][:, None, None].expand(state.shape[1:])
    settings = {"D": D, "z": None, "dt_bias": torch.zeros_like(given["D"])[:, None].expand(D.shape)}
    return lambda: (function(state, x, dt, A, given["B"], given["C"], dt_softplus=False, **settings),)


def _fla_gated(function: Function, given: dict[str, Any]) -> Call:
    """See :func:`_fla_kimi`; g [B, T, H]."""
    return _fla_kimi(function, {**given, "g": given["g"][..., 0].contiguous()})


def _fla_kimi(function: Function, given: dict[str, Any]) -> Call:
    """A sequence: q, k [B, T, H, K] as they come; g of that shape; v [B, T, H, V]; beta [B, T, H]; S [B, H, K, V]."""
    tensors = {name: given[name] for name in ("q", "k", "v", "g", "beta")}
    settings = {"initial_state": given["state"], "output_final_state": False, "use_qk_l2norm_in_kernel": True}
    return lambda: function(**tensors, **settings)[:1]


def _stree_scan(function: Function, given: dict[str, Any]) -> Call:
    """A tree of fewer nodes than a chunk of 256, the length that its models use; its states have the model's dtype."""
    tensors = {name: given[name] for name in ("x", "A", "B", "C", "D")}
    state, mask = given["state"].to(given["x"].dtype), given["ancestors"].long()
    return lambda: function(**tensors, dt=given["steps"], dA_mask=mask, chunk_size=256, initial_states=state)[:1]


def _stree_conv(function: Function, given: dict[str, Any]) -> Call:
    """A tree: x, y [B, C, T]; mask [B, T, T]; window [B, C, W], newest last; weight [C, W]; W a power of two."""
    x, window, weight, bias = (given[name] for name in ("x", "window", "weight", "bias"))
    mask = given["ancestors"].long()
    return lambda: (function(x, mask, window, weight, bias, "silu"),)


def _stree_replay(update: Function, gather: Function, given: dict[str, Any]) -> Call:
    """Windows and states of all layers along a path, in place; the states have the model's dtype.

    STree has no function for it: its layers call these two and torch, one layer after the other, on what the score of
    all T nodes kept: raw inputs [B, W + T, C], behind the window, and x [B, T, H, P], raw dt [B, T, H] and B
    [B, T, G, N] as the scan got them. Nodes off the path are masked, so that they leave a state as it is. Left out, in
    its favour: to pick rows of a batch, to copy windows and states once more, and to make C of zeros.
    """
    stack, path = given["stack"], given["path"]
    inputs, raw = given["kept"]
    joined = torch.cat([stack.windows.mT, inputs], dim=2)
    x, B = stack.scanned(joined)
    states = stack.states.to(x.dtype)
    # As in ``_mamba_ssm``: what a head shares has stride 0.
    A = stack.A.flatten(1)[..., None, None].expand(states[:, 0].shape)
    dt, dt_bias = raw[..., None], stack.dt_bias.flatten(1)[..., None].expand(A.shape[:3])
    settings = {"D": torch.zeros_like(dt_bias[0]), "z": None, "dt_softplus": True}
    C = torch.zeros_like(B[0])
    on_path = torch.zeros(dt.shape[1:3], dtype=torch.bool, device=path.device).scatter(1, path, True)

    def run() -> Outputs:
        for layer, window in enumerate(stack.windows):
            rows = gather(F.pad(on_path, (stack.width, 0), value=True), stack.width)
            window.copy_(joined[layer].index_select(1, rows.flatten()).mT)
            taken = on_path[..., None, None]
            steps = dt[layer].masked_fill(~taken, -1e4).expand(x[layer].shape)
            tokens = (x[layer] * taken, steps, A[layer], B[layer] * taken, C)
            update(states[layer], *tokens, dt_bias=dt_bias[layer], **settings)
        return states, stack.windows

    return run


MAMBA_SSM = "https://github.com/state-spaces/mamba, 2.0 or later"
FLA = "https://github.com/fla-org/flash-linear-attention"
STREE = "https://github.com/wyc1997/stree"

_UPDATE = ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus")
_RULE = ("q", "k", "v", "g", "beta", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel")
_SCAN = ("x", "dt", "A", "B", "C", "dA_mask", "chunk_size", "D", "initial_states")
_CONV = ("x", "mask", "state", "weight", "bias", "activation")

PEERS = {
    "mamba-ssm": (
        Peer(
            MAMBA_SSM,
            "mamba_ssm.ops.triton.selective_state_update",
            {"selective_state_update": _UPDATE},
            op="mamba2_step",
            call=_mamba_ssm,
        ),
    ),
    "flash-linear-attention": (
        Peer(
            FLA,
            "fla.ops.gated_delta_rule.fused_recurrent",
            {"fused_recurrent_gated_delta_rule": _RULE},
            op="gated_delta_tree",
            call=_fla_gated,
            chain=True,
        ),
        Peer(
            FLA,
            "fla.ops.kda.fused_recurrent",
            {"fused_recurrent_kda": _RULE},
            op="kimi_delta_tree",
            call=_fla_kimi,
            chain=True,
        ),
    ),
    "stree": (
        Peer(
            STREE,
            "mamba_ssm.ops.triton.tree_scan",
            {"tree_scan_mask_combined_fwd": _SCAN},
            op="mamba2_tree",
            call=_stree_scan,
        ),
        Peer(
            STREE,
            "mamba_ssm.ops.triton.tree_scan",
            {"tree_mask_conv1d": _CONV},
            op="tree_conv",
            call=_stree_conv,
        ),
        Peer(
            STREE,
            "mamba_ssm.ops.triton.selective_state_update",
            {"selective_state_update_Nstep": _UPDATE, "mask_index_gather": ("mask", "state_len")},
            op="mamba2_commit",
            call=_stree_replay,
        ),
    ),
}
"""By the name that ``--peer`` takes."""


def load_peers(text: str, ops: Collection[str]) -> list[Loaded]:
    """What ``NAME=FOLDER`` names, beside ``ops``.

    Raises:
        ValueError: no such name; none beside these ops; a folder that is none or lacks a module; a module that does not
            import; a function that is not there or takes other arguments.
    """
    name, equals, place = text.partition("=")
    if not equals or not place:
        raise ValueError(f"--peer: expected NAME=FOLDER, got {text!r}; for example --peer stree=../stree")
    if name not in PEERS:
        raise ValueError(f"--peer: expected one of {', '.join(sorted(PEERS))}, got {name!r}")
    peers = [each for each in PEERS[name] if each.op in ops]
    if not peers:
        beside = ", ".join(each.op for each in PEERS[name])
        raise ValueError(f"--peer: expected one of {beside} among the ops, which {name} stands beside, got none")
    return [_loaded(name, each, place) for each in peers]


def _loaded(name: str, peer: Peer, place: str) -> Loaded:
    folder = Path(place)
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
    return Loaded(name, peer, [_function(name, peer, module, each) for each in peer.functions])


def _function(name: str, peer: Peer, module: ModuleType, wanted: str) -> Function:
    function: Function | None = getattr(module, wanted, None)
    if function is None:
        raise ValueError(f"--peer: {name}: expected a function {wanted} in {module.__file__}, got none")
    taken = inspect.signature(function).parameters
    if missing := [each for each in peer.functions[wanted] if each not in taken]:
        raise ValueError(
            f"--peer: {name}: expected {wanted} to take {', '.join(missing)}, got {', '.join(taken)}; "
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
        # flash-linear-attention's helpers import the version, which decides nothing of what is called here.
        vars(package).update(__path__=[str(root.joinpath(*packages[:depth]))], __version__="0")
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
