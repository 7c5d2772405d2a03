"""The contract of ``build_tree``: a valid tree within its budget, whose drawn children are what was drawn."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Proposal, Topology, Tree
from specdecodes.models.target import Target
from specdecodes.plugin import Context, Hooks
from specdecodes.testing.contract import check_draws, declares, during, expect, hooked, made
from specdecodes.testing.literal import LiteralProposal, LiteralTarget
from specdecodes.testing.toys import numbers, toy_context

VOCAB = 24
PROMPT = (3, 1, 4)


def check_tree_builder(builder: Any, *, context: Context | None = None, **settings: Any) -> None:  # noqa: ANN401
    """Check a tree builder, or a factory of builders, against the contract of ``build_tree``.

    Every tree passes ``Tree.checked``, starts with the root and keeps to ``max_nodes``, ``max_depth`` and ``chain``
    (to ``max_slots``, where it is declared; and to one number of nodes T, where ``capturable``); slots belong to the
    right path; where the drafter has no candidate there is padding. For every kind of ``draws`` declared: the children
    of a node are the first of those drawn from its distribution, in draw order; whether a draw is kept depends on no
    draw but kept earlier ones, least of all on itself; ``logq`` is what they were drawn from; ``state.rng`` is the only
    randomness.

    Args:
        builder: a component, or a factory called with ``context`` and ``settings``.
        context: default: a toy context.

    Raises:
        AssertionError: names the broken clause.
    """
    checked = made(builder, context or toy_context(), settings)
    kinds = {"max_nodes": int, "max_depth": int, "chain": bool, "draws": tuple, "needs_marginals": bool}
    declares(checked, "tree builder", **kinds)
    name = f"tree builder {type(checked).__name__}"
    check_draws(name, checked.draws)
    run = _Run(checked, name)
    for draws in checked.draws:
        for candidates in (None, 2, 1, 0):
            with during(
                f"{name}, children drawn {draws}, {candidates if candidates is not None else 'all'} candidates"
            ):
                for seed in range(4):
                    run.build(seed, draws, candidates)
        if draws != "none" and not checked.needs_marginals:
            with during(f"{name}, children drawn {draws}"):
                _check_counts(run, draws)
    expect(
        not getattr(checked, "capturable", False) or len(run.sizes) == 1,
        f"{name}: declares capturable, but its trees have different numbers of nodes: {sorted(run.sizes)}; use padding",
    )


class _Run:
    """Builds trees over a scripted drafter and scripted draws."""

    def __init__(self, builder: Any, name: str) -> None:  # noqa: ANN401
        self.builder = builder
        self.name = name
        self.hooks: Hooks = hooked("build_tree", builder)
        self.sizes: set[int] = set()

    def build(
        self, seed: int, draws: str, candidates: int | None, twist: tuple[int, int, int] | None = None
    ) -> tuple[Tree, _Draws]:
        """One tree, checked; ``twist``: (number of a row drawn from, place among its draws, whether a likely one)."""
        state = self._state(seed, draws, candidates)
        state.rng = rng = _Draws(seed, twist)
        proposal = _Recorded(
            state, seed, candidates, depth=self.builder.max_depth if self.builder.needs_marginals else 0
        )
        history = [list(row) for row in state.history]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(self.sizes))  # another one each time: it must not matter
            tree = self.hooks.build_tree(state, cast("Proposal", proposal))
        expect(state.history == history, f"{self.name}: changed the state")
        self._check_tree(tree, state, draws)
        used, room = len(proposal.slots[0]), getattr(self.builder, "max_slots", None)
        expect(room is None or used <= room, f"{self.name}: declares max_slots {room}, used {used} slots")
        self._check_slots(tree, proposal, clean=candidates is None)
        if draws != "none":
            self._check_draws(tree, proposal, rng)
        self.sizes.add(tree.shape[1])
        return tree, rng

    def _state(self, seed: int, draws: str, candidates: int | None) -> DecodeState:
        def rule(prefix: tuple[int, ...]) -> Tensor:
            return torch.zeros(VOCAB)

        target = cast("Target", LiteralTarget(rule, VOCAB))
        # A draft cut to few candidates, as top-k sampling does, has nothing else to draw.
        temperature = 0.0 if draws == "none" else 1.0
        params = SamplingParams(max_new_tokens=64, temperature=temperature, top_k=candidates or 0)
        state = DecodeState(target, torch.tensor([PROMPT]), params, draws=draws)
        certain = torch.full((1, VOCAB), -torch.inf)
        certain[:, 5 + seed] = 0.0
        state.first(certain)
        return state

    def _check_tree(self, tree: Tree, state: DecodeState, draws: str) -> None:
        builder, name = self.builder, self.name
        try:
            Tree.checked(tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws, vocab_size=VOCAB)
        except ValueError as error:
            raise AssertionError(f"{name}: {error}") from None
        rows, count = tree.shape
        expect(rows == 1, f"{name}: expected a tree of one row, got {rows}")
        expect(count <= builder.max_nodes, f"{name}: declares max_nodes {builder.max_nodes}, built {count} nodes")
        expect(torch.equal(tree.tokens[:, :1], state.root), f"{name}: node 0 must be the root {int(state.root)}")
        fresh = Topology(tree.parents)
        same = torch.equal(tree.structure.ancestors, fresh.ancestors) and torch.equal(
            tree.structure.parents, tree.parents
        )
        expect(same, f"{name}: Tree.topology is not that of Tree.parents")
        real = tree.real[0]
        deepest = int(fresh.depths[0][real].max())
        expect(deepest <= builder.max_depth, f"{name}: declares max_depth {builder.max_depth}, built depth {deepest}")
        inner = tree.parents[0][real][1:].tolist()
        expect(
            not builder.chain or len(set(inner)) == len(inner),
            f"{name}: declares chain, but a node has several children",
        )
        expect(tree.draws == draws, f"{name}: Tree.draws: expected {draws!r} (state.draws), got {tree.draws!r}")

    def _check_slots(self, tree: Tree, proposal: _Recorded, clean: bool) -> None:
        name = self.name
        if tree.slots is None:
            expect(tree.shape[1] == 1, f"{name}: Tree.slots: expected the drafter's slots, got None")
            return
        slots, paths = tree.slots[0].tolist(), _token_paths(tree)
        expect(slots[0] == 0, f"{name}: Tree.slots: expected 0 at the root, got {slots[0]}")
        known = proposal.slots[0]
        for node, path in enumerate(paths):
            slot = slots[node]
            expect(
                -1 <= slot < len(known),
                f"{name}: Tree.slots: node {node} has slot {slot}; the drafter has {len(known)}",
            )
            expect(
                slot < 0 or known[slot] == path,
                f"{name}: Tree.slots: node {node} (tokens {path} below the root) has slot {slot}, which the drafter "
                f"ran for {known[slot] if slot >= 0 else ()}",
            )
        spare = {path for slot, path in enumerate(known) if slot not in slots}
        for node, path in enumerate(paths):
            expect(
                not clean or slots[node] >= 0 or path not in spare,
                f"{name}: Tree.slots: node {node} was expanded, but has slot -1; the drafter would run it again",
            )

    def _check_draws(self, tree: Tree, proposal: _Recorded, rng: _Draws) -> None:
        name, paths = self.name, _token_paths(tree)
        children = _children(tree)
        expect(
            tree.logq is not None or not any(children),
            f"{name}: Tree.logq: expected what children were drawn from, got None",
        )
        left = list(rng.drawn)
        for node, path in enumerate(paths):
            if not children[node]:
                continue
            law = proposal.distribution(0, path).exp()
            assert tree.logq is not None
            expect(
                torch.allclose(tree.logq[0, node].double().exp(), law.double(), atol=1e-6),
                f"{name}: Tree.logq: row {node} is not what the children of node {node} were drawn from",
            )
            # Nodes with the same path (possible among independent draws) were drawn from the same distribution.
            mine = [i for i, (weights, _) in enumerate(left) if torch.allclose(weights, law.double(), atol=1e-6)]
            expect(mine, f"{name}: the children of node {node} were not drawn by state.rng.draws from its distribution")
            tokens = [int(tree.tokens[0, child]) for child in children[node]]
            fitting = [i for i in mine if left[i][1][: len(tokens)] == tokens]
            expect(
                fitting,
                f"{name}: the children of node {node} are {tokens}, but {left[mine[0]][1]} were drawn in this "
                "order; drawn children are never dropped or re-ordered",
            )
            left.pop(fitting[0])


def _check_counts(run: _Run, draws: str) -> None:
    """Whether a draw is kept must not depend on what it is, nor on draws that are not kept.

    Only then does a drawn child, given all before it, have the distribution that the verifier takes it to have.
    """
    tree, rng = run.build(0, draws, None)
    for drawn, (weights, tokens) in enumerate(rng.drawn):
        for place in range(len(tokens)):
            for likely in range(2):
                other, _ = run.build(0, draws, None, twist=(drawn, place, likely))
                first, second = (_kept(built, weights) for built in (tree, other))
                # Up to this place both saw the same, so that both keep the draw there or neither does.
                expect(
                    [min(count, place + 1) for count in first] == [min(count, place + 1) for count in second],
                    f"{run.name}: keeps {first} children of a node or {second}, depending on which token was drawn "
                    f"there as number {place + 1}; that biases what is emitted",
                )
                expect(
                    max(first, default=0) > place or _same(tree, other),
                    f"{run.name}: draw number {place + 1} at a node is not kept, but the tree depends on it; that "
                    "biases what is emitted",
                )


def _same(tree: Tree, other: Tree) -> bool:
    return _token_paths(tree) == _token_paths(other) and _children(tree) == _children(other)


def _kept(tree: Tree, weights: Tensor) -> list[int]:
    """How many children the nodes with this draft distribution have."""
    assert tree.logq is not None
    children = _children(tree)
    same = [
        node for node in range(len(children)) if torch.allclose(tree.logq[0, node].double().exp(), weights, atol=1e-6)
    ]
    return sorted(len(children[node]) for node in same if children[node])


class _Recorded(LiteralProposal):
    """A drafter whose distribution is another one after every path (a parallel one: at every depth)."""

    def __init__(self, state: DecodeState, seed: int, candidates: int | None, depth: int) -> None:
        def rule(prefix: tuple[int, ...]) -> Tensor:
            return 2 * torch.randn(VOCAB, generator=numbers("builder", seed, len(prefix) if depth else prefix))

        super().__init__(rule, state, candidates=candidates, depth=depth)

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Strict about what comes in."""
        shapes = f"got {slots.dtype} {tuple(slots.shape)} and {tokens.dtype} {tuple(tokens.shape)}"
        good = slots.dtype == tokens.dtype == torch.long and slots.shape == tokens.shape and slots.ndim == 2
        expect(good, f"expand: expected int64 slots and tokens of one shape [B, n], {shapes}")
        expect(
            int(slots.min()) >= 0 and int(slots.max()) < len(self.slots[0]), f"expand: no such slot: {slots.tolist()}"
        )
        expect(int(tokens.min()) >= 0 and int(tokens.max()) < VOCAB, f"expand: not a token: {tokens.tolist()}")
        return super().expand(slots, tokens)


