"""The built-in modes: which component fills which hook."""

from __future__ import annotations

from specdecodes.plugin import Mode
from specdecodes.tuning.auto import decide

MODES: dict[str, tuple[Mode, tuple[str, ...]]] = {
    "naive": (
        Mode("none", "root", "greedy", ("token-match",), help="Plain decoding: one token per step."),
        (),
    ),
    "sd": (
        Mode("model", "chain", "greedy", ("rejection", "token-match"), help="Vanilla speculative decoding: a chain."),
        ("sd-classic",),
    ),
    "stree": (
        Mode(
            "model",
            "static",
            "greedy",
            ("without-replacement", "token-match"),
            help="STree: a static tree, scored in one tree scan, committed by replay.",
        ),
        (),
    ),
    "ngram": (
        Mode(
            "ngram",
            "chain",
            "greedy",
            ("token-match",),
            settings={"depth": 5},
            help="A chain from suffix matches in prompt and output; no draft model.",
        ),
        (),
    ),
    "commonsense": (
        Mode(
            "model",
            "static",
            "commonsense",
            ("commonsense",),
            help="Lossy: a static tree; common followers of a token are accepted beside the target's choice.",
        ),
        (),
    ),
    "suffix": (
        Mode(
            "suffix",
            "chain",
            "greedy",
            ("token-match",),
            settings={"depth": 4},
            help="A chain from a suffix automaton over prompt, output and an optional corpus; no draft model.",
        ),
        (),
    ),
    "recycling": (
        Mode(
            "token-recycling",
            "static",
            "greedy",
            ("token-match",),
            settings={"tree": "3,2,1,1", "warm": True},
            help="Token recycling: a tree from what the target ranked best before; no draft model.",
        ),
        (),
    ),
    "dynamic": (
        Mode(
            "model",
            "best-first",
            "greedy",
            ("token-match",),
            help="A new tree at every step: the draft's most probable paths (EAGLE-2, OPT-Tree).",
        ),
        (),
    ),
    "sequoia": (
        Mode(
            "model",
            "growmap",
            "greedy",
            ("without-replacement", "token-match"),
            help="Sequoia: a static tree, from a growmap file or spelled out; drawn without replacement.",
        ),
        (),
    ),
    "beam": (
        Mode("model", "beam", "greedy", ("token-match",), help="STree's beam drafts: all beams of all levels."),
        (),
    ),
    "auto": (
        Mode(
            "model",
            "static",
            "greedy",
            ("token-match",),
            help="What 'specdecodes tune' found fastest; plain decoding while that is faster.",
            decide=decide,
        ),
        (),
    ),
}
