"""The potential score on tiny pairs: against dense forwards, against decodes, and its files."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specdecodes.benchmark.score import DraftScore, Score, ScoreSettings, score
from specdecodes.benchmark.score_files import check_plot, draw, to_csv, write_files

Make = Callable[..., ScoreSettings]


def noisy(model: PreTrainedModel, amount: float) -> PreTrainedModel:
    """A weakened copy: every weight matrix with noise of ``amount`` times its own spread."""
    weak = deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in weak.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * weight.std() * amount)
    weak.name_or_path = f"noise {amount}"
    return weak


@pytest.fixture
def make(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Make:
    def settings(**changes: Any) -> ScoreSettings:
        values: dict[str, Any] = {
            "target": model,
            "drafts": (model,),
            "tokenizer": tokenizer,
            "limit": 3,
            "max_tokens": 16,
            "depth": 3,
            "ranks": 4,
        }
        return ScoreSettings(**{**values, **changes})

    return settings


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_target_is_its_own_best_draft(make: Make, temperature: float) -> None:
    found = score(make(temperature=temperature, measure=True))
    (own,) = found.drafts
    assert own.kl == pytest.approx(0.0, abs=1e-4) and own.overlap == pytest.approx(1.0, abs=1e-4)
    assert own.greedy[0] == [1.0, 0.0, 0.0, 0.0]
    assert own.tau == pytest.approx(own.measured_tau, rel=1e-3) and own.tau > 3.5
    assert (own.sampled is None) == (temperature == 0)
    assert sum(row["steps"] for row in own.texts) == pytest.approx(found.tokens / own.tau)


def test_divergences_on_text_are_those_of_dense_forwards(make: Make, tmp_path: Path) -> None:
    other = noisy(make().target, 0.5)
    text = "Compose a short poem about two rivers that never meet."
    (tmp_path / "a.txt").write_text(text)
    settings = make(drafts=(other,), dataset=str(tmp_path / "a.txt"), on="text", temperature=0.7, max_tokens=20)
    found = score(settings)
    ids = torch.tensor([settings.tokenizer.encode(text)])[:, :21]
    assert ids.shape[1] == 21 and (found.tokens, found.texts) == (19, 1)
    with torch.no_grad():
        logp, logq = ((m(ids).logits[0, 1:-1].double() / 0.7).log_softmax(-1) for m in (settings.target, other))
    (draft,) = found.drafts
    assert draft.kl == pytest.approx(float((logp.exp() * (logp - logq)).sum(-1).mean()), rel=1e-4)
    assert draft.overlap == pytest.approx(float(torch.minimum(logp.exp(), logq.exp()).sum(-1).mean()), rel=1e-4)
    assert 0.1 < draft.overlap < 0.95 and draft.unknown == pytest.approx(0, abs=1e-9)


def test_tokens_per_step_on_text_follow_the_overlap_and_not_the_text(make: Make, tmp_path: Path) -> None:
    """Chains of 1 take as many tokens as the laws overlap, on a text that neither model would write."""
    (tmp_path / "a.txt").write_text("zq# 9}vx ;;K0 ~hj wWq @p3 |fx ^^ yY8 {kz")
    settings = make(drafts=(noisy(make().target, 0.5),), dataset=str(tmp_path / "a.txt"), on="text", depth=1)
    (draft,) = score(settings).drafts
    assert draft.overlap is not None
    assert draft.tau == pytest.approx(1 + draft.overlap, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ranking_agrees_with_measured_tau(make: Make, temperature: float) -> None:
    """Three drafters and an index: the order of the score is the order of decodes, and so are the numbers."""
    target = make().target
    drafts = (noisy(target, 0.6), "ngram", target, noisy(target, 0.15))
    found = score(make(drafts=drafts, limit=12, max_tokens=40, temperature=temperature, measure=True))
    taus = [(draft.tau, draft.measured_tau) for draft in found.drafts]
    assert len(taus) == 4 and taus == sorted(taus, reverse=True)
    measured = [own for _, own in taus]
    assert measured == sorted(measured, reverse=True)
    for tau, own in taus:
        assert tau == pytest.approx(own, rel=1e-6 if temperature == 0 else 0.12)
    models = [draft for draft in found.drafts if draft.probabilities]
    assert [draft.draft for draft in models] == ["bamba", "noise 0.15", "noise 0.6"]
    assert [d.kl for d in models] == sorted(d.kl for d in models)
    assert [d.overlap for d in models] == sorted((d.overlap for d in models), reverse=True)


def test_a_drafter_without_probabilities_has_acceptance_vectors_only(make: Make) -> None:
    (index,) = score(make(drafts=("ngram",))).drafts
    assert (index.probabilities, index.kl, index.overlap, index.unknown) == (False, None, None, None)
    assert len(index.greedy) == 3 and all(len(ranks) == 4 for ranks in index.greedy)
    assert index.sampled is not None and sum(index.sampled[0]) > 0
    assert index.greedy_reached[0] >= index.greedy_reached[1]


def test_texts_that_cannot_be_scored_are_named(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Name a gas."}\n{"text": "x"}\n')
    found = score(make(dataset=str(path), on="text"))
    assert (found.texts, found.skipped) == (1, ["text 2: expected at least 2 tokens to score, got 0"])
    path.write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match="expected a text that can be scored, got none; text 1: expected at least 2"):
        score(make(dataset=str(path), on="text"))
    with pytest.raises(ValueError, match=r"text 3: .*256 positions"):
        score(make(max_tokens=300))


@pytest.mark.slow
def test_a_range_of_the_texts_is_scored(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"Name {n} gases and {n} rivers."}) + "\n" for n in range(6)))
    on_text = {"dataset": str(path), "on": "text"}
    found = score(make(**on_text, start=2, end=5, limit=None))
    assert [row["text"] for row in found.drafts[0].texts] == [2, 3, 4]
    assert score(make(**on_text, start=2, end=5, limit=2)).texts == 2
    assert score(make(**on_text, start=2, limit=None)).texts == 4
    with pytest.raises(ValueError, match="expected at least one text after the first 6, got none"):
        score(make(**on_text, start=6))


@pytest.mark.slow
def test_without_a_number_24_texts_are_scored(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "Name a gas."}\n' * 30)
    assert score(make(dataset=str(path), on="text", limit=None)).texts == 24
    assert score(make(dataset=str(path), on="text", limit=None, end=27)).texts == 27


def test_what_the_cache_cannot_hold_is_left_out(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "Name a gas."}\n' + json.dumps({"text": "two rivers " * 40}) + "\n")
    found = score(make(dataset=str(path), on="text", max_tokens=100, max_length=30))
    assert found.texts == 1
    (line,) = found.skipped
    assert line.startswith("text 2: ") and "the static cache holds 30 positions" in line


def test_long_prompts_are_cut_and_first_turns_taken(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": 1, "turns": ["two rivers " * 200, "And then?"]}) + "\n")
    assert score(make(dataset=str(path), prompt_tokens=8)).texts == 1
    with pytest.raises(ValueError, match="256 positions"):
        score(make(dataset=str(path), prompt_tokens=300))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"start": -1}, "start: expected 0 or more, got -1"),
        ({"start": 4, "end": 4}, r"end: expected more than start \(4\), got 4"),
        ({"max_tokens": 1}, "max_tokens: expected at least 2, got 1"),
        ({"depth": 0}, "depth: expected at least 1"),
        ({"ranks": 0}, "ranks: expected at least 1"),
        ({"prompt_tokens": 0}, "prompt_tokens: expected at least 1"),
        ({"temperature": -1.0}, "temperature: expected 0"),
        ({"on": "prompts"}, "on: expected answers or text, got 'prompts'"),
        ({"on": "text", "measure": True}, "measure: expected on='answers'"),
        ({"on": "text", "chat": False}, "chat: expected on='answers'"),
        ({"drafts": ()}, "draft: expected at least one drafter"),
    ],
)
def test_bad_settings_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_the_embedded_target_brings_its_own_drafters() -> None:
    assert ScoreSettings().drafts == ("ngram", "mamba2")


# Files


def two() -> Score:
    model = DraftScore("m", True, 0.5, 0.0, 0.7, 2.0, [[0.5, 0.25]], [9.0], [[0.4, 0.2]], [8.0], [], 1.9)
    index = DraftScore("i", False, None, None, None, 1.5, [[0.3, 0.1]], [9.0], [[0.2, 0.1]], [8.0], [], None)
    return Score({"depth": 1, "temperature": 1.0}, "float32", 1, 9, [], [model, index])


def test_csv_has_one_number_a_line() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(two()))))
    values = {(r["draft"], r["measure"], r["depth"], r["rank"]): r["value"] for r in lines}
    assert len(values) == len(lines) == 2 * (5 + 2 * 3)
    assert values["m", "kl", "", ""] == "0.5" and values["i", "kl", "", ""] == ""
    assert values["m", "greedy", "1", "2"] == "0.25" and values["i", "sampled", "1", "1"] == "0.2"
    assert values["m", "sampled reached", "1", ""] == "8.0"


def test_files_are_written_together(tmp_path: Path) -> None:
    paths = write_files(tmp_path / "new" / "folder", two(), {"command": "score"}, None)
    assert [path.name for path in paths] == ["score.json", "score.csv"]
    written = json.loads(paths[0].read_text())
    assert written["session"] == {"command": "score"} and written["drafts"][0]["kl"] == 0.5
    assert written["definitions"].keys() >= {"kl", "overlap", "tau", "greedy", "sampled"}


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot(kind: str, begins: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(two(), kind).startswith(begins)
    path = write_files(tmp_path, two(), {}, kind)[-1]
    assert path.name == f"score.{kind}" and path.read_bytes().startswith(begins)


def test_plot_without_matplotlib_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check_plot(None)
    with pytest.raises(ValueError, match=r"expected matplotlib .* pip install 'specdecodes\[pictures\]'"):
        write_files(tmp_path / "new", two(), {}, "svg")
    assert not (tmp_path / "new").exists()
