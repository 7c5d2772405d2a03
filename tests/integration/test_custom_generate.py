"""``model.generate(custom_generate=...)`` against stock: on a hybrid, a state-space model and a transformer."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

import specdecodes
from specdecodes import hookimpl
from specdecodes.integration import CustomGenerate
from specdecodes.models.families import CACHE_ARGUMENTS
from specdecodes.testing.toys import FAMILIES, VOCAB, toy_model, toy_prompt

from ..conftest import Pair

PROMPT = toy_prompt(7)
each_family = pytest.mark.parametrize("family", FAMILIES)
hybrid_first = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "bamba" else pytest.mark.slow) for name in FAMILIES]
)


def _letters() -> PreTrainedTokenizerFast:
    """One letter per token."""
    plain = Tokenizer(models.BPE({letter: index for index, letter in enumerate(string.ascii_letters[:VOCAB])}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


LETTERS = _letters()


class Last:
    """Keeps what came out."""

    generation: Any = None

    @hookimpl
    def generation_finished(self, state: Any, generation: Any) -> None:
        self.generation = generation


LAST = Last()


def method(family: str = "llama", **settings: Any) -> CustomGenerate:
    """Trees drafted by a model that is often right: the target itself, whose processors are the same."""
    draft = toy_model(family)
    return specdecodes.custom_generate(**{"draft_model": draft, "tree": "2,1.1,1.1", "observers": (LAST,), **settings})


def stock(family: str, **settings: Any) -> Any:
    return toy_model(family).generate(PROMPT, **{"max_new_tokens": 20, "do_sample": False, **settings})


def ours(family: str, made: CustomGenerate | None = None, **settings: Any) -> Any:
    defaults = {"max_new_tokens": 20, "do_sample": False}
    return toy_model(family).generate(PROMPT, custom_generate=made or method(family), **{**defaults, **settings})


def answer(family: str, **settings: Any) -> list[int]:
    """Stock's new tokens."""
    found: list[int] = stock(family, **settings)[0, PROMPT.shape[1] :].tolist()
    return found


# Greedy: the tokens of stock generate


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "to a length": {"max_length": PROMPT.shape[1] + 11, "max_new_tokens": None},
    "repetition penalty": {"repetition_penalty": 1.4},
    "two prefix processors": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.7},
    "suppressed tokens": {"suppress_tokens": [5, 9, 11, 12, 30]},
    "bad words": {"bad_words_ids": [[4, 7], [13], [22]]},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda _, ids: [int(ids[-1]) // 2, 7, (int(ids[-1]) * 5 + 3) % 47]},
}


@pytest.mark.parametrize("settings", GREEDY.values(), ids=GREEDY)
@each_family
def test_greedy_equals_stock(family: str, settings: dict[str, Any]) -> None:
    found = ours(family, **settings)
    assert found.tolist() == stock(family, **settings).tolist()
    assert found.dtype == torch.long and not found.is_inference()
    assert max(LAST.generation.accept_lengths) == 4, "whole blocks were accepted"


@pytest.mark.parametrize("mode", ["naive", "sd", "ngram", "dynamic", "suffix"])
def test_every_kind_of_mode(mode: str) -> None:
    made = specdecodes.custom_generate(mode, toy_model("mamba2", seed=1) if mode in ("sd", "dynamic") else None)
    if mode == "ngram":
        made = specdecodes.custom_generate(mode, "suffix")
    assert ours("bamba", made).tolist() == stock("bamba").tolist()


@hybrid_first
def test_end_of_text_inside_a_block(family: str) -> None:
    tokens = answer(family)
    for position in (0, 5, 7, 8):
        end = {"eos_token_id": [tokens[position], 1], "pad_token_id": 0}
        assert ours(family, **end).tolist() == stock(family, **end).tolist()
        at_least = {"min_new_tokens": position + 5, **end}
        assert ours(family, **at_least).tolist() == stock(family, **at_least).tolist()


