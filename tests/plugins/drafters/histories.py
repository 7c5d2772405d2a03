"""States with a given history, for drafters that look at nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugin import Context


def context(vocab_size: int, tokenizer: Any = None, **attributes: Any) -> Context:
    target: Any = SimpleNamespace(vocab_size=vocab_size, device=torch.device("cpu"), **attributes)
    return Context(target, tokenizer)


def state_of(*rows: Sequence[int], **params: Any) -> DecodeState:
    """A state whose history is ``rows``."""
    target: Any = SimpleNamespace(device=torch.device("cpu"))
    state = DecodeState(target, torch.tensor([row[:1] for row in rows]), SamplingParams(**params))
    for row, tokens in enumerate(rows):
        grow(state, row, tokens[1:])
    return state


def grow(state: DecodeState, row: int, tokens: Sequence[int]) -> None:
    state.history[row].extend(tokens)
    state.root = torch.tensor([history[-1:] for history in state.history])


def slots_of(*slots: int) -> Tensor:
    return torch.tensor([slots])


def found_at(proposal: Any, slot: int, k: int = 9) -> list[int]:
    """The candidates at a slot of row 0, those that are missing left out."""
    return [token for token in proposal.topk(slots_of(slot), k)[0][0, 0].tolist() if token >= 0]


def score(
    drafter: Any,
    state: DecodeState,
    tokens: Sequence[int],
    parents: Sequence[int],
    logits: Tensor,
    path: Sequence[int],
    bonus: int,
    num_nodes: int | None = None,
) -> None:
    """One step of row 0: the tree was scored as ``logits`` [T, V] say, ``path`` accepted, tokens and bonus emitted."""
    count = None if num_nodes is None else torch.tensor([num_nodes])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), count)
    verdict = Verdict(torch.tensor([[*path, -1]]), torch.tensor([len(path) - 1]), torch.tensor([bonus]))
    state.process(logits[None], tree)
    drafter.commit_state(state, tree, verdict)
    grow(state, 0, [*(tokens[node] for node in path[1:]), bonus])
