"""What a step costs beside the models: ``python -m specdecodes.benchmark.overhead``.

Four things are measured. Hooks: a step's calls through the facade against direct calls of the same trivial methods.
Host: everything in a step of ``stree`` but the models' forwards and the commit - tree building, placing, processing,
the greedy rule, clipping, emitting - with the forwards replaced by stubs that return prepared logits. With a draft
model this includes what surrounds its own forwards (positions, masks, slots); that grows with them and has no limit.
Captured: what a step of CUDA graphs leaves to the host, with graphs whose replay does nothing. Drafters: what an index
takes for all its answers of a step (taking in what was emitted, candidates, slots), and what it takes to learn from the
scores afterwards.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.benchmark.overhead_captured import MODES, captured_overhead
from specdecodes.benchmark.overhead_index import INDICES, VOCAB, drafter_overhead
from specdecodes.benchmark.overhead_index import LIMIT_US as DRAFTER_LIMIT_US
from specdecodes.benchmark.provenance import write_measurement
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.core.decoder import Decoder
from specdecodes.core.load import load
from specdecodes.core.loop import steps
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Proposal, Tree, Verdict
from specdecodes.hookspecs import hookimpl
from specdecodes.models.slots import SlotRunner
from specdecodes.models.target import Target
from specdecodes.plugin import Hooks
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.plugins.observers.timing import Timing
from specdecodes.testing import toy_model

PROG = "python -m specdecodes.benchmark.overhead"
HOOKS_LIMIT_US = 10.0
"""Hook calls of one step."""
HOST_LIMIT_MS = 0.3
"""Everything outside forwards and commit, at 13 nodes and a vocabulary of 4,096."""
LIMITED = ("literal", "ngram")
"""The drafters to whose steps the limit applies: none to speak of, and the default one."""

TREE = "3,2.1,2.1,3"
BLOCK = 200
"""Hook steps per clock reading."""


class Trivial:
    """Implements every hook of a step by returning its argument's stand-in."""

    def __init__(self, proposal: object, tree: object, verdict: object) -> None:
        self.answers = (proposal, tree, verdict)

    @hookimpl
    def propose(self, state: DecodeState) -> Any:  # noqa: ANN401
        """Constant."""
        return self.answers[0]

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Any:  # noqa: ANN401
        """Constant."""
        return self.answers[1]

    @hookimpl
    def verify(self, state: DecodeState, tree: Tree) -> Any:  # noqa: ANN401
        """Constant."""
        return self.answers[2]

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Nothing."""

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Nothing."""


def hook_overhead(repeats: int = 300) -> dict[str, float]:
    """Microseconds per step that the facade and pluggy add, without and with the timing observer: the least of all."""
    trivial = Trivial(object(), object(), object())
    plain, timed = (Hooks({"all": trivial, **extra}) for extra in ({}, {"timing": Timing()}))
    state: Any = _Extras()

    def run(hooks: Any) -> Callable[[], None]:  # noqa: ANN401 - a facade or the component itself
        def step() -> None:
            proposal = hooks.propose(state)
            tree = hooks.build_tree(state, proposal)
            verdict = hooks.verify(state, tree)
            hooks.commit_state(state, tree, verdict)
            hooks.step_finished(state, tree, verdict)

        return step

    direct, hooked, watched = (_least(run(hooks), BLOCK, repeats) for hooks in (trivial, plain, timed))
    return {"hooks_us": (hooked - direct) * 1e6, "hooks_and_timing_us": (watched - direct) * 1e6}


class _Extras:
    """The one field of a state that the timing observer uses."""

    def __init__(self) -> None:
        self.extras: dict[str, Any] = {}


