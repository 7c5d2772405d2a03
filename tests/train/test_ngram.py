"""The table of a recipe: its training documents and the answers, in the target's vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedTokenizerFast

from specdecodes.plugins.drafters.ngram_table import KEY_BITS, NgramTable
from specdecodes.train.__main__ import main
from specdecodes.train.ngram import build_table
from specdecodes.train.recipe import load_recipe

VOCAB = 320  # wider than the tokenizer, as padded embeddings are


@pytest.fixture
def target(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tokenizer and a configuration; no weights are needed."""
    folder = tmp_path / "target"
    tokenizer.save_pretrained(folder)
    AutoConfig.for_model("mamba2", vocab_size=VOCAB).save_pretrained(folder)
    return str(folder)


def successors(table: NgramTable, *context: int) -> dict[int, float]:
    key = 0
    for token in context:
        key = key << KEY_BITS | token + 1
    row = table.lookup.rows[len(context)].get(key)
    return {} if row is None else dict(table.lookup.successors(row))


def test_documents_and_answers_are_counted(
    make_recipe: Callable[..., Path], data: Path, target: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe())
    plus, question, letter = (tokenizer.encode(text)[0] for text in ("+", "?", "z"))
    answers = [[{"role": "user", "content": "+z"}, {"role": "assistant", "content": "z"}]] * 2

    def build(name: str, *more: object) -> tuple[dict, NgramTable]:
        outcome = build_table(recipe, tmp_path / "out" / name, target, data, *more)
        return outcome, NgramTable.load(tmp_path / "out" / name, VOCAB)

    outcome, without = build("a")
    assert outcome["documents"] == 27 and outcome["answers"] == 0  # a tenth is held out
    assert max(successors(without, plus).values()) > 0.9 and letter not in successors(without, plus)
    assert list(successors(without, question)) == [tokenizer.eos_token_id]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    outcome, once = build("b", answers)
    assert outcome["answers"] == 2 and outcome["contexts"] == list(once.orders)
    assert outcome["bytes"] == (tmp_path / "out" / "b").stat().st_size
    _, often = build("c", answers, 1_000_000, 20)
    assert 0 < successors(once, plus)[letter] < successors(often, plus)[letter]
    with pytest.raises(ValueError, match="answer_weight: expected at least 1, got 0"):
        build("d", answers, 1_000_000, 0)


def test_the_command(make_recipe: Callable[..., Path], data: Path, target: str, tmp_path: Path) -> None:
    output = tmp_path / "ngram.safetensors"
    common = ["ngram", "--recipe", str(make_recipe()), "--data", str(data), "--output", str(output)]
    assert main([*common, "--target", target, "--max-bytes", "2500"]) == 0
    assert output.stat().st_size <= 2500
    assert NgramTable.load(output).vocab_size == VOCAB


def test_bad_input_gives_one_line(
    make_recipe: Callable[..., Path], data: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ngram.safetensors"
    common = ["ngram", "--recipe", str(make_recipe()), "--data", str(data), "--output", str(output)]
    for arguments, message in (
        (["--target", str(tmp_path / "none")], "--target: expected a model with a tokenizer, got"),
        (["--target", target, "--max-bytes", "7"], "max_bytes: expected at least"),
    ):
        assert main([*common, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not list(tmp_path.glob("ngram*"))