@hybrid_first
def test_stop_strings(family: str) -> None:
    text = LETTERS.decode(answer(family))
    for position in (4, 9):
        stop = text[position - 1 : position + 1]
        expected = stock(family, stop_strings=[stop, "unheard"], tokenizer=LETTERS).tolist()
        assert ours(family, method(family, tokenizer=LETTERS), stop=[stop, "unheard"]).tolist() == expected
        assert ours(family, method(family, tokenizer=LETTERS), stop=stop).tolist() == expected
        criteria = StoppingCriteriaList([StopStringCriteria(LETTERS, [stop, "unheard"])])
        assert ours(family, stopping_criteria=criteria).tolist() == expected


@hybrid_first
def test_stopping_criteria_are_asked_once_for_every_token(family: str) -> None:
    calls: list[list[list[int]]] = []

    def criterion(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        calls[-1].append(ids[0].tolist())
        return torch.tensor([ids.shape[1] == PROMPT.shape[1] + 9])

    results = []
    for generate in (stock, ours):
        calls.append([])
        results.append(generate(family, stopping_criteria=[criterion]).tolist())
    assert results[0] == results[1]
    assert calls[0] == calls[1] and len(calls[0]) == 9


def test_prompt_on_another_row_form() -> None:
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    found = toy_model("bamba").generate(**inputs, custom_generate=method("bamba"), max_new_tokens=5, do_sample=False)
    assert found.tolist() == stock("bamba", max_new_tokens=5).tolist()


# Sampling


@hybrid_first
def test_seeds(family: str) -> None:
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 0}
    drawn = []
    for number in (3, 3, 4):
        torch.manual_seed(number)
        drawn.append([ours(family, **sampling).tolist(), ours(family, **sampling).tolist()])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1], "the second answer is another draw"
    own = [ours(family, seed=seed, **sampling).tolist() for seed in (5, 5, 6)]
    assert own[0] == own[1] != own[2]


def test_greedy_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ours("llama")
    assert torch.equal(torch.get_rng_state(), before)


@hybrid_first
def test_sampling_goes_through_the_processors(family: str) -> None:
    """Of every prefix only its two best tokens may follow, repeated ones being penalised."""
    settings = {"do_sample": True, "top_k": 2, "temperature": 2.0, "repetition_penalty": 1.5, "max_new_tokens": 12}
    seconds = 0
    for seed in range(4):
        ids = ours(family, seed=seed, **settings)
        seen = toy_model(family)(ids).logits[0]
        for position in range(PROMPT.shape[1], ids.shape[1]):
            logits = seen[position - 1].clone()
            before = ids[0, :position].unique()
            logits[before] = torch.where(logits[before] < 0, logits[before] * 1.5, logits[before] / 1.5)
            best = logits.topk(2).indices.tolist()
            assert int(ids[0, position]) in best
            seconds += int(ids[0, position]) == best[1]
    assert 5 < seconds < 43, "drawn, not the best"


@hybrid_first
def test_sampling_with_one_choice_is_greedy(family: str) -> None:
    settings = {"top_k": 1, "repetition_penalty": 1.3}
    assert ours(family, do_sample=True, **settings).tolist() == stock(family, repetition_penalty=1.3).tolist()


# Outputs


@hybrid_first
def test_outputs_in_a_dict(family: str) -> None:
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.4}
    expected, found = stock(family, **asked), ours(family, **asked)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(found[name]) == 20
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert set(found) == {"sequences", "scores", "logits"}
    transitions = toy_model(family).compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert transitions.shape == (1, 20) and bool((transitions <= 0).all())
    assert set(ours(family, return_dict_in_generate=True)) == {"sequences"}
    assert isinstance(ours(family, output_scores=True), Tensor)


class Streamer:
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.given.append(value.tolist())

    def end(self) -> None:
        self.given.append("end")


@hybrid_first
def test_streamer(family: str) -> None:
    expected, found = Streamer(), Streamer()
    stock(family, streamer=expected, eos_token_id=answer(family)[9], pad_token_id=0)
    ours(family, token_streamer=found, eos_token_id=answer(family)[9], pad_token_id=0)
    assert found.given == expected.given
    assert len(found.given) > 4 and found.given[-1] == "end"