def host_overhead(draft: str, repeats: int = 300) -> dict[str, float]:
    """Milliseconds per step outside forwards and commit, by phase, each the least of ``repeats`` steps.

    Args:
        draft: ``literal`` (prepared candidates: the core, the builder and the rule alone), ``ngram`` or ``model``.
    """
    decoder = _decoder(draft)
    seconds: list[float] = []
    phases: dict[str, list[float]] = {}
    with torch.inference_mode():
        state = _state(decoder)
        assert not isinstance(decoder.greedy, str)
        decoder.greedy.hooks.generation_started(state)
        loop = steps(decoder.greedy.hooks, state)
        while len(seconds) < repeats:
            before = dict(state.extras.get("timings", {}))
            began = time.perf_counter()
            next(loop)
            seconds.append(time.perf_counter() - began)
            for phase, total in state.extras["timings"].items():
                phases.setdefault(phase, []).append(total - before.get(phase, 0.0))
    ordered = sorted(seconds)
    found = {"host_ms": ordered[0] * 1e3, "host_median_ms": ordered[len(ordered) // 2] * 1e3}
    return found | {f"{phase}_ms": min(values) * 1e3 for phase, values in phases.items()}


def _decoder(draft: str) -> Decoder:
    """``stree`` on a toy hybrid with the embedded vocabulary, forwards and commits replaced."""
    model = _wide()
    if draft == "literal":
        decoder = load(model, mode="stree", propose=_Prepared(), tree=TREE)
    else:
        decoder = load(model, "ngram" if draft == "ngram" else model, "stree", tree=TREE)
    decoder.target.prefill(_prompt())
    _stub(decoder.target)
    assert not isinstance(decoder.greedy, str)
    for plugin in decoder.greedy.hooks.manager.get_plugins():
        if isinstance(plugin, ModelDrafter):
            plugin.runner.prefill(_prompt())
            _stub(plugin.runner)
    return decoder


def _wide() -> PreTrainedModel:
    return toy_model("bamba", vocab_size=VOCAB)


def _prompt() -> Tensor:
    # Runs repeat, so that an index over the prompt has something to find.
    return torch.arange(64).remainder(24)[None] + 5


def _state(decoder: Decoder) -> DecodeState:
    prompt = _prompt()
    params = SamplingParams(max_new_tokens=10**9, ignore_eos=True)
    state = DecodeState(decoder.target, prompt, params)
    state.first(torch.nn.functional.one_hot(torch.tensor([5]), VOCAB).float())
    return state


def _stub(target: Target) -> None:
    """Forwards of ``target`` give prepared logits at once, commits move nothing."""
    prepared = torch.randn(1, 64, VOCAB, generator=torch.Generator().manual_seed(0))
    kept: dict[int, Any] = {}
    forward = target._tree_logits

    def tree_logits(current: Any, ids: Tensor, *where: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        count = ids.shape[1]
        if count not in kept:
            kept[count] = forward(current, ids, *where)[1]
        return prepared[:, :count], kept[count]

    def commit(path: Tensor, nodes: Sequence[int]) -> None:
        target._scored = target._in_flight = None

    target._tree_logits = cast("Any", tree_logits)
    target.commit = cast("Any", commit)  # type: ignore[method-assign]
    if isinstance(target, SlotRunner):
        target._slot_logits = lambda current, ids, *where: prepared[:, : ids.shape[1]]
        target.move = lambda slots: None  # type: ignore[method-assign]


class _Prepared:
    """A drafter that has its answers ready."""

    has_probs = True
    marginals: Tensor | None = None

    def __init__(self) -> None:
        self.rows = torch.randn(1, 64, VOCAB, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
        self.best = self.rows.topk(8, dim=-1)
        self.slots = torch.arange(64)[None]

    @hookimpl
    def propose(self, state: DecodeState) -> _Prepared:
        """Itself."""
        self.used = 1
        return self

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :class:`Proposal`."""
        logq, tokens = (each[:, : slots.shape[1], :k] for each in self.best)
        return tokens, logq

    def logq(self, slots: Tensor) -> Tensor:
        """See :class:`Proposal`."""
        return self.rows[:, : slots.shape[1]]

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """See :class:`Proposal`."""
        first, self.used = self.used, self.used + slots.shape[1]
        return self.slots[:, first : self.used]


def _least(step: Callable[[], None], block: int, repeats: int) -> float:
    """Seconds per call: the least of ``repeats`` blocks, since whatever disturbs only adds."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(block):
            step()
        best = min(best, time.perf_counter() - began)
    return best / block


def measure(repeats: int = 300) -> dict[str, Any]:
    """All numbers, with the limits that they are compared with."""
    hooks = hook_overhead(repeats)
    host = {draft: host_overhead(draft, repeats) for draft in (*LIMITED, "model")}
    drafters = {name: drafter_overhead(name, max(repeats // 10, 1)) for name in INDICES}
    limits = {"hooks_us": HOOKS_LIMIT_US, "host_ms": HOST_LIMIT_MS, "drafter_us": DRAFTER_LIMIT_US}
    captured = {mode: captured_overhead(mode, repeats) for mode in MODES}
    return {"limits": limits, "hooks": hooks, "host": host, "captured": captured, "drafters": drafters}


def main(argv: list[str] | None = None) -> int:
    """Print both figures; 1 if one is above its limit, 2 for bad input."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: list[str] | None) -> int:
    parser = OneLineParser(prog=PROG, description=__doc__)
    parser.add_argument(
        "--repeats", type=int, default=300, help="measurements, of which the least counts (default: 300)"
    )
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: its own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers, versions and hardware to FILE")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, got {options.repeats}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = measure(options.repeats)
    hooks = found["hooks"]
    print(f"hooks: {hooks['hooks_us']:.1f} us a step (limit {HOOKS_LIMIT_US:g})")
    print(f"hooks and the timing observer: {hooks['hooks_and_timing_us']:.1f} us a step")
    for draft, host in found["host"].items():
        phases = ", ".join(
            f"{name.removesuffix('_ms')} {value:.3f}" for name, value in host.items() if "host" not in name
        )
        median = host["host_median_ms"]
        limit = f" (limit {HOST_LIMIT_MS:g})" if draft in LIMITED else ""
        print(f"host, draft {draft}: {host['host_ms']:.3f} ms a step{limit}, median {median:.3f}")
        print(f"  of that: {phases}")
    for mode, of_mode in found["captured"].items():
        print(
            f"captured, mode {mode}: {of_mode['graphs']:.1f} graphs and {of_mode['launches']:.1f} launches a step, "
            f"{of_mode['host_us']:.0f} us on the host, {of_mode['waits_us']:.0f} from verdict to the next model"
        )
    for name, times in found["drafters"].items():
        learns = f", {times['learns_us']:.1f} to learn from the scores" if times["learns_us"] > 2 else ""
        answers = f"{times['answers_us']:.1f} us a step (limit {DRAFTER_LIMIT_US:g})"
        print(f"drafter {name}: {answers}, {times['tensors_us']:.1f} asked in tensors{learns}")
    if options.json is not None:
        write_measurement(options.json, "specdecodes.benchmark.overhead", argv, found)
    within = hooks["hooks_us"] <= HOOKS_LIMIT_US and all(
        found["host"][draft]["host_ms"] <= HOST_LIMIT_MS for draft in LIMITED
    )
    within = within and all(times["answers_us"] <= DRAFTER_LIMIT_US for times in found["drafters"].values())
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
