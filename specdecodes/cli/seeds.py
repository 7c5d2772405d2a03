"""The flags of the programs whose experiments this package repeats, said in its own terms; docs/seeds.md has the table.

Flags that mean the same as one of ours are further names of it and stand where it stands. The flags here choose a
mode, its parts or their settings, and :func:`apply` says which.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specdecodes import assets
from specdecodes.cli.arguments import parse_settings
from specdecodes.plugin import Mode, registry, unknown
from specdecodes.plugins.trees.growmap_file import SUFFIXES

logger = logging.getLogger("specdecodes")

TITLE = "flags of the programs that this one follows (docs/seeds.md)"

PLAIN = "naive"
TOKEN_MATCH = "token-match"


@dataclass(frozen=True)
class Strategy:
    """What ``--strategy`` means.

    Attributes:
        mode: which of ours, for one drafted sequence (``width`` and ``tree`` say otherwise).
        propose: the drafter, where that is no draft model.
        tree: the one shape that it has. beams: whether it drafts by beam search.
    """

    mode: str
    propose: str | None = None
    tree: str | None = None
    beams: bool = False

    @property
    def branches(self) -> bool:
        """Whether it drafts a tree by itself."""
        return self.tree is not None or self.beams


STRATEGIES = {
    "png": Strategy("ngram", propose="ngram"),
    "jacobi": Strategy("sd", propose="jacobi"),
    "mamba": Strategy("sd"),
    "llama": Strategy("sd"),
    "MIL": Strategy("sd"),
    "mamba-bs": Strategy("beam", beams=True),
    "MIL-bs": Strategy("beam", beams=True),
    "MIL-st": Strategy("stree", tree="3,2.1,2.1,3"),
}
"""STree's strategies. Without ``--strategy`` it is the first, as there."""

MIL_ST = (4, 3)
"""``--npad`` and ``--draft_num_beam`` of the only tree that MIL-st has."""


@dataclass(frozen=True)
class Setting:
    """A flag that is a tree builder's setting: its names, and the mode where nobody names one."""

    keys: tuple[str, ...]
    mode: str


SETTINGS = {
    "--K": Setting(("depth",), "sd"),
    "--growmap": Setting(("tree",), "sequoia"),
    "--topk-len": Setting(("topk", "width"), "dynamic"),
    "--max-depth": Setting(("depth",), "dynamic"),
    "--max-verify-tokens": Setting(("max_nodes",), "dynamic"),
}

SHAPE = ("--spec_Ngram", "--use_tree_decoding", "--npad", "--ndraft", "--draft_num_beam", "--strategy")
"""STree's flags that together choose a mode."""

STATE = ("--activation_replay", "--jit_state_copy", "--use_Nstep_kernel")
"""STree's flags that choose how states are committed."""


