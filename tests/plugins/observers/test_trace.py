"""Every step's tree and what became of it: recorded, and printed in colours or with marks."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import specdecodes
from specdecodes.core.decoder import Generation
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.observers.show_trees import ShowTrees
from specdecodes.plugins.observers.trace import KINDS, Step, StepObserver, Trace, headline, step_of
from specdecodes.testing.toys import toy_model

PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
TEXTS = {20: "The", 21: " sky", 22: " is", 23: "\n", 24: " was", 25: " blue"}
TREE = Tree(torch.tensor([[20, 21, 24, 22, 23, 0]]), torch.tensor([[-1, 0, 0, 1, 1, 0]]), torch.tensor([5]))
VERDICT = Verdict(torch.tensor([[0, 1, 3]]), torch.tensor([2]), torch.tensor([25]))


class Words:
    """A tokenizer of six words."""

    def decode(self, tokens: list[int], **settings: Any) -> str:
        return "".join(TEXTS[token] for token in tokens)


# Steps


def test_a_step_by_hand() -> None:
    step = step_of(TREE, VERDICT, 3)
    assert step == Step(
        [20, 21, 24, 22, 23, 25],
        [-1, 0, 0, 1, 1, 3],
        ["root", "accepted", "rejected", "accepted", "rejected", "bonus"],
    )
    assert headline(7, step.kinds) == "step 7: 2 of 4 drafted tokens accepted, 3 emitted"
    assert set(step.kinds) < set(KINDS)


@pytest.mark.parametrize(
    ("emitted", "kinds"),
    [
        (2, ["root", "accepted", "rejected", "accepted", "rejected"]),  # the bonus came too late
        (1, ["root", "accepted", "rejected", "cut", "rejected"]),
    ],
)
def test_what_the_end_of_the_answer_cut_is_not_called_rejected(emitted: int, kinds: list[str]) -> None:
    assert step_of(TREE, VERDICT, emitted).kinds == kinds


def test_plain_decoding_has_a_root_and_a_bonus() -> None:
    tree = Tree(torch.tensor([[20]]), torch.tensor([[-1]]))
    step = step_of(tree, Verdict(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([21])), 1)
    assert step == Step([20, 21], [-1, 0], ["root", "bonus"])
    assert headline(1, step.kinds) == "step 1: no draft, 1 emitted"


@pytest.mark.parametrize("mode", ["naive", "sd", "stree", "ngram"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampling"])
def test_the_steps_of_a_decode_spell_its_answer(mode: str, sampling: dict[str, Any]) -> None:
    draft = toy_model("bamba") if mode in ("sd", "stree") else None  # the target itself: much is accepted
    decoder = specdecodes.load(toy_model("bamba"), draft, mode, observers=["trace", "trace"])
    plain = specdecodes.load(toy_model("bamba"), draft, mode)
    generation = decoder.generate(PROMPT, max_new_tokens=18, **sampling)
    assert generation.tokens == plain.generate(PROMPT, max_new_tokens=18, **sampling).tokens
    steps: list[Step] = generation.extras["steps"]
    assert len(steps) == len(generation.accept_lengths)
    told = generation.tokens[0][:1]
    for step, emitted in zip(steps, generation.accept_lengths, strict=True):
        assert step.tokens[0] == told[-1] and step.kinds[0] == "root"
        node = 0
        for _ in range(emitted):
            (node,) = (
                n
                for n, (parent, kind) in enumerate(zip(step.parents, step.kinds, strict=True))
                if parent == node and kind in ("accepted", "bonus")
            )
            told.append(step.tokens[node])
    assert told == generation.tokens[0]


def test_every_step_of_a_base_has_to_be_looked_at() -> None:
    with pytest.raises(NotImplementedError):
        StepObserver().seen(SimpleNamespace(), Step([20], [-1], ["root"]))  # type: ignore[arg-type]


# Printing

LEGEND = "[accepted]  (rejected)  <bonus: the target's own>  {cut: accepted, but the answer had ended}\n\n"
STEP = """\
step 1: 2 of 4 drafted tokens accepted, 3 emitted
The
├─ [␣sky]
│  ├─ [␣is]
│  │  └─ <␣blue>
│  └─ (↵)
└─ (␣was)

"""


def printed(emitted: int = 3, tokenizer: object = None, **console: Any) -> str:
    """What the observer prints of the step above."""
    out = io.StringIO()
    context: Any = SimpleNamespace(tokenizer=tokenizer)
    observer = ShowTrees(context, Console(file=out, width=20, **console))
    state: Any = SimpleNamespace(accept_lengths=[emitted], extras={"uncut": VERDICT})
    observer.generation_started()
    observer.step_finished(state, TREE)
    return out.getvalue()


def test_without_colours_there_are_marks() -> None:
    assert printed(tokenizer=Words()) == LEGEND + STEP


def test_what_was_cut_is_marked_too() -> None:
    lines = printed(1, Words()).splitlines()
    assert lines[2] == "step 1: 1 of 4 drafted tokens accepted, 1 emitted"
    assert lines[4:] == ["├─ [␣sky]", "│  ├─ {␣is}", "│  └─ (↵)", "└─ (␣was)", ""]


def test_no_color_means_marks_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(tokenizer=Words(), force_terminal=True, color_system="standard") == LEGEND + STEP


def test_a_terminal_gets_colours_in_the_place_of_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = printed(tokenizer=Words(), force_terminal=True, color_system="standard")
    green, red, cyan, end = "\x1b[1;32m", "\x1b[31m", "\x1b[1;36m", "\x1b[0m"
    assert out.splitlines()[3:] == [
        "The",
        f"├─ {green}␣sky{end}",
        f"│  ├─ {green}␣is{end}",
        f"│  │  └─ {cyan}␣blue{end}",
        f"│  └─ {red}↵{end}",
        f"└─ {red}␣was{end}",
        "",
    ]
    assert out.startswith(f"{green}accepted{end}  {red}rejected{end}  {cyan}bonus")


def test_ids_where_there_is_no_tokenizer() -> None:
    assert "├─ [#21]\n" in printed()


def test_steps_are_handed_over_with_the_generation() -> None:
    state: Any = SimpleNamespace(accept_lengths=[3], extras={"uncut": VERDICT})
    observer = Trace()
    observer.generation_started(state)
    observer.step_finished(state, TREE)
    generation = Generation([[20, 21, 22, 25]], "", [3], {}, 1)
    observer.generation_finished(state, generation)
    assert [step.tokens for step in generation.extras["steps"]] == [[20, 21, 24, 22, 23, 25]]
