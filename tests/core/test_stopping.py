"""Where an answer ends: end of text, stop strings, max_new_tokens; and what the stream gives out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.text import StopStrings, TextStream
from specdecodes.core.tree import Tree, Verdict
from specdecodes.testing import LiteralTarget

CHAIN = torch.tensor([[-1, 0, 1, 2]])
TOKENS = [10, 11, 12]
BONUS = 13


def step(eos=(), max_new=99, accepted=3, **params):
    """A state after its first token (9), and the verdict of a step that accepts a chain of three and a bonus."""
    target = LiteralTarget(lambda prefix: torch.eye(32)[9], 32, eos_ids=eos)
    state = DecodeState(target, torch.tensor([[1, 2]]), SamplingParams(max_new_tokens=max_new, **params), eos_ids=eos)
    state.first(target.prefill(state.prompt))
    tree = Tree(torch.tensor([[9, *TOKENS]]), CHAIN)
    path = torch.arange(4)[None].masked_fill(torch.arange(4)[None] > accepted, -1)
    emitted = [*TOKENS, BONUS] if accepted == 3 else [*TOKENS[:accepted], BONUS]
    return state, tree, Verdict(path, torch.tensor([accepted]), torch.tensor([emitted[-1]]))


def after(state, tree, verdict):
    clipped = state.clip(verdict, tree)
    state.advance(clipped)
    return clipped


def test_an_uncut_verdict_is_passed_on_as_it_is():
    state, tree, verdict = step()
    assert after(state, tree, verdict) is verdict
    assert state.tokens == [[9, 10, 11, 12, 13]] and state.history == [[1, 2, 9, 10, 11, 12, 13]]
    assert state.root.tolist() == [[13]] and state.accept_lengths == [4] and not state.finished


@pytest.mark.parametrize("end", [10, 11, 12, 13])
def test_end_of_text_cuts_at_every_position_of_a_block(end):
    state, tree, verdict = step(eos=(end, 31))
    clipped = after(state, tree, verdict)
    emitted = [10, 11, 12, 13][: end - 9]
    assert state.tokens == [[9, *emitted]] and state.finished
    # The last token emitted is never committed: one node fewer than tokens, the root included.
    assert clipped.path[0].tolist() == [*range(len(emitted)), *([-1] * (4 - len(emitted)))]
    assert clipped.num_accepted.tolist() == [len(emitted) - 1] and clipped.bonus.tolist() == [end]
    assert state.accept_lengths == [len(emitted)]


def test_end_of_text_is_ignored_when_asked_to():
    state, tree, verdict = step(eos=(10,), ignore_eos=True)
    assert after(state, tree, verdict) is verdict
    assert not state.finished


@pytest.mark.parametrize("max_new", range(2, 8))
def test_max_new_tokens_cuts_a_block(max_new):
    state, tree, verdict = step(max_new=max_new)
    clipped = after(state, tree, verdict)
    assert len(state.tokens[0]) == min(max_new, 5)
    assert state.finished == (max_new <= 5)
    assert int(clipped.num_accepted) == min(max_new, 5) - 2


def test_the_first_token_may_be_the_last():
    for settings_ in (dict(max_new=1), dict(eos=(9,))):
        state, _, _ = step(**settings_)
        assert state.tokens == [[9]] and state.finished and state.accept_lengths == []


def test_the_earlier_of_two_ends_counts():
    state, tree, verdict = step(eos=(12,), max_new=3)
    after(state, tree, verdict)
    assert state.tokens == [[9, 10, 11]]
    state, tree, verdict = step(eos=(10,), max_new=3)
    after(state, tree, verdict)
    assert state.tokens == [[9, 10]]


def test_rows_end_on_their_own():
    target = LiteralTarget(lambda prefix: torch.eye(32)[9], 32)
    state = DecodeState(target, torch.tensor([[1], [2], [3]]), SamplingParams(max_new_tokens=8), eos_ids=[11])
    state.first(target.prefill(state.prompt))
    tree = Tree(torch.tensor([[9, 10, 11, 12], [9, 20, 21, 22], [9, 11, 1, 1]]), CHAIN.repeat(3, 1))
    path = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1], [0, 1, 2, 3]])
    verdict = Verdict(path, torch.tensor([3, 1, 3]), torch.tensor([13, 23, 13]))
    clipped = after(state, tree, verdict)
    assert state.tokens == [[9, 10, 11], [9, 20, 23], [9, 11]]
    assert state.done == [True, False, True] and not state.finished
    assert clipped.path.tolist() == [[0, 1, -1, -1], [0, 1, -1, -1], [0, -1, -1, -1]]
    assert clipped.num_accepted.tolist() == [1, 1, 0]
    before = [list(row) for row in state.tokens]
    after(state, tree, verdict)
    assert state.tokens[0] == before[0] and state.tokens[2] == before[2] and len(state.tokens[1]) == 5


# -- whole decodes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 3, 4])
@pytest.mark.parametrize("end", range(1, 12))
def test_a_decode_ends_with_its_end_of_text_wherever_it_falls(decoder, script, prompt, depth, end):
    says = [3, *range(10, 10 + end - 1), 2, *range(20, 30)]
    made = decoder(script(says), depth=depth, eos=[2])
    out = made.generate(prompt, max_new_tokens=30)
    assert out.tokens == [says[: end + 1]]
    assert sum(out.accept_lengths) == end
    assert made.target.committed == [[0, *says[:end]]]
    assert len(made.generate(prompt, max_new_tokens=end + 5, ignore_eos=True).tokens[0]) == end + 5


@pytest.mark.parametrize("tree", ["", "4", "3,2.1,2.1,3"])
def test_max_new_tokens_is_exact(decoder, script, prompt, tree):
    made = decoder(script(list(range(1, 31))), depth=0 if tree else 4, tree=tree)
    for count in range(1, 15):
        out = made.generate(prompt, max_new_tokens=count)
        assert out.tokens == [list(range(1, count + 1))]
        assert sum(out.accept_lengths) == count - 1
        assert made.target.committed == [[0, *range(1, count)]]


WORDS = [
    " ",
    "a",
    "b",
    "E",
    "N",
    "D",
    "EN",
    "DE",
    "ND.",
    "END",
    "xEN",
    "Dx",
    "\n",
    "\n\n",
    *(bytes([i]) for i in "é漢🙂".encode()),
]
BYTES = {
    character: [14 + at for at in range(start, start + len(character.encode()))]
    for character, start in (("é", 0), ("漢", 2), ("🙂", 5))
}

STOPPED = {
    "one token": ([1, 9, 1, 1], ("END",), 2, "a"),
    "over three tokens": ([1, 3, 4, 5, 1], ("END",), 4, "a"),
    "completed inside a token": ([1, 6, 11, 1], ("END",), 3, "a"),
    "begun inside a token": ([1, 10, 5, 1], ("END",), 3, "ax"),
    "more follows in the token": ([1, 3, 8, 1], ("END",), 3, "a"),
    "after a near miss": ([6, 6, 5, 1], ("END",), 3, "EN"),
    "never": ([6, 1, 6, 1], ("END",), 4, "ENaENa"),
    "the first of several": ([1, 2, 9], ("END", "b"), 2, "a"),
    "one inside another": ([1, 3, 4, 5], ("END", "N"), 3, "aE"),
    "in the first token": ([9, 1, 1], ("END",), 1, ""),
    "double newline": ([1, 12, 12, 1], ("\n\n",), 3, "a"),
    "a character of three bytes": ([1, *BYTES["漢"], 1], ("漢",), 4, "a"),
}


@pytest.mark.parametrize("case", STOPPED)
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_stop_strings_end_the_answer(decoder, script, prompt, pieces, case, depth):
    says, stop, count, text = STOPPED[case]
    made = decoder(script([*says, *([1] * 8)]), depth=depth, tokenizer=pieces(WORDS))
    limit = len(says)
    out = made.generate(prompt, stop=stop, max_new_tokens=limit)
    assert out.tokens == [says[:count]]
    assert out.text == text
    assert sum(out.accept_lengths) == count - 1
    given_out = list(made.stream(prompt, stop=stop, max_new_tokens=limit))
    assert "".join(given_out) == text
    assert all(given_out)
    if len(stop) == 1:
        assert made.generate(prompt, stop=stop[0], max_new_tokens=limit).tokens == out.tokens


def test_stop_strings_may_use_what_is_longer_than_a_block(decoder, script, prompt, pieces):
    says = [1] * 3 + [2] * 12 + [1] * 5
    made = decoder(script(says), depth=3, tokenizer=pieces(WORDS))
    out = made.generate(prompt, stop=["b" * 12], max_new_tokens=20)
    assert out.tokens == [says[:15]] and out.text == "aaa"


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_a_stream_never_gives_out_half_a_character(decoder, script, prompt, pieces, depth):
    says = [1, *BYTES["é"], *BYTES["漢"], 2, *BYTES["🙂"], *BYTES["🙂"], 1]
    made = decoder(script(says), depth=depth, tokenizer=pieces(WORDS))
    for count in range(1, len(says) + 1):
        text = made.generate(prompt, max_new_tokens=count).text
        given_out = list(made.stream(prompt, max_new_tokens=count))
        assert "".join(given_out) == text
        assert not any("\ufffd" in piece for piece in given_out[:-1])
    assert text == "aé漢b🙂🙂a"


def test_a_stream_comes_piece_by_piece(decoder, script, prompt, pieces):
    made = decoder(script([1, 2, 1, 2, 1, 2, 1]), depth=2, tokenizer=pieces(WORDS))
    assert list(made.stream(prompt, max_new_tokens=7)) == ["a", "bab", "aba"]
    first = next(iter(made.stream(prompt, max_new_tokens=7)))
    assert first == "a"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "é", b"\xf0\x9f", b"\x99\x82"]), min_size=1, max_size=14),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_stopping_and_streaming_equal_the_whole_text(tokens, stop):
    words = [piece if isinstance(piece, bytes) else piece.encode() for piece in tokens]

    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return b"".join(words[i] for i in ids).decode("utf-8", errors="replace")

    tokenizer, strings = Tokenizer(), StopStrings(Tokenizer(), stop)
    stream, given_out = TextStream(tokenizer, strings), ""
    expected = next(
        (n for n in range(1, len(words) + 1) if any(s in tokenizer.decode(range(n), True) for s in stop)), len(words)
    )
    for count in range(1, len(words) + 1):
        ends = strings.completed_by(list(range(count))) or count == len(words)
        assert ends == (count == expected) or count > expected
        given_out += stream.push(list(range(count)), final=ends)
        if ends:
            break
    assert count == expected
    assert given_out == strings.cut(tokenizer.decode(range(count), True))