def add_seed_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what :func:`apply` reads; returns the group."""
    group = parser.add_argument_group(TITLE)
    add = group.add_argument
    add("--K", type=int, metavar="N", help="drafted tokens per step: depth, in a mode that drafts a chain (alone: sd)")
    add("--growmap", metavar="FILE", help="the tree of a growmap file (alone: mode sequoia)")
    add("--topk-len", type=int, metavar="N", help="topk and width of a dynamic tree (alone: mode dynamic)")
    add("--max-depth", type=int, metavar="N", help="its depth (alone: mode dynamic)")
    add("--max-verify-tokens", type=int, metavar="N", help="its max_nodes, root included (alone: mode dynamic)")
    add("--spec_Ngram", action="store_true", help="speculate; the flags below alone mean plain decoding")
    add("--strategy", metavar="NAME", help=f"how to draft: {', '.join(STRATEGIES)} (default: {next(iter(STRATEGIES))})")
    add("--npad", type=int, metavar="N", help="drafted tokens in a row")
    add("--ndraft", type=int, metavar="N", help="chains side by side, all from the root (default: 1)")
    add("--draft_num_beam", type=int, metavar="N", help="beams of MIL-bs and mamba-bs; 3 with MIL-st")
    add("--use_tree_decoding", action="store_true", help="goes with MIL-st, MIL-bs, mamba-bs, which draft trees")
    add("--activation_replay", action="store_true", help="commit states by replay, the default")
    add("--jit_state_copy", action="store_true", help="nothing to turn on: states always move where they are")
    add("--use_Nstep_kernel", action="store_true", help="nothing to turn on: a chain is always scored in one pass")
    return group


def add_range_arguments(group: argparse._ArgumentGroup) -> None:
    """Add ``start`` and ``end``: which texts or questions of a data set."""
    group.add_argument("--start", type=int, default=0, metavar="N", help="leave out the first N (default: 0)")
    group.add_argument(
        "--end", type=int, metavar="N", help="stop before number N, counted from 0 (default: at the end)"
    )


def add_protocol_argument(group: argparse._ArgumentGroup) -> None:
    """Add ``Mode``, which :func:`apply_protocol` reads."""
    group.add_argument(
        "--Mode",
        choices=("greedy", "baseline", "benchmark"),
        help="greedy, benchmark: the draft's best tokens, verified by token matching; baseline: plain decoding alone",
    )


def apply(args: argparse.Namespace, named: Sequence[str]) -> tuple[str, ...]:
    """Put the parts, settings and draft that the flags ask for into ``args``.

    Args:
        args: with what :func:`add_seed_arguments` and ``add_model_arguments`` added.
        named: the modes that the user has named.

    Returns:
        The modes to run; none where nobody has asked for any.

    Raises:
        ValueError: flags that contradict each other or a named mode, an unknown strategy, a number out of range.
    """
    shape, state, settings = (_given(args, flags) for flags in (SHAPE, STATE, SETTINGS))
    for flag, least in (("--npad", 1), ("--ndraft", 1), ("--draft_num_beam", 0)):
        if (number := _value(args, flag)) is not None and number < least:
            raise ValueError(f"{flag}: expected at least {least}, got {number}")
    if shape and (named or settings or args.build_tree):
        other = f"--mode {','.join(named)}" if named else settings[0] if settings else f"--build-tree {args.build_tree}"
        raise ValueError(
            f"{shape[0]}: expected no other choice of the mode beside it, got {other}; leave one of them out"
        )
    modes = tuple(named)
    if settings:
        modes = _with_settings(args, modes, settings)
    elif args.spec_Ngram:
        modes = (_with_strategy(args),)
    elif (shape or state) and not named:
        logger.warning("%s without --spec_Ngram: plain decoding, as in STree", ", ".join([*shape, *state]))
        modes = (PLAIN,)
    if args.activation_replay and set(modes) != {PLAIN}:
        _set_part(args, "commit_state", "replay", "--activation_replay")
    return modes


def apply_protocol(args: argparse.Namespace, named: Sequence[str]) -> tuple[str, ...]:
    """What :func:`apply` does, with ``--Mode``: plain decoding alone, or drafts by score, verified by token matching.

    Raises:
        ValueError: see :func:`apply`; modes of which some cannot match tokens.
    """
    if args.Mode != "baseline":
        modes = apply(args, named)
        if args.Mode is not None:
            _match_tokens(args, modes or ("stree",))
        return modes
    shape = _given(args, SHAPE)
    if shape or set(named) - {PLAIN}:
        other = shape[0] if shape else f"--mode {','.join(named)}"
        raise ValueError(
            f"--Mode: expected another than baseline, which is plain decoding, beside {other}, got baseline"
        )
    return (PLAIN,)


def _match_tokens(args: argparse.Namespace, modes: Sequence[str]) -> None:
    can = {mode: TOKEN_MATCH in _mode(mode).sampling for mode in modes if mode != PLAIN}
    if any(can.values()):
        if not all(can.values()):
            cannot = ", ".join(mode for mode, it_can in can.items() if not it_can)
            raise ValueError(
                f"--Mode: expected modes that verify by token matching, got {cannot} among them; run it alone"
            )
        if args.verify is None:
            args.verify = TOKEN_MATCH


def _with_settings(args: argparse.Namespace, named: tuple[str, ...], flags: Sequence[str]) -> tuple[str, ...]:
    """The modes, of which at least one takes what each of ``flags`` sets."""
    wanted = {SETTINGS[flag].mode: flag for flag in flags}
    if not named and len(wanted) > 1:
        (first, flag), (second, other) = list(wanted.items())[:2]
        raise ValueError(f"{flag}: expected --mode beside it and {other}, got none; {first} or {second}?")
    modes = named or tuple(wanted)
    builders = {mode: registry().get("tree", args.build_tree or _mode(mode).build_tree) for mode in modes}
    for flag in flags:
        value = _value(args, flag)
        if flag == "--growmap" and not value.endswith(SUFFIXES):
            raise ValueError(f"--growmap: expected the path of a growmap ({', '.join(SUFFIXES)}), got {value!r}")
        for key in SETTINGS[flag].keys:
            if not any(key in builder.settings for builder in builders.values()):
                mode, builder = next(iter(builders.items()))
                raise ValueError(
                    f"{flag}: expected a mode whose tree takes {key!r}, such as {SETTINGS[flag].mode}, got {mode!r} "
                    f"with the tree builder {builder.name!r}; use --set with its settings "
                    f"({', '.join(builder.settings) or 'none'})"
                )
            _set(args, flag, key, value)
    return modes


def _with_strategy(args: argparse.Namespace) -> str:
    """The mode that STree's flags stand for."""
    name = args.strategy or next(iter(STRATEGIES))
    if name not in STRATEGIES:
        raise ValueError(f"--strategy: {unknown('strategy', name, STRATEGIES)}")
    strategy = STRATEGIES[name]
    _check_shape(args, name, strategy)
    if strategy.propose is None and args.target == "embedded" and args.draft is None and args.propose is None:
        args.draft = assets.DRAFTS[0]  # the strategies are named after draft models
    if strategy.tree is not None:
        _set(args, "--strategy", "tree", strategy.tree)
        return strategy.mode
    if (args.ndraft or 1) > 1:
        if strategy.propose is not None:
            _set_part(args, "propose", strategy.propose, "--strategy")
        if args.npad is None:
            raise ValueError("--ndraft: expected --npad, the length of the chains, beside it, got none")
        _set_part(args, "build_tree", "static", "--ndraft")
        _set(args, "--ndraft", "tree", ",".join([str(args.ndraft), *[".".join("1" * args.ndraft)] * (args.npad - 1)]))
        return "stree"
    if strategy.propose is not None:
        _set_part(args, "propose", strategy.propose, "--strategy")
    if args.npad is not None:
        _set(args, "--npad", "depth", args.npad)
    if strategy.beams and args.draft_num_beam:
        _set(args, "--draft_num_beam", "width", args.draft_num_beam)
    return strategy.mode