def test_streamer_ends_when_decoding_fails() -> None:
    def broken(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] > PROMPT.shape[1]:
            raise ArithmeticError
        return scores

    streamer = Streamer()
    with pytest.raises(ArithmeticError):
        ours("llama", token_streamer=streamer, logits_processor=LogitsProcessorList([broken]))
    assert len(streamer.given) == 3 and streamer.given[-1] == "end"


# What cannot be done


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "num_beams: expected 1 with specdecodes.custom_generate, got 2"),
    ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences: expected 1 with .*, got 3"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "expected greedy search or sampling .*, got contrastive_search; leave"),
    ({"prompt_lookup_num_tokens": 3}, "expected greedy search or sampling .*, got assisted_generation; leave"),
    ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions: .* only sequences, scores"),
    ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states: .* only sequences"),
    ({"guidance_scale": 1.5}, "guidance_scale: UnbatchedClassifierFreeGuidanceLogitsProcessor keeps a state"),
    ({"position_ids": torch.arange(3, 10)[None]}, "position_ids: expected none .*, which counts from 0"),
    ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])}, "attention_mask: expected all ones"),
    ({"stop": "w3"}, "stop: stop strings need a tokenizer; make the method with"),
    ({"seed": -1, "do_sample": True}, "seed: expected 0 to 2"),
    ({"max_new_tokens": 5000}, "max_new_tokens 5000 make 5007, but the model allows 4096 positions"),
]


@pytest.mark.parametrize(
    ("settings", "message"), REFUSED, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        ours("llama", **settings)
    assert "\n" not in str(refusal.value)


def test_other_prompts_are_refused() -> None:
    model, settings = toy_model("llama"), {"custom_generate": method("llama"), "max_new_tokens": 3}
    with pytest.raises(ValueError, match=r"input_ids: expected one row .*, got 2; generate the rows one by one"):
        model.generate(PROMPT.expand(2, -1), **settings)
    embeddings = model.get_input_embeddings()(PROMPT).detach()
    with pytest.raises(ValueError, match=r"inputs_embeds: .* needs input_ids \[1, L\]"):
        model.generate(inputs_embeds=embeddings, **settings)


@each_family
def test_a_cache_that_holds_tokens_is_refused(family: str) -> None:
    outputs = toy_model(family)(PROMPT, use_cache=True)
    name = next(each for each in CACHE_ARGUMENTS if each in outputs)
    with pytest.raises(ValueError, match=f"{name}: expected an empty cache .*; leave it out"):
        ours(family, **{name: outputs[name]})


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'stre'.*did you mean 'stree'"):
        specdecodes.custom_generate("stre")
    with pytest.raises(ValueError, match="custom_generate: 'dtype' is the model's own"):
        specdecodes.custom_generate(dtype="float64")
    with pytest.raises(ValueError, match="unknown setting 'treee'"):
        ours("llama", specdecodes.custom_generate("ngram", "suffix", treee="2,1"))


def test_settings_reach_the_mode() -> None:
    class Widths:
        @hookimpl
        def step_finished(self, state: Any, tree: Any, verdict: Any) -> None:
            assert tree.shape[1] == 1 + 3 + 3

    made = method("llama", tree="3,1.1.1", verify="token-match", observers=(Widths(),))
    assert ours("llama", made, do_sample=True, seed=1).shape == (1, 27)


def test_example_of_the_readme(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.split("## Inside transformers", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, Any] = {"TARGET": pair.target, "DRAFT": pair.draft}
    exec(code, names)
    settings = {"max_new_tokens": 64, "repetition_penalty": 1.2}
    assert names["output"].tolist() == names["model"].generate(**names["inputs"], **settings).tolist()
    assert capsys.readouterr().out.strip() == names["tokenizer"].decode(names["output"][0], skip_special_tokens=True)
