"""The contract of ``propose`` and of the proposal that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Proposal, Topology, Tree, Verdict
from specdecodes.plugin import Context, Hooks
from specdecodes.testing.contract import declares, during, expect, hooked, is_factory, made
from specdecodes.testing.toys import toy_context, toy_prompt

PARENTS = (-1, 0, 0, 0, 1, 1, 2, 5)
"""Nodes 1, 2 and 5 are expanded, the others are leaves that the drafter has not run when they are accepted."""

ASKED = {1: (1, 0), 2: (1, 1), 5: (2, 0)}
"""Expanded node: (which question of ``_Run.ask`` is about it, its place among the slots asked about)."""

STEPS = ((0,), (0, 1, 5, 7), (0,), (0, 2), (0, 3), (0, 1, 5), (0, 2, 6), (0, 1, 4), (0,), (0,))
"""What is accepted, step by step: nothing, everything, second-best branches, nodes expanded and not."""

TOLERANCE = 1e-3
"""Of log-probabilities (float32) of a drafter that came by one history in different ways."""

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampling": {"temperature": 0.8, "seed": 1},
    "sampling cut to 2 tokens": {"temperature": 1.0, "top_k": 2, "seed": 1},
}


def check_drafter(drafter: Any, *, context: Context | None = None, **settings: Any) -> None:  # noqa: ANN401
    """Check a drafter, or a factory of drafters, against the contract of ``propose`` and of ``Proposal``.

    Greedy and sampling, over several steps, among them one that accepts nothing: shapes, dtypes, order; -1 with -inf
    where candidates are missing; ``logq`` normalised and cut as the target's logits are; slots that can be expanded in
    any order and asked again; the same proposals in the same situation, and nothing left from an earlier generation.
    With ``has_probs``, the distributions after several steps equal those of a new generation over the same tokens.

    Args:
        drafter: a component, or a factory called with ``context`` and ``settings``.
        context: default: a toy context whose ``draft`` is a toy model. A component that was made for another target
            needs the context that it was made with.

    Raises:
        AssertionError: names the broken clause.
    """
    context = context or toy_context()

    def fresh() -> Any:  # noqa: ANN401
        return made(drafter, context, settings) if is_factory(drafter) else drafter

    checked = made(drafter, context, settings)
    declares(checked, "drafter", has_probs=bool)
    name = f"drafter {type(checked).__name__}"
    for kind, sampling in SETTINGS.items():
        with during(f"{name}, {kind}"), torch.random.fork_rng(devices=[]):
            params = SamplingParams(max_new_tokens=256, **sampling)
            run = _Run(checked, name, context, params)
            seen = run.generation(toy_prompt(9, context.target.vocab_size))
            run.generation(toy_prompt(1, context.target.vocab_size))
            torch.manual_seed(1)
            again = run.generation(toy_prompt(9, context.target.vocab_size))
            for step, (first, second) in enumerate(zip(seen, again, strict=True)):
                expect(
                    first.same(second, 0.0),
                    f"{name}: the same prompt and the same steps gave other proposals in step {step + 1}; a drafter "
                    "draws nothing and forgets the last generation",
                )
            if checked.has_probs and not params.top_k:  # a cut is not continuous
                other = _Run(fresh(), name, context, params)
                for step, record in enumerate(seen):
                    _check_history(other, record, step)
                _check_root(other, seen[0])
                if not getattr(checked, "has_marginals", False):
                    _check_paths(other, seen[1])


def _check_history(run: _Run, record: _Record, step: int) -> None:
    """The record of a later step against a new generation over the same tokens."""
    before = f"after step {step}, which accepted {list(STEPS[step - 1])}" if step else "in the first step"
    state = run.start(torch.tensor([record.history[:-1]]), record.history[-1])
    with torch.inference_mode():
        error = record.distance(run.ask(state, run.hooks.propose(state), record.tokens))
    expect(
        error <= TOLERANCE,
        f"{run.name}: {before}, its log-probabilities are {error:.2g} off those of a new generation over the same "
        f"{len(record.history)} tokens; it must be conditioned on all committed tokens and the root",
    )


def _check_root(run: _Run, record: _Record) -> None:
    """Another root must make a difference."""
    state = run.start(torch.tensor([record.history[:-1]]), record.history[-1] + 1)
    with torch.inference_mode():
        error = record.distance(run.ask(state, run.hooks.propose(state), record.tokens))
    expect(
        error > TOLERANCE,
        f"{run.name}: another last committed token (the root) makes no difference to its log-probabilities",
    )


def _check_paths(run: _Run, record: _Record) -> None:
    """A slot's distribution against that at the root of a new generation over history and path."""
    for node, (question, place) in ASKED.items():
        path = [record.tokens[i] for i in (PARENTS[node], node) if i > 0]
        history = [*record.history, *path]
        state = run.start(torch.tensor([history[:-1]]), history[-1])
        with torch.inference_mode():
            root = run.hooks.propose(state).logq(torch.zeros_like(state.root))[0, 0]
        _, _, rows = record.answers[question]
        assert rows is not None
        error = distance(rows[0, place], root)
        expect(
            error <= TOLERANCE,
            f"{run.name}: at an expanded slot, {len(path)} below the root, its log-probabilities are {error:.2g} off "
            "those after the same tokens committed; expand runs a token as the child of its slot",
        )


