"""The loop on literal logits: how much is accepted, what is counted, what is refused."""

from __future__ import annotations

import pytest
import torch

from specdecodes import hookimpl
from specdecodes.plugins.verifiers.residual import MultiStep, Rejection, WithoutReplacement
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.testing import LiteralTarget, toy_model
from specdecodes.testing.toys import numbers

LENGTH = 23


def one_hot(token, vocab=32):
    return torch.nn.functional.one_hot(torch.tensor(token), vocab).double() * 20


def counting(prefix):
    """Always the next number."""
    return one_hot((prefix[-1] + 1) % 32)


def wrong(prefix):
    return one_hot((prefix[-1] + 2) % 32)


def noise(seed):
    """Another distribution after every prefix."""
    return lambda prefix: 2 * torch.randn(32, generator=numbers(seed, prefix), dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 4, 7])
def test_a_draft_that_is_always_right(decoder, prompt, depth):
    out = decoder(counting, depth=depth).generate(prompt, max_new_tokens=LENGTH)
    assert out.tokens == [[(i + 1) % 32 for i in range(LENGTH)]]
    assert set(out.accept_lengths[:-1]) == {depth + 1}
    assert sum(out.accept_lengths) == LENGTH - 1
    assert len(out.accept_lengths) == -(-(LENGTH - 1) // (depth + 1))


@pytest.mark.parametrize("depth", [1, 4])
def test_a_draft_that_is_always_wrong(decoder, prompt, depth):
    out = decoder(counting, wrong, depth=depth).generate(prompt, max_new_tokens=LENGTH)
    assert out.tokens == [[(i + 1) % 32 for i in range(LENGTH)]]
    assert out.accept_lengths == [1] * (LENGTH - 1) and out.tau == 1.0


def test_a_draft_that_is_right_twice_of_three_times(decoder, prompt):
    def sometimes(prefix):
        return wrong(prefix) if prefix[-1] % 3 == 0 else counting(prefix)

    out = decoder(counting, sometimes, depth=4).generate(prompt, max_new_tokens=LENGTH)
    assert out.tokens == [[(i + 1) % 32 for i in range(LENGTH)]]
    # The first token is 1: from there two are right (2, 3), the bonus is 4, and so on.
    assert set(out.accept_lengths[:-1]) == {3}
    assert sum(out.accept_lengths) == LENGTH - 1


def test_a_second_best_child_is_accepted_in_a_tree(decoder, prompt):
    def second(prefix):
        return one_hot((prefix[-1] + 2) % 32) + 0.5 * counting(prefix)

    chain = decoder(counting, second, depth=3).generate(prompt, max_new_tokens=LENGTH)
    tree = decoder(counting, second, tree="2,2.2,1.1.1.1").generate(prompt, max_new_tokens=LENGTH)
    assert chain.tokens == tree.tokens
    assert chain.tau == 1.0 and set(tree.accept_lengths[:-1]) == {3}


def test_plain_decoding_takes_one_token_a_step(decoder, prompt):
    out = decoder(counting).generate(prompt, max_new_tokens=5)
    assert out.tokens == [[1, 2, 3, 4, 5]] and out.accept_lengths == [1, 1, 1, 1]
    assert out.prompt_tokens == 1 and out.text == ""


@pytest.mark.parametrize("shape", [dict(depth=3), dict(tree="3,2.1,2.1,3"), dict(tree="2,2.2")])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 3.0])
def test_greedy_equals_plain_decoding_under_a_repetition_penalty(decoder, prompt, shape, penalty):
    plain = decoder(noise(1)).generate(prompt, max_new_tokens=LENGTH, repetition_penalty=penalty)
    out = decoder(noise(1), noise(1), **shape).generate(prompt, max_new_tokens=LENGTH, repetition_penalty=penalty)
    assert out.tokens == plain.tokens
    assert max(out.accept_lengths) > 1
    # By hand: the penalty of every token depends on all tokens before it, those of its own block included.
    history = [0]
    for token in plain.tokens[0]:
        logits = noise(1)(tuple(history))
        for seen in set(history):
            logits[seen] = logits[seen] * penalty if logits[seen] < 0 else logits[seen] / penalty
        assert int(logits.argmax()) == token
        history.append(token)


