"""Where positions end or change: trees reach beyond the last token that a text has room for."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Phi3Config, PreTrainedModel

from specdecodes import load
from specdecodes.models import target as target_module
from specdecodes.models.slots import SlotRunner
from specdecodes.models.target import Target
from specdecodes.testing.toys import toy_model

from .families import gap, logits_of, prompt_of, stock_path, stock_tree, tree_of
from .tiny import ENDS, HIDDEN, PLAIN, VOCAB

POSITIONS, TURN = 40, 24
TREE = "2,1.1,1.1,1.1"
"""Four levels below the root."""


def learned(kind: str, positions: int = POSITIONS) -> PreTrainedModel:
    """A model with a table of ``positions``."""
    if kind == "gpt2":
        return made(GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=positions, **ENDS))
    settings = {**PLAIN, "max_position_embeddings": positions, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN}
    return made(OPTConfig(**settings))


def turning() -> PreTrainedModel:
    """Rotary frequencies are others for texts of more than ``TURN`` tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": TURN}
    factors = {"short_factor": [1.0] * 4, "long_factor": [5.0] * 4}
    sizes = {**PLAIN, "max_position_embeddings": 64, "original_max_position_embeddings": TURN}
    return made(Phi3Config(**sizes, rope_parameters={**rope, **factors}))


def made(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 0.4, generator=torch.Generator().manual_seed(weight.numel()))
    return model


def stock(model: PreTrainedModel, prompt: torch.Tensor, new: int) -> list[int]:
    settings: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found: list[int] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0].tolist()
    return found[prompt.shape[1] :]


def ours(model: PreTrainedModel, prompt: torch.Tensor, new: int, draft: Any = None) -> list[int]:
    decoder = load(model, model if draft is None else draft, "stree", tree=TREE)
    out = decoder.generate(prompt, max_new_tokens=new, ignore_eos=True)
    assert draft is not None or out.tau > 2
    return out.tokens[0]


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_trees_at_the_end_of_a_table(kind: str) -> None:
    """The last trees have nodes for which the table has no row; target and draft are the same model."""
    model, prompt = learned(kind), prompt_of(20)
    assert ours(model, prompt, POSITIONS - 20) == stock(model, prompt, POSITIONS - 20)


def test_a_draft_whose_table_ends_earlier() -> None:
    target, prompt = toy_model("llama"), prompt_of(9) % 48
    plain = load(target, mode="naive").generate(prompt, max_new_tokens=30).tokens[0]
    assert ours(target, prompt, 30, learned("gpt2", 16)) == plain
    with pytest.raises(ValueError, match=r"17 tokens .* but the draft allows 16 positions"):
        ours(target, prompt_of(17) % 48, 4, learned("gpt2", 16))


def test_a_root_beyond_the_table_is_refused() -> None:
    target = Target(learned("gpt2"))
    target.prefill(prompt_of(POSITIONS))
    with pytest.raises(ValueError, match=f"root within the {POSITIONS} positions .* got one after {POSITIONS} commit"):
        target.score(tree_of("six"))


def test_computed_positions_have_no_end() -> None:
    """A tree of a model that computes them is scored as stock does, wherever it lies."""
    model, tree = made(LlamaConfig(**{**PLAIN, "max_position_embeddings": 10})), tree_of("six")
    target, start = Target(model), stock_path(model, prompt_of(9)[0].tolist())
    target.prefill(prompt_of(9))
    assert gap(target.score(tree), logits_of(stock_tree(model, start, tree))) < 1e-4


@pytest.mark.parametrize("length", [10, TURN + 1, 40])
def test_frequencies_that_change_with_the_length(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and beyond the turn, however long a prompt's chunks are."""
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 8)
    model, prompt = turning(), prompt_of(length)
    new = 64 - length if length > TURN else TURN + 1 - length
    assert ours(model, prompt, new) == stock(model, prompt, new)


def test_an_answer_across_the_turn_is_refused() -> None:
    """Stock runs the whole text again there, with other frequencies."""
    answer = partial(ours, turning(), prompt_of(10))
    with pytest.raises(
        ValueError, match=f"max_new_tokens: expected at most {TURN - 9} after 10 tokens, got 20; beyond"
    ):
        answer(20)
    assert len(answer(TURN - 9)) == TURN - 9


def test_what_waits_for_a_draft_has_its_own_positions_beyond_a_turn() -> None:
    """Nobody checks an answer against the turns of the draft; what it catches up with may lie on both sides of one."""
    together, apart = (SlotRunner(turning(), max_slots=3) for _ in range(2))
    prompt = prompt_of(TURN - 2)
    for each in (together, apart):
        each.prefill(prompt)
    waiting = [5, 6, 7, 8]
    found = together.catch_up(waiting)
    for token in waiting:
        expected = apart.catch_up([token])
        if token != waiting[-1]:
            apart.move([0])
    assert together.length == apart.length == TURN + 1
    assert gap(found[0], expected[0]) < 1e-4
    below = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[9]])
    assert gap(together.expand(*below)[1][0], apart.expand(*below)[1][0]) < 1e-4
