"""The contract of ``verify``: what is accepted is a real path, and, where declared, the target's own law is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.models.target import Target
from specdecodes.plugin import Context, Hooks
from specdecodes.testing.contract import check_draws, declares, during, expect, hooked, made
from specdecodes.testing.enumeration import explore, sequence_law, total_variation
from specdecodes.testing.judge import check_judge
from specdecodes.testing.laws import CASES, Laws, draw_tree, laws_of, with_padding
from specdecodes.testing.literal import LiteralTarget, real_path
from specdecodes.testing.toys import numbers, toy_context

PROMPT, ROOT = 0, 0

TOLERANCE = 1e-12
"""Total variation that rounding in float64 may leave."""

FEW = (
    "random",
    "nearly equal laws",
    "a draft of one token",
    "both cut to their two best tokens",
    "both cut to their nucleus",
)

SHAPES: tuple[tuple[tuple[int, ...], int, tuple[str, ...]], ...] = (
    ((-1, 0, 1), 4, CASES),
    ((-1, 0, 1, 2), 3, FEW),
    ((-1, 0, 0), 5, CASES),
    ((-1, 0, 0, 0), 4, FEW),
    ((-1, 0, 0, 0), 3, FEW),
    ((-1, 0, 0, 1, 1), 3, FEW),
    ((-1, 0, 0, 1, 2), 3, ("random", "both cut to their nucleus")),
    ((-1, 0, 0, 1, 3), 3, ("random", "a draft of one token")),
)
"""(parents, vocabulary, cases): chains, stars, two and three levels; small enough to enumerate all of it."""


def check_verifier(verifier: Any, *, context: Context | None = None, **settings: Any) -> None:  # noqa: ANN401
    """Check a verifier, or a factory of verifiers, against the contract of ``verify``.

    Structure: int64 path from the root through real nodes, padded with -1; a bonus token; tree and logits unchanged;
    ``state.rng`` the only randomness. With ``lossless = True``, greedy: the longest path that the target's best tokens
    take, on random trees; sampling: the law of the emitted tokens equals the target's (total variation below 1e-12),
    by enumeration of all trees that can be drawn and all outcomes of the rule, for every kind of ``draws`` declared.
    With ``capturable = True``: ``judge`` has the law of ``accept`` (total variation below 0.06 over 5,000 draws of its
    noise per tree) and reads no value.

    Args:
        verifier: a component, or a factory called with ``context`` and ``settings``.
        context: default: a toy context.

    Raises:
        AssertionError: names the broken clause.
    """
    checked = made(verifier, context or toy_context(), settings)
    declares(checked, "verifier", lossless=bool, serves=tuple, draws=tuple, chain_only=bool, needs_draft_probs=bool)
    name = f"verifier {type(checked).__name__}"
    expect(
        checked.serves and set(checked.serves) <= {"greedy", "sampling"},
        f"{name}.serves: expected 'greedy', 'sampling' or both, got {checked.serves}",
    )
    check_draws(name, checked.draws)
    judge = _Judge(checked, name)
    if "greedy" in checked.serves:
        with during(f"{name} at temperature 0"):
            _check_greedy(judge)
    if "sampling" in checked.serves:
        with during(f"{name} on random trees"):
            _check_structure(judge)
        if checked.lossless:
            _check_law(judge)
        if getattr(checked, "capturable", False):
            check_judge(checked, name)


class _Judge:
    """Runs the verifier's hook on a tree over literal logits and checks the structure of every verdict."""

    def __init__(self, verifier: Any, name: str) -> None:  # noqa: ANN401
        self.verifier = verifier
        self.name = name
        self.hooks: Hooks = hooked("verify", verifier)

    def state(self, rule: Callable[[tuple[int, ...]], Tensor], vocab: int, greedy: bool, rows: int = 1) -> DecodeState:
        """A state whose target follows ``rule``, with one committed token and the root."""
        target = LiteralTarget(rule, vocab)
        params = SamplingParams(max_new_tokens=64, temperature=0.0 if greedy else 1.0)
        state = DecodeState(cast("Target", target), torch.full((rows, 1), PROMPT), params)
        target.prefill(state.prompt)
        certain = torch.full((rows, vocab), -torch.inf, dtype=torch.float64)
        certain[:, ROOT] = 0.0
        state.first(certain)
        return state

    def on(self, state: DecodeState, tree: Tree) -> _Trial:
        """The verifier on one tree, as often as wanted."""
        return _Trial(self, state, tree)

    def emitted(self, tree: Tree, verdict: Verdict, vocab: int) -> list[list[int]]:
        """What each row of a verdict emits; its structure is checked on the way."""
        rows, name = tree.shape[0], self.name
        for field, shape in (("path", (rows, verdict.path.shape[-1])), ("num_accepted", (rows,)), ("bonus", (rows,))):
            value = getattr(verdict, field)
            expect(
                value.dtype == torch.long and tuple(value.shape) == shape,
                f"{name}: Verdict.{field}: expected int64 of shape {shape}, got {value.dtype} {tuple(value.shape)}",
            )
        emitted = []
        for row in range(rows):
            try:
                path = real_path(tree, row, verdict.path[row].tolist())
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
            count, bonus = int(verdict.num_accepted[row]), int(verdict.bonus[row])
            expect(count == len(path) - 1, f"{name}: num_accepted {count} does not fit the path {path}")
            expect(0 <= bonus < vocab, f"{name}: bonus {bonus}: expected a token from 0 to {vocab - 1}")
            emitted.append([*(int(tree.tokens[row, node]) for node in path[1:]), bonus])
        return emitted


