"""The contract of ``commit_state``: whatever was accepted, the state afterwards equals sequential decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Topology, Tree, Verdict
from specdecodes.models.target import Target
from specdecodes.plugin import Context, Hooks
from specdecodes.testing.contract import declares, during, expect, hooked, made
from specdecodes.testing.toys import FAMILIES, VOCAB, toy_context, toy_prompt

PARENTS = (-1, 0, 0, 2, 3, 1, 4, 6)
"""Index, depth and order of a node all differ, and the deepest path (0, 2, 3, 4, 6, 7) is longer than a conv window."""

SECOND = (-1, 0, 1, 1, 0)

TOLERANCE = 1e-4
"""Of logits with a standard deviation of 1, in float32."""


def check_state_backend(backend: Any, **settings: Any) -> None:  # noqa: ANN401
    """Check a state back-end, or a factory of back-ends, against the contract of ``commit_state``.

    On tiny stock models (a hybrid, a state-space model, a transformer), for prompts of one token and more: after a
    commit of every possible path, the root alone included, and over several steps, the logits of the next tree equal
    those of the stock model over the same tokens; scoring a tree changes nothing.

    Args:
        backend: a component, or a factory called with a context and ``settings``.

    Raises:
        AssertionError: names the broken clause.
    """
    for family in FAMILIES:
        context = toy_context(family)
        checked = made(backend, context, settings)
        declares(checked, "state back-end", keep=str)
        name = f"state back-end {type(checked).__name__}"
        expect(
            checked.keep in ("inputs", "states", "nothing"),
            f"{name}.keep: expected inputs, states or nothing, got {checked.keep!r}",
        )
        context.target.backend = checked
        run = _Run(context, checked, name)
        with during(f"{name} on a tiny {family}"):
            for node in range(len(PARENTS)):
                run.steps(9, [PARENTS, SECOND, SECOND], [_path(PARENTS, node), (0, 1, 3) if node % 2 else (0,), (0, 4)])
            run.steps(1, [PARENTS, SECOND, PARENTS], [(0,), (0,), (0, 2, 3, 4, 6, 7)])
            run.steps(2, [SECOND, PARENTS], [(0, 4), (0, 1, 5)])
            context.target.step_in_place = True
            run.steps(5, [(-1,), (-1,), SECOND], [(0,), (0,), (0, 1)])


class _Run:
    """Prefill, then score and commit, step by step, beside the stock model without a cache."""

    def __init__(self, context: Context, backend: Any, name: str) -> None:  # noqa: ANN401
        self.target: Target = context.target
        self.model: PreTrainedModel = context.target.model
        self.name = f"{name} ({self.model.config.model_type})"
        self.hooks: Hooks = hooked("commit_state", backend)

    def steps(self, length: int, trees: Sequence[Sequence[int]], paths: Sequence[Sequence[int]]) -> None:
        """One step per tree; ``paths`` are what is accepted."""
        target = self.target
        prompt = toy_prompt(length, VOCAB, "state")
        state = DecodeState(target, prompt, SamplingParams(max_new_tokens=64))
        with torch.inference_mode():
            state.first(target.prefill(prompt))
            before = "the prefill"
            for number, (parents, path) in enumerate(zip(trees, paths, strict=True)):
                tree = self._tree(state, parents, number)
                logits = target.score(tree).clone()
                self._compare(logits, state, tree, f"after {before}")
                if len(parents) > 1:  # a single node may be scored in place
                    again = target.score(tree)
                    error = float((again - logits).abs().max())
                    expect(
                        error <= TOLERANCE,
                        f"{self.name}: scoring the same tree twice gives logits {error:.2g} apart; scoring must not "
                        "move the state",
                    )
                self._commit(state, tree, path, logits)
                drafted = "no drafted token" if len(path) == 1 else f"{len(path) - 1} drafted tokens"
                before = f"step {number + 1}, which accepted {drafted} (path {list(path)})"

    def _tree(self, state: DecodeState, parents: Sequence[int], number: int) -> Tree:
        tokens = toy_prompt(len(parents), VOCAB, "tree", number)
        tokens[:, :1] = state.root
        topology = Topology(torch.tensor([parents]))
        return Tree(tokens, topology.parents, topology=topology)

    def _commit(self, state: DecodeState, tree: Tree, path: Sequence[int], logits: Tensor) -> None:
        width = tree.structure.paths.shape[-1]
        padded = torch.tensor([[*path, *([-1] * (width - len(path)))]])
        verdict = Verdict(padded, torch.tensor([len(path) - 1]), logits[:, path[-1]].argmax(-1))
        verdict = state.clip(verdict, tree)
        length = self.target.length
        self.hooks.commit_state(state, tree, verdict)
        expect(
            self.target.length == length + len(path),
            f"{self.name}: a commit of path {list(path)} must move the committed length by {len(path)} (root too), "
            f"got {self.target.length - length}",
        )
        state.advance(verdict)

    def _compare(self, logits: Tensor, state: DecodeState, tree: Tree, when: str) -> None:
        """Every node against the stock model over history and path."""
        ids = tree.tokens[0].tolist()
        prefixes = [
            [*state.history[0], *(ids[node] for node in path[1:] if node >= 0)]
            for path in tree.structure.paths[0].tolist()
        ]
        stock = stock_logits(self.model, prefixes)
        errors = (logits[0] - stock).abs().amax(-1)
        error, node = errors.max(0)
        expect(
            float(error) <= TOLERANCE,  # nan must not pass
            f"{self.name}: {when}, the logits of node {int(node)} (depth {int(tree.structure.depths[0, node])}) differ "
            f"from sequential decoding by {float(error):.2g}",
        )


def stock_logits(model: PreTrainedModel, prefixes: Sequence[Sequence[int]]) -> Tensor:
    """The stock model's logits [n, V] after each prefix, without a cache (padding on the right changes nothing)."""
    width = max(len(prefix) for prefix in prefixes)
    ids = torch.tensor([[*prefix, *([0] * (width - len(prefix)))] for prefix in prefixes])
    logits: Tensor = model(ids, use_cache=False).logits
    return logits[torch.arange(len(prefixes)), torch.tensor([len(prefix) - 1 for prefix in prefixes])]


def _path(parents: Sequence[int], node: int) -> tuple[int, ...]:
    return (*(_path(parents, parents[node]) if node else ()), node)