class _Draws(Rng):
    """Draws by a script, remembers them, and refuses everything else: a builder draws with ``rng.draws`` only.

    Attributes:
        drawn: (weights [V], tokens) of every row asked about.
    """

    def __init__(self, seed: int, twist: tuple[int, int, int] | None) -> None:
        super().__init__(seed)
        self.drawn: list[tuple[Tensor, list[int]]] = []
        self._twist = twist

    def draws(self, probs: Tensor, count: int, replacement: bool) -> Tensor:
        """Random, the same each time, and far from sorted."""
        expect(probs.ndim == 2, f"rng.draws: expected probabilities [n, V], got shape {tuple(probs.shape)}")
        sums = probs.sum(-1)
        expect(torch.allclose(sums, torch.ones_like(sums), atol=1e-4), "rng.draws: expected normalised rows")
        rows = []
        for row in probs:
            which = len(self.drawn)
            tokens = self._answer(row, count, replacement, which)
            if self._twist is not None and self._twist[0] == which:
                tokens = self._twisted(row, tokens, replacement)
            self.drawn.append((row.double(), tokens))
            rows.append([*tokens, *[-1] * (count - len(tokens))])
        return torch.tensor(rows, device=probs.device)

    def _twisted(self, row: Tensor, tokens: list[int], replacement: bool) -> list[int]:
        """The same up to some place, there the likeliest or the unlikeliest of what is left, then others."""
        assert self._twist is not None
        which, place, likely = self._twist
        left = self._without(row, tokens[:place], replacement)
        other = int(left.argmax() if likely else torch.where(left > 0, left, torch.inf).argmin())
        left = self._without(left, [other], replacement)
        return [*tokens[:place], other, *self._answer(left, len(tokens) - place - 1, replacement, which, place)]

    @staticmethod
    def _without(row: Tensor, tokens: list[int], replacement: bool) -> Tensor:
        return row if replacement else row.index_fill(0, torch.tensor(tokens, dtype=torch.long), 0.0)

    def _answer(self, row: Tensor, count: int, replacement: bool, *key: int) -> list[int]:
        source = numbers("draws", self.generator.initial_seed(), *key)
        possible = row.nonzero()[:, 0]
        if replacement:
            return list(possible[torch.randint(len(possible), (count,), generator=source)].tolist())
        return list(possible[torch.randperm(len(possible), generator=source)[:count]].tolist())


def _token_paths(tree: Tree) -> list[tuple[int, ...]]:
    """The tokens below the root on the way to every real node."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.count()):
        paths.append((*paths[parents[node]], tokens[node]))
    return paths


def _children(tree: Tree) -> list[list[int]]:
    parents = tree.parents[0].tolist()
    return [[child for child in range(1, tree.count()) if parents[child] == node] for node in range(tree.count())]
