"""The ops: what each takes of a model, what it costs, how it is called, and which forms of it there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import specdecodes.kernels
from specdecodes.benchmark.kernels import costs, problems, recurrent
from specdecodes.benchmark.kernels.costs import Cost
from specdecodes.benchmark.kernels.problems import Numbers, Problem, Where
from specdecodes.benchmark.shapes import AttentionSizes, DeltaSizes, Mamba2Sizes, S6Sizes, Shape
from specdecodes.kernels import choice, native
from specdecodes.kernels.linear import packed
from specdecodes.kernels.switch import SWITCH

FORMS = ("naive", "native", "triton")
"""Plain torch, C++, Triton."""

FILES = {"naive": "naive.py", "native": "native.cpp", "triton": "triton.py"}
"""Where a form of an op lies, below its folder."""


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        about: in a few words. folder: below ``kernels/``; None where there is plain torch alone.
        takes: of a model, what it has of the kind that the op works on; None where it has nothing of it.
        cost: of (what ``takes`` says, nodes, :class:`Where`). build: a problem, of those, numbers and the form.
        nodes: of the tree sizes asked for, those at which the op differs. lacks: forms that its folder alone has.
    """

    about: str
    folder: str | None
    takes: Callable[[Shape], Any]
    cost: Callable[[Any, int, Where], Cost]
    build: Callable[[Any, int, Where, Numbers, str], Problem]
    nodes: Callable[[Sequence[int]], Sequence[int]] = tuple
    lacks: tuple[str, ...] = ()

    def forms(self) -> list[str]:
        """The forms that are in the repository."""
        if self.folder is None:
            return ["naive"]
        if self.folder == "linear":  # its plain form is torch's own
            return ["naive", "native"]
        here = Path(specdecodes.kernels.__file__).parent / self.folder
        return [form for form, name in FILES.items() if (here / name).is_file() and form not in self.lacks]

    def serves(self, form: str, sizes: Any, where: Where) -> bool:  # noqa: ANN401 - what ``takes`` says
        """Whether ``form`` runs for such sizes on that device and in that dtype, on this machine."""
        if form not in self.forms() or form == "naive":
            return form in self.forms()
        if self.folder == "linear":
            return where.device.type == "cpu" and packed.available(where.dtype)
        if form == "native" and self is OPS["mamba2_commit"] and sizes.shared > 1:
            return False  # see ``mamba2_scan.path_jump_serves``
        return runs(form, where)


def runs(form: str, where: Where) -> bool:
    """Whether kernels of that form run on the device and in the dtype, on this machine."""
    try:
        with forced(form):
            return choice.decide(where.device.type, where.dtype).form == form
    except ValueError:
        return False