@dataclass
class _Record:
    """What a proposal answered: per question, candidates, their log-probabilities and full rows (None without)."""

    history: list[int]
    tokens: list[int] = field(default_factory=list)
    answers: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)

    def distance(self, other: _Record) -> float:
        """Largest difference of log-probabilities; infinite where one is impossible and the other is not."""
        worst = 0.0
        for (_, best, rows), (_, other_best, other_rows) in zip(self.answers, other.answers, strict=True):
            ours, theirs = (best, other_best) if rows is None or other_rows is None else (rows, other_rows)
            worst = max(worst, distance(ours, theirs))
        return worst

    def same(self, other: _Record, tolerance: float) -> bool:
        """Whether candidates and log-probabilities agree."""
        tokens = all(torch.equal(a[0], b[0]) for a, b in zip(self.answers, other.answers, strict=True))
        return tokens and self.history == other.history and self.distance(other) <= tolerance


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference; equal infinities are equal."""
    return float(torch.where(ours == theirs, 0.0, (ours - theirs).abs()).max())


class _Run:
    """Drives the drafter through scripted steps, on a real target."""

    def __init__(self, drafter: Any, name: str, context: Context, params: SamplingParams) -> None:  # noqa: ANN401
        self.drafter = drafter
        self.name = name
        self.target = context.target
        self.params = params
        self.hooks: Hooks = hooked("propose", drafter)

    def start(self, prompt: Tensor, root: int) -> DecodeState:
        """A generation whose first token is ``root``."""
        state = DecodeState(self.target, prompt, self.params)
        with torch.inference_mode():
            self.target.prefill(prompt)
            certain = torch.full((1, self.target.vocab_size), -torch.inf)
            certain[0, root] = 0.0
            state.first(certain)
            self.hooks.generation_started(state)
        return state

    def generation(self, prompt: Tensor) -> list[_Record]:
        """All of ``STEPS``; returns what was answered in each."""
        state = self.start(prompt, 5)
        records = []
        with torch.inference_mode():
            for step, path in enumerate(STEPS):
                before = ([list(row) for row in state.history], state.root.clone())
                proposal = self.hooks.propose(state)
                expect(
                    isinstance(proposal, Proposal),
                    f"{self.name}: propose returned a {type(proposal).__name__} without the members of Proposal "
                    "(marginals, topk, logq, expand)",
                )
                record = self.ask(state, proposal)
                records.append(record)
                self._accept(state, record, path, step)
                unchanged = [row[: len(old)] for row, old in zip(state.history, before[0], strict=True)] == before[0]
                expect(unchanged, f"{self.name}: changed state.history")
        return records

    def ask(self, state: DecodeState, proposal: Proposal, tokens: Sequence[int] | None = None) -> _Record:
        """Ask and expand as a builder of the tree ``PARENTS`` does; ``tokens``: of another record, node by node."""
        record = _Record(list(state.history[0]), slots=[0] + [-1] * (len(PARENTS) - 1))
        device = state.root.device
        chosen: list[int] = [int(state.root)] + [-1] * (len(PARENTS) - 1)

        def question(slots: list[int], k: int) -> list[list[int]]:
            record.answers.append(self._answer(proposal, torch.tensor([slots], device=device), k))
            best: list[list[int]] = record.answers[-1][0][0].tolist()
            return best

        def keep(nodes: Sequence[int], best: Sequence[int]) -> None:
            for node, token in zip(nodes, best, strict=True):
                # A builder runs tokens that were no candidates too: drawn ones, and stand-ins for missing ones.
                chosen[node] = tokens[node] if tokens is not None else token if token >= 0 else 3 + node

        def expand(nodes: list[int]) -> None:
            above = torch.tensor([[record.slots[PARENTS[node]] for node in nodes]], device=device)
            below = torch.tensor([[chosen[node] for node in nodes]], device=device)
            for node, slot in zip(nodes, self._expand(proposal, above, below), strict=True):
                record.slots[node] = slot

        keep((1, 2, 3), question([0], 3)[0])
        expand([1, 2])
        one, two = question([record.slots[1], record.slots[2]], 2)
        keep((4, 5), one)
        keep((6,), two[:1])
        expand([5])
        keep((7,), question([record.slots[5]], 1)[0])
        question([record.slots[2], 0], 3)
        record.tokens = chosen
        first, last = record.answers[0], record.answers[-1]
        expect(
            torch.equal(first[0][0, 0], last[0][0, 1]),
            f"{self.name}: the candidates at the root changed when other slots were expanded",
        )
        return record

    def _answer(self, proposal: Proposal, slots: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
        name, size = self.name, self.target.vocab_size
        tokens, best = proposal.topk(slots, k)
        shape = (*slots.shape, k)
        _is(tokens, f"{name}: topk: tokens", shape, (torch.long,), slots.device)
        _is(best, f"{name}: topk: log-probabilities", shape, (torch.float32, torch.float64), slots.device)
        expect(bool((best <= TOLERANCE).all()), f"{name}: topk: expected log-probabilities, got {best.max():.3g}")
        expect(
            int(tokens.min()) >= -1 and int(tokens.max()) < size,
            f"{name}: topk: expected tokens of the target's vocabulary (0 to {size - 1}) or -1, got {tokens.tolist()}",
        )
        missing = tokens < 0
        expect(
            bool((best[missing] == -torch.inf).all()),
            f"{name}: topk: a missing candidate (-1) has log-probability -inf",
        )
        expect(
            bool((best[..., 1:] <= best[..., :-1]).all()), f"{name}: topk: expected the best first, got {best.tolist()}"
        )
        for row in tokens.flatten(0, 1).tolist():
            found = [token for token in row if token >= 0]
            expect(row[: len(found)] == found, f"{name}: topk: missing candidates (-1) come last, got {row}")
            expect(len(set(found)) == len(found), f"{name}: topk: the same candidate twice: {row}")
        if not self.drafter.has_probs:
            return tokens, best, None
        rows = proposal.logq(slots)
        _is(rows, f"{name}: logq", (*slots.shape, size), (torch.float32, torch.float64), slots.device)
        total = rows.logsumexp(-1)
        expect(
            bool(total.abs().max() <= TOLERANCE),  # nan must not pass
            f"{name}: logq: expected normalised log-probabilities, got exponentials that sum to {total.exp().tolist()}",
        )
        listed = rows.gather(-1, tokens.clamp(min=0))
        fits = (listed - best).abs().nan_to_num(0.0) <= TOLERANCE
        expect(bool((fits | missing).all()), f"{name}: topk and logq disagree about the candidates' log-probabilities")
        expect(
            bool(((rows.topk(k)[0] - best).abs().nan_to_num(0.0) <= TOLERANCE).all()),
            f"{name}: topk: leaves out better candidates than it gives (compared with logq)",
        )
        if self.params.top_k:
            support = int((rows > -torch.inf).sum(-1).max())
            expect(
                support <= self.params.top_k,
                f"{name}: logq: top_k = {self.params.top_k} leaves that many tokens, got {support}; draft logits go "
                "through state.pipeline",
            )
        return tokens, best, rows

    def _expand(self, proposal: Proposal, slots: Tensor, tokens: Tensor) -> list[int]:
        given = slots.clone(), tokens.clone()
        new = proposal.expand(slots, tokens)
        _is(new, f"{self.name}: expand: slots", tuple(slots.shape), (torch.long,), slots.device)
        expect(int(new.min()) >= 0, f"{self.name}: expand: expected slots of 0 or more, got {new.tolist()}")
        unchanged = torch.equal(slots, given[0]) and torch.equal(tokens, given[1])
        expect(unchanged, f"{self.name}: expand changed its arguments")
        found: list[int] = new[0].tolist()
        return found

    def _accept(self, state: DecodeState, record: _Record, path: Sequence[int], step: int) -> None:
        device = state.root.device
        topology = Topology(torch.tensor([PARENTS], device=device))
        slots = torch.tensor([record.slots], device=device)
        tree = Tree(torch.tensor([record.tokens], device=device), topology.parents, slots=slots, topology=topology)
        state.process(self.target.score(tree), tree)
        padded = torch.tensor([[*path, *([-1] * (4 - len(path)))]], device=device)
        bonus = torch.tensor([3 + step], device=device)
        verdict = state.clip(Verdict(padded, torch.tensor([len(path) - 1], device=device), bonus), tree)
        self.target.commit(verdict.path)
        self.hooks.commit_state(state, tree, verdict)
        state.advance(verdict)


def _is(value: Tensor, what: str, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device) -> None:
    expect(isinstance(value, Tensor), f"{what}: expected a tensor, got {type(value).__name__}")
    expect(tuple(value.shape) == tuple(shape), f"{what}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    expect(value.dtype in dtypes, f"{what}: expected {names}, got {value.dtype}")
    expect(value.device == device, f"{what}: expected on {device}, got {value.device}")