SAMPLERS = {
    "token-match": (TokenMatch, dict(tree="2,1.1")),
    "rejection": (Rejection, dict(depth=3)),
    "multi-step": (MultiStep, dict(tree="2,1.1")),
    "without-replacement": (WithoutReplacement, dict(tree="3,2.1,1")),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_reproduces_bit_for_bit_and_nothing_is_changed(decoder, prompt, name):
    verifier, shape = SAMPLERS[name]
    made = decoder(noise(1), noise(2), sampling=verifier(), **shape)
    sampling = dict(max_new_tokens=LENGTH, temperature=0.8, top_k=12, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
    torch.manual_seed(0)
    first = made.generate(prompt, seed=3, **sampling)
    torch.manual_seed(1)
    second = made.generate(prompt, seed=3, **sampling)
    assert first.tokens == second.tokens and first.accept_lengths == second.accept_lengths
    others = [made.generate(prompt, seed=seed, **sampling).tokens for seed in (4, 5)]
    assert first.tokens not in others
    assert made.generate(prompt, **sampling).tokens != made.generate(prompt, **sampling).tokens
    for prefix, logits in made.target._known.items():
        assert torch.equal(logits, noise(1)(prefix)), "the target's logits were changed in place"
    assert prompt.tolist() == [[0]]


@pytest.mark.parametrize("name", ["rejection", "multi-step", "without-replacement"])  # token-match draws for itself
def test_a_draft_equal_to_the_target_is_always_accepted(decoder, prompt, name):
    verifier, _ = SAMPLERS[name]
    out = decoder(noise(1), depth=3, sampling=verifier()).generate(
        prompt, max_new_tokens=LENGTH, temperature=1.0, seed=0
    )
    assert set(out.accept_lengths[:-1]) == {4}


def test_events_come_in_order(decoder, prompt):
    seen = []

    class Watch:
        @hookimpl
        def generation_started(self, state):
            seen.append(("started", list(state.tokens[0])))

        @hookimpl
        def step_finished(self, state, tree, verdict):
            seen.append(("step", list(state.tokens[0]), tree.shape, int(verdict.num_accepted)))

        @hookimpl
        def generation_finished(self, state, generation):
            seen.append(("finished", generation.tokens[0]))

    decoder(counting, depth=2, observers=[Watch()]).generate(prompt, max_new_tokens=6)
    assert seen == [
        ("started", [1]),
        ("step", [1, 2, 3, 4], (1, 3), 2),
        ("step", [1, 2, 3, 4, 5, 6], (1, 3), 1),
        ("finished", [1, 2, 3, 4, 5, 6]),
    ]


def test_generations_follow_each_other_without_a_trace(decoder, prompt):
    made = decoder(noise(1), noise(1), depth=3)
    long = made.generate(torch.tensor([[0, 5, 6, 7]]), max_new_tokens=20)
    short = made.generate(prompt, max_new_tokens=4)
    assert made.generate(torch.tensor([[0, 5, 6, 7]]), max_new_tokens=20).tokens == long.tokens
    assert made.generate(prompt, max_new_tokens=4).tokens == short.tokens
    assert long.prompt_tokens == 4


REFUSED = [
    (torch.zeros(1, 0, dtype=torch.long), {}, "prompt: expected at least one token, got an empty prompt"),
    (
        torch.zeros(3, dtype=torch.long),
        {},
        r"prompt: expected int64 token ids \[B, L\], got torch.int64 of shape \(3,\)",
    ),
    (torch.zeros(1, 3), {}, r"prompt: expected int64 token ids \[B, L\], got torch.float32"),
    (torch.tensor([[0, 32]]), {}, "prompt: expected token ids 0 to 31, got 0 to 32"),
    (torch.tensor([[-1]]), {}, "prompt: expected token ids 0 to 31, got -1 to -1"),
    ("text", {}, r"prompt: expected token ids \[B, L\], got text; this decoder has no tokenizer"),
    *(
        (prompt, {}, r"prompt: expected a string, int64 token ids \[B, L\] or messages such as .*, got ")
        for prompt in (None, 5, [1, 2], ["a", "b"], {"role": "user", "content": "a"}, [{"content": "a"}])
    ),
    (torch.tensor([[0]]), dict(temperature="1"), "temperature: expected a number, got '1'"),
    (
        torch.tensor([[0]]),
        dict(temprature=1.0),
        "generate: unknown setting 'temprature'; known: max_new_tokens, temperature",
    ),
    (torch.tensor([[0]]), dict(stop=["x"]), "stop: stop strings need a tokenizer"),
    (torch.tensor([[0]]), dict(max_new_tokens=0), "max_new_tokens: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("ids", "settings", "message"), REFUSED)
def test_bad_input_is_refused_in_one_line(decoder, ids, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        decoder(counting).generate(ids, **settings)
    assert "\n" not in str(caught.value)


def test_a_text_becomes_a_message_where_there_is_a_template_and_is_cut(decoder, pieces):
    tokenizer = pieces(["a", "b", "c"])
    plain = decoder(counting, tokenizer=tokenizer)
    assert plain.as_prompt("abc") == "abc" == plain.as_prompt("abc", most=3)
    assert plain.as_prompt("abcab", most=4) == "abca"
    assert plain.as_prompt("abc", chat=True, most=2) == [{"role": "user", "content": "ab"}]
    tokenizer.chat_template = "{{ messages }}"
    assert plain.as_prompt("abc") == [{"role": "user", "content": "abc"}]
    assert plain.as_prompt("abc", chat=False) == "abc"
    assert decoder(counting).as_prompt("abc") == "abc", "no tokenizer is needed"


def test_messages_need_a_chat_template(decoder, pieces):
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        decoder(counting, tokenizer=pieces(["a"])).generate([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="prompt: expected some text, got an empty prompt"):
        decoder(counting, tokenizer=pieces(["a"])).generate("")
    with pytest.raises(ValueError, match="stream: expected a decoder with a tokenizer"):
        decoder(counting).stream(torch.tensor([[0]]))


def test_several_rows_are_refused():
    from specdecodes import load

    with pytest.raises(ValueError, match=r"expected one row \(B = 1\), got 2"):
        load(toy_model("llama"), mode="naive").generate(torch.ones(2, 3, dtype=torch.long))


def test_a_mode_that_cannot_sample_says_so_before_it_starts(decoder, prompt):
    made = decoder(counting)
    made.sampling = "no verifier fits"
    with pytest.raises(ValueError, match=r"mode 'literal' cannot decode at temperature 0\.7: no verifier fits"):
        made.generate(prompt, temperature=0.7)
    assert made.target.committed == []


def test_the_literal_target_is_strict():
    target = LiteralTarget(counting, 32)
    target.prefill(torch.tensor([[0]]))
    with pytest.raises(AssertionError, match="no tree has been scored"):
        target.commit(torch.tensor([[0]]))