@contextmanager
def forced(form: str) -> Iterator[None]:
    """Let the ops run in ``form`` where they have it, whatever the environment says."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = form
    _forget()
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
        _forget()


def _forget() -> None:
    choice.decide.cache_clear()
    native.library.cache_clear()


def path_lengths(counts: Sequence[int]) -> Sequence[int]:
    """Lengths of the paths that trees of so many nodes commit, each once."""
    return sorted({problems.path_length(count) for count in counts})


def _delta(shape: Shape, per_channel: bool) -> DeltaSizes | None:
    found = shape.sizes.get(DeltaSizes)
    return found if isinstance(found, DeltaSizes) and found.per_channel == per_channel else None


def _conv(shape: Shape) -> Any:  # noqa: ANN401 - of the three kinds that convolve
    found = (shape.sizes.get(kind) for kind in (Mamba2Sizes, DeltaSizes, S6Sizes))
    return next((each for each in found if each is not None), None)


def _delta_tree(about: str, per_channel: bool) -> Op:
    return Op(
        about,
        "gated_delta",  # whose kernel takes both kinds of decay
        lambda shape: _delta(shape, per_channel),
        lambda sizes, count, where: costs.delta_tree(sizes, count, where.widths),
        lambda sizes, count, where, numbers, _: recurrent.delta_tree(sizes, count, where, numbers),
    )


def _delta_commit(about: str, per_channel: bool) -> Op:
    return Op(
        f"{about}: windows and states of all layers along a path of {problems.LONGEST_PATH}",
        "gated_delta",
        lambda shape: _delta(shape, per_channel),
        lambda sizes, count, where: costs.delta_commit(sizes, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: recurrent.delta_commit(sizes, count, where, numbers),
        nodes=path_lengths,
    )


def _products(about: str, takes: Callable[[Shape], Any]) -> Op:
    return Op(
        about,
        "linear",
        takes,
        lambda sizes, count, where: costs.linear(sizes, count, where.widths),
        lambda sizes, count, where, numbers, form: problems.linear(sizes, count, where, numbers, form == "native"),
    )


OPS: dict[str, Op] = {
    "mamba2_tree": Op(
        "Mamba-2 scan of a tree, one layer",
        "mamba2_scan",
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, count, where: costs.mamba2_tree(sizes, count, where.widths),
        lambda sizes, count, where, numbers, _: recurrent.mamba2_tree(sizes, count, where, numbers),
    ),
    "mamba2_commit": Op(
        f"Mamba-2 replay: windows and states of all layers along a path of {problems.LONGEST_PATH}",
        "mamba2_scan",
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, count, where: costs.mamba2_commit(sizes, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: recurrent.mamba2_commit(sizes, count, where, numbers),
    ),
    "mamba2_replay_tree": Op(
        "the same scan with the path of the step before in front of it, one layer",
        "mamba2_scan",
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, count, where: costs.mamba2_replay_tree(sizes, count, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: recurrent.mamba2_replay_tree(sizes, count, where, numbers),
        lacks=("native",),
    ),
    "mamba2_defer": Op(
        "what a commit does where the path waits for the next score: inputs of all layers gathered",
        None,
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, count, where: costs.mamba2_defer(sizes, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: recurrent.mamba2_defer(sizes, count, where, numbers),
    ),
    "mamba2_step": Op(
        "Mamba-2, one token in place, one layer: plain decoding's",
        "mamba2_scan",
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, _, where: costs.mamba2_step(sizes, where.widths),
        lambda sizes, _, where, numbers, __: recurrent.mamba2_step(sizes, where, numbers),
        nodes=lambda _: (1,),
        lacks=("triton",),
    ),
    "tree_conv": Op(
        "convolution along the paths of a tree, one layer",
        "causal_conv",
        _conv,
        lambda sizes, count, where: costs.tree_conv(sizes, count, where.widths),
        lambda sizes, count, where, numbers, _: recurrent.tree_conv(sizes, count, where, numbers),
    ),
    "replay_conv": Op(
        "the same convolution with the path of the step before in front of it, one layer",
        "causal_conv",
        lambda shape: shape.sizes.get(Mamba2Sizes),
        lambda sizes, count, where: costs.replay_conv(sizes, count, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: recurrent.replay_conv(sizes, count, where, numbers),
        lacks=("native",),
    ),
    "gated_delta_tree": _delta_tree("gated delta rule over a tree, one layer", per_channel=False),
    "gated_delta_commit": _delta_commit("gated delta replay", per_channel=False),
    "kimi_delta_tree": _delta_tree("Kimi delta attention over a tree, one layer", per_channel=True),
    "kimi_delta_commit": _delta_commit("Kimi delta replay", per_channel=True),
    "s6_tree": Op(
        "S6 scan of a tree, one layer",
        "s6_scan",
        lambda shape: shape.sizes.get(S6Sizes),
        lambda sizes, count, where: costs.s6_tree(sizes, count, where.widths),
        lambda sizes, count, where, numbers, _: recurrent.s6_tree(sizes, count, where, numbers),
    ),
    "linear": _products("every dense weight of the first layer", lambda shape: shape.products),
    "lm_head": _products("the weight that makes logits", lambda shape: [shape.head]),
    "kv_gather": Op(
        f"rows of keys and values of all layers, a path of {problems.LONGEST_PATH}",
        None,
        lambda shape: shape.sizes.get(AttentionSizes),
        lambda sizes, count, where: costs.kv_gather(sizes, problems.path_length(count), where.widths),
        lambda sizes, count, where, numbers, _: problems.kv_gather(sizes, count, where, numbers),
        nodes=path_lengths,
    ),
    "tree_attention": Op(
        "attention of a tree's nodes, one layer; naive: stock sdpa with our mask",
        "tree_attention",
        lambda shape: shape.sizes.get(AttentionSizes),
        lambda sizes, count, where: costs.tree_attention(sizes, count, where.context, where.widths),
        lambda sizes, count, where, numbers, _: problems.tree_attention(sizes, count, where, numbers),
    ),
}
"""By the name that ``--op`` takes."""