class _Trial:
    """One tree, scored once and judged as often as wanted; at the end nothing of it may have changed."""

    def __init__(self, judge: _Judge, state: DecodeState, tree: Tree) -> None:
        self.judge, self.state, self.tree = judge, state, tree
        self.target = cast("LiteralTarget", state.target)
        self.logits = self.target.score(tree)

    def __enter__(self) -> _Trial:
        self._before = [value.clone() for value in (self.logits, *_values(self.tree))]
        self._committed = [list(row) for row in self.target.committed]
        self.target.score = lambda tree: self.logits  # type: ignore[method-assign]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        del self.target.score
        if kind is not None:
            return
        name = self.judge.name
        now = (self.logits, *_values(self.tree))
        logits, *tree = (_equal(value, old) for value, old in zip(now, self._before, strict=True))
        expect(logits, f"{name}: changed the target's logits in place")
        expect(all(tree), f"{name}: changed the tree in place")
        expect(self.target.committed == self._committed, f"{name}: committed; that is the state back-end's part")

    def run(self, rng: Rng | None = None) -> list[list[int]]:
        """What each row emits."""
        if rng is not None:
            self.state.rng = rng
        verdict = self.judge.hooks.verify(self.state, self.tree)
        return self.judge.emitted(self.tree, verdict, self.logits.shape[-1])


def _equal(value: Tensor, other: Tensor) -> bool:
    return bool(((value == other) | (value != value) & (other != other)).all())


def _values(tree: Tree) -> list[Tensor]:
    return [value for value in (tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq) if value is not None]


# -- temperature 0 ------------------------------------------------------------------------------------------------


def _check_greedy(judge: _Judge) -> None:
    vocab = 5
    for seed in range(60):
        rows = 1 + seed % 2
        rule = _random_rule(vocab, seed)
        state = judge.state(rule, vocab, greedy=True, rows=rows)
        tree = _random_tree(judge, vocab, rows, "none", seed, rule)
        try:
            with judge.on(state, tree) as trial:
                emitted = trial.run()
        except (ValueError, NotImplementedError):
            if rows == 1:
                raise
            continue
        for row in range(rows if judge.verifier.lossless else 0):
            expected = _greedy_by_hand(tree, row, rule)
            expect(
                emitted[row] == expected,
                f"{judge.name}: emits {emitted[row]} where the target's best tokens along the tree are {expected} "
                f"(parents {tree.parents[row].tolist()}, tokens {tree.tokens[row].tolist()})",
            )


def _greedy_by_hand(tree: Tree, row: int, rule: Callable[[tuple[int, ...]], Tensor]) -> list[int]:
    """The target's best tokens as far down as they were drafted, and one more."""
    paths = tree.structure.paths[row].tolist()
    ids = tree.tokens[row].tolist()
    drafted = {tuple(ids[node] for node in path if node > 0) for path in paths[: tree.count(row)]}
    emitted: list[int] = []
    while True:
        emitted.append(int(rule((PROMPT, ROOT, *emitted)).argmax()))
        if tuple(emitted) not in drafted:
            return emitted


# -- structure ----------------------------------------------------------------------------------------------------