def _check_shape(args: argparse.Namespace, name: str, strategy: Strategy) -> None:
    """Refuse what STree's strategy ``name`` cannot draft."""
    if strategy.branches and not args.use_tree_decoding:
        raise ValueError(
            f"--strategy {name}: expected --use_tree_decoding beside it, since it drafts a tree, got none; "
            "add it, or choose a chain such as --strategy MIL"
        )
    if strategy.branches and (args.ndraft or 1) > 1:
        raise ValueError(f"--ndraft: expected 1 with --strategy {name}, which drafts one tree, got {args.ndraft}")
    if not strategy.branches and (args.draft_num_beam or 1) > 1:
        trees = ", ".join(other for other, its in STRATEGIES.items() if its.branches)
        raise ValueError(
            f"--draft_num_beam: expected none with --strategy {name}, which has no beams, got {args.draft_num_beam}; "
            f"it goes with {trees}"
        )
    asked = (args.npad or MIL_ST[0], args.draft_num_beam or MIL_ST[1])
    if strategy.tree is not None and asked != MIL_ST:
        raise ValueError(
            f"--strategy {name}: expected --npad {MIL_ST[0]} and --draft_num_beam {MIL_ST[1]}, its only tree, "
            f"got {asked[0]} and {asked[1]}; spell another tree out: --mode {strategy.mode} --set tree={strategy.tree}"
        )


def _mode(name: str) -> Mode:
    mode = registry().get("mode", name).factory
    assert isinstance(mode, Mode)  # the registry takes nothing else as a mode
    return mode


def _value(args: argparse.Namespace, flag: str) -> Any:  # noqa: ANN401 - a number or a name
    return getattr(args, flag.lstrip("-").replace("-", "_"))


def _given(args: argparse.Namespace, flags: Iterable[str]) -> list[str]:
    return [flag for flag in flags if _value(args, flag) is not None and _value(args, flag) is not False]


def _set(args: argparse.Namespace, flag: str, key: str, value: object) -> None:
    """Add a setting that nothing else has set."""
    for name, given in parse_settings(args.set).items():
        if name.rpartition(".")[2] == key:
            raise ValueError(
                f"{flag}: expected {key!r} to be set once, got {name}={given} as well; leave one of them out"
            )
    args.set = [*args.set, f"{key}={value}"]


def _set_part(args: argparse.Namespace, part: str, name: str, flag: str) -> None:
    """Choose a part of the mode for which nobody has named another one."""
    given = getattr(args, part)
    if given not in (None, name):
        raise ValueError(
            f"{flag}: expected --{part.replace('_', '-')} {name} beside it, or none, got {given}; leave one of them out"
        )
    setattr(args, part, name)
