"""Every family as a target and as its own drafter: slots on their own paths, and the tokens of stock ``generate``."""

from __future__ import annotations

import pytest
import torch

from specdecodes import load
from specdecodes.models.slots import SlotRunner

from .configs import FAMILIES, each
from .families import gap, numbers, path_to, prompt_of, shared, stock_prefix, stock_tree, tree_of

NEW = 40
QUICK = ("mamba2", "mamba", "llama")


@pytest.mark.slow
@pytest.mark.parametrize("name", each(FAMILIES))
def test_slots_expand_along_their_own_paths(name: str) -> None:
    """Two steps: a random tree, node by node in random order, then the path of its last node, then another one."""
    tolerance = FAMILIES[name].float32
    runner, start = SlotRunner(shared(name), max_slots=12), stock_prefix(name, torch.float32, 5)
    runner.prefill(prompt_of(5))
    for step in range(2):
        tree = tree_of("random", "slots", step)
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        stock = stock_tree(shared(name), start, tree)
        slots = {0: 0}
        assert gap(runner.catch_up([tokens[0]])[0], stock[0].logits) < tolerance
        source = numbers(name, step)
        while len(slots) < 11:
            ready = [node for node in range(len(tokens)) if node not in slots and parents[node] in slots]
            chosen = [ready[i] for i in torch.randperm(len(ready), generator=source)[:2].tolist()]
            above = torch.tensor([[slots[parents[node]] for node in chosen]])
            new, logits = runner.expand(above, tree.tokens[:, chosen])
            for place, node in enumerate(chosen):
                slots[node] = int(new[0, place])
                assert gap(logits[0, place], stock[node].logits) < tolerance
        last = max(slots)
        path = path_to(tree, last)
        runner.move([slots[node] for node in path])
        start = stock[last]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_forty_greedy_tokens_equal_stock_generate(name: str) -> None:
    """Drafted by the model itself, whose own slots must be right for anything to be accepted."""
    model, prompt = shared(name), prompt_of(13, "greedy")
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    stock = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    out = load(model, model, "stree").generate(prompt, max_new_tokens=NEW, ignore_eos=True)
    assert out.tokens[0] == stock[0, prompt.shape[1] :].tolist()
    assert sum(out.accept_lengths) / len(out.accept_lengths) > 3