def _check_structure(judge: _Judge) -> None:
    vocab = 5
    for seed in range(60):
        rows = 1 + seed % 2
        rule = _random_rule(vocab, seed)
        for draws in judge.verifier.draws:
            tree = _random_tree(judge, vocab, rows, draws, seed, rule)
            try:
                with judge.on(judge.state(rule, vocab, greedy=False, rows=rows), tree) as trial:
                    trial.run(Rng(seed))
            except (ValueError, NotImplementedError):
                if rows == 1:
                    raise


def _random_rule(vocab: int, seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda prefix: torch.randn(vocab, generator=numbers(seed, prefix), dtype=torch.float64)


def _random_tree(
    judge: _Judge, vocab: int, rows: int, draws: str, seed: int, rule: Callable[[tuple[int, ...]], Tensor]
) -> Tree:
    """A random tree [rows, 8] with up to three padding nodes, which carry the target's best token after the root."""
    source = numbers("tree", seed, draws)
    best = int(rule((PROMPT, ROOT)).argmax())
    parents = [[-1, *(_parent(judge, node, source) for node in range(1, 8))] for _ in range(rows)]
    trees = []
    for shape in parents:
        count = 8 - int(torch.randint(4, (1,), generator=source))
        laws = Laws(vocab, rule, _random_rule(vocab, seed + 1000))
        tree = draw_tree(shape[:count], laws, Rng(seed), draws)
        # Half of the trees follow the target as far as they can, so that long paths are accepted.
        if seed % 4 >= 2 and draws == "none":
            tree = _following(tree, rule)
        trees.append(with_padding(tree, 8, best))
    tokens, above, num_nodes, slots, logq = (torch.cat(f) for f in zip(*(_fields(t) for t in trees), strict=True))
    return Tree(tokens, above, num_nodes, slots, logq, draws)


def _parent(judge: _Judge, node: int, source: torch.Generator) -> int:
    return node - 1 if judge.verifier.chain_only else int(torch.randint(node, (1,), generator=source))


def _following(tree: Tree, rule: Callable[[tuple[int, ...]], Tensor]) -> Tree:
    tokens, paths = tree.tokens.clone(), tree.structure.paths[0].tolist()
    for node in range(1, tokens.shape[1]):
        if node % 3:
            above = [int(tokens[0, i]) for i in paths[node] if i not in (-1, 0, node)]
            tokens[0, node] = rule((PROMPT, ROOT, *above)).argmax()
    return Tree(tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws)


def _fields(tree: Tree) -> tuple[Tensor, ...]:
    assert tree.num_nodes is not None and tree.slots is not None and tree.logq is not None
    return tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq


# -- the law of what is emitted -----------------------------------------------------------------------------------


def _check_law(judge: _Judge) -> None:
    for draws in judge.verifier.draws:
        for parents, vocab, cases in SHAPES:
            if judge.verifier.chain_only and any(parents.count(node) > 1 for node in parents):
                continue
            for case in cases:
                what = f"{judge.name}, children drawn {draws}, parents {list(parents)}, V = {vocab}, {case}"
                with during(what):
                    distance = _distance(judge, laws_of(case, vocab), parents, draws)
                expect(
                    distance < TOLERANCE,
                    f"{what}: declared lossless, but the law of the emitted tokens is {distance:.3g} in total "
                    "variation away from the target's",
                )


def _distance(judge: _Judge, laws: Laws, parents: Sequence[int], draws: str) -> float:
    """Total variation between what decoding with drawn trees emits and the target's own law."""
    length = max(len(path) for path in _paths(parents))

    def rule(prefix: tuple[int, ...]) -> Tensor:
        return laws.target(prefix[2:])

    state = judge.state(rule, laws.vocab, greedy=False)
    emitted: dict[tuple[int, ...], float] = {}
    for chance, tree in explore(lambda rng: draw_tree(parents, laws, rng, draws)):
        # More padding in some trees than in others: node ids and shapes must not matter.
        tree = with_padding(tree, len(parents) + 1, int(laws.target(()).argmax()))

        with judge.on(state, tree) as trial:
            for weight, rows in explore(trial.run):
                emitted[tuple(rows[0])] = emitted.get(tuple(rows[0]), 0.0) + chance * weight

    def next_law(prefix: tuple[int, ...]) -> list[float]:
        law: list[float] = laws.target(prefix).softmax(-1).tolist()
        return law

    ours = sequence_law(emitted, next_law, length)
    return total_variation(ours, sequence_law({(): 1.0}, next_law, length))


def _paths(parents: Sequence[int]) -> list[list[int]]:
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return paths
