"""Runs on a tiny random hybrid: every mode, files, resume after a kill, modes that are wrong."""

from __future__ import annotations

import ast
import glob
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import specdecodes
from specdecodes.benchmark.journal import Journal
from specdecodes.benchmark.records import QuestionRecord
from specdecodes.benchmark.runner import run
from specdecodes.benchmark.settings import RunSettings
from specdecodes.benchmark.summary import PARTS, Summary
from specdecodes.benchmark.watcher import Watcher
from specdecodes.core.decoder import Decoder
from specdecodes.plugins.verifiers.greedy import Greedy

Make = Callable[..., RunSettings]
PIECES = ("journal.jsonl", "model_answer/bamba-naive.jsonl", "model_answer/bamba-stree.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(value: Any) -> Any:
    """Records and answers without what a second run measures anew."""
    if isinstance(value, dict):
        left_out = ("seconds", "wall_time", "tstamp", "finished", "peak_bytes", "answer_id")
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    return [without_times(item) for item in value] if isinstance(value, list) else value


class Stops(Watcher):
    """Interrupts before the question with this id; lists what was finished."""

    def __init__(self, before: int | str | None = None) -> None:
        self.before = before
        self.done: list[int | str] = []
        self.asked: list[tuple[int | str, str]] = []
        self.ends = 0

    def asking(self, question: Any, mode: str) -> None:
        if question.question_id == self.before:
            raise KeyboardInterrupt
        self.asked.append((question.question_id, mode))

    def finished(self, record: QuestionRecord) -> None:
        self.done.append(record.question_id)

    def ended(self) -> None:
        self.ends += 1


# What a run gives


@pytest.fixture(scope="module")
def all_modes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Summary, Path, Stops]:
    """A run over every mode, two repeats of a question of two turns, in float64."""
    folder = tmp_path_factory.mktemp("all")
    question = {"question_id": 7, "category": "math", "turns": ["What is two and two?", "And three more?"]}
    (folder / "q.jsonl").write_text(json.dumps(question) + "\n")
    watcher = Stops()
    double = type(model)(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    settings = RunSettings(
        target=double,
        draft=double,
        tokenizer=tokenizer,
        modes=("ngram", "sd-classic", "stree", "stree"),
        questions=str(folder / "q.jsonl"),
        max_new_tokens=8,
        repeat=2,
        out_dir=folder / "run",
        log_dir=folder / "log",
    )
    return run(settings, watcher=watcher, command=["bench", "--mode", "a b"]), folder, watcher


def test_every_mode_gives_the_tokens_of_plain_decoding(all_modes: tuple[Summary, Path, Stops]) -> None:
    summary = all_modes[0]
    assert [mode.mode for mode in summary.modes] == ["naive", "ngram", "sd", "stree"]
    for mode in summary.modes:
        assert (mode.answers, mode.compared, mode.equal, mode.valid) == (4, 4, 4, True), mode.mode
        assert mode.mismatches == []
    assert (summary.num_questions, summary.dtype) == (1, "float64")


def test_a_target_that_drafts_for_itself_accepts_every_token(all_modes: tuple[Summary, Path, Stops]) -> None:
    mode = all_modes[0].mode("sd")
    assert mode.components.drafter == "model"
    assert mode.components.draft == "bamba"
    assert mode.offered[0] == mode.accepted[0]
    assert mode.tau > 2
    assert mode.steps < mode.new_tokens - mode.answers
    assert all_modes[0].mode("naive").tau == 1.0


def test_time_is_split_without_rest(all_modes: tuple[Summary, Path, Stops]) -> None:
    for mode in all_modes[0].modes:
        assert mode.seconds["decode"] > 0
        assert mode.seconds["prefill"] > 0
        assert mode.seconds["verify"] > 0
        assert sum(mode.seconds[part] for part in PARTS) == pytest.approx(mode.seconds["decode"], rel=1e-6)
        assert mode.peak_bytes > 1 << 20


def test_all_modes_take_turns_and_the_order_rotates(all_modes: tuple[Summary, Path, Stops]) -> None:
    modes = [mode for _, mode in all_modes[2].asked]
    rounds = [modes[i : i + 4] for i in range(0, len(modes), 4)]
    assert len(rounds) == 4  # two turns, two repeats
    assert all(sorted(one) == ["naive", "ngram", "sd", "stree"] for one in rounds)
    assert [one[0] for one in rounds] == ["naive", "ngram", "ngram", "sd"]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in FastChat's source
def test_answer_files_are_readable_by_fastchat(all_modes: tuple[Summary, Path, Stops]) -> None:
    answers = fastchat_loader()(str(all_modes[1] / "run" / "model_answer"))
    assert sorted(answers) == ["bamba-naive", "bamba-ngram", "bamba-sd", "bamba-stree"]
    line = answers["bamba-stree"][7]
    assert line["model_id"] == "bamba-stree"
    assert line["category"] == "math"
    assert isinstance(line["answer_id"], str) and isinstance(line["tstamp"], float)
    assert [choice["index"] for choice in line["choices"]] == [0, 1]
    assert all(len(choice["turns"]) == 2 for choice in line["choices"])
    assert line["choices"][0]["turns"] == answers["bamba-naive"][7]["choices"][0]["turns"]
    assert len({answers[name][7]["answer_id"] for name in answers}) == 4


def fastchat_loader() -> Callable[[str], dict[str, dict[int, Any]]]:
    """FastChat's own ``load_model_answers``; its module cannot be imported without the clients of paid services."""
    spec = importlib.util.find_spec("fastchat")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "llm_judge" / "common.py"
    functions = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef)]
    wanted = [n for n in functions if n.name == "load_model_answers"]
    names: dict[str, Any] = {"glob": glob, "os": os, "json": json}
    exec(compile(ast.Module(wanted, []), str(source), "exec"), names)
    loader: Callable[[str], dict[str, dict[int, Any]]] = names["load_model_answers"]
    return loader


def test_answer_files_hold_what_spec_bench_reads(all_modes: tuple[Summary, Path, Stops]) -> None:
    for name in ("naive", "stree"):
        (line,) = read_lines(all_modes[1] / "run" / "model_answer" / f"bamba-{name}.jsonl")
        choice = line["choices"][0]
        # Its speed script sums new_tokens and wall_time and averages the flat accept_lengths of all lines.
        assert sum(choice["new_tokens"]) / sum(choice["wall_time"]) > 0
        assert all(isinstance(length, int) for length in choice["accept_lengths"])
        assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - len(choice["turns"])
        assert sum(choice["decoding_steps"]) == len(choice["accept_lengths"])


def test_summary_file_says_where_the_numbers_come_from(all_modes: tuple[Summary, Path, Stops]) -> None:
    summary, folder, _ = all_modes
    values = json.loads((folder / "log" / "summary.json").read_text())
    assert values == json.loads(json.dumps(summary.to_json()))
    assert not (folder / "run" / "summary.json").exists()
    (session,) = values["sessions"]
    assert session["command"] == "bench --mode 'a b'"
    assert session["versions"]["torch"] == torch.__version__
    assert session["hardware"]["threads"] == torch.get_num_threads()
    assert values["settings"]["max_new_tokens"] == 8
    assert values["settings"]["seed"] == 0
    assert str(folder) not in json.dumps(values["settings"]).replace(values["settings"]["questions"], "")
    assert len(values["rows"]) == 16
    assert values["rows"][0].keys() >= {"question_id", "mode", "turn", "repeat", "new_tokens", "steps", "seconds"}


def test_summary_file_is_read_back_and_has_one_line_per_row_and_sample(
    all_modes: tuple[Summary, Path, Stops],
) -> None:
    summary, folder, _ = all_modes
    text = (folder / "log" / "summary.json").read_text()
    assert Summary.from_json(json.loads(text)).to_json() == json.loads(json.dumps(summary.to_json()))
    assert sum(line.startswith('  {"question_id"') for line in text.splitlines()) == len(summary.rows)
    assert sum(line.startswith('  {"mode"') for line in text.splitlines()) == len(summary.samples) == 3


def test_ranks_add_up_to_depths(all_modes: tuple[Summary, Path, Stops]) -> None:
    for mode in all_modes[0].modes:
        assert [sum(ranks) for ranks in mode.accepted_by_rank if any(ranks)] == [n for n in mode.accepted if n]
        for accepted, offered in zip(mode.accepted_by_rank, mode.offered_by_rank, strict=True):
            assert all(a <= o for a, o in zip(accepted, offered, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_sampled_answer_is_a_measured_one_step_by_step(make_settings: Make, temperature: float) -> None:
    summary = run(make_settings(modes=("sd", "stree", "ngram"), temperature=temperature, max_questions=1))
    assert [sample.mode for sample in summary.samples] == ["sd", "stree", "ngram"]
    for sample in summary.samples:
        answers = read_lines(Path(summary.folder) / f"model_answer/bamba-{sample.mode}.jsonl")
        choice = answers[0]["choices"][0]
        assert (sample.question_id, sample.prompt) == (7, "What is two and two?")
        assert sample.text == choice["turns"][0]
        emitted = [sum(kind in ("accepted", "bonus") for kind in step.kinds) for step in sample.steps]
        assert emitted == choice["accept_lengths"][: choice["decoding_steps"][0]]


def test_later_turns_go_on_from_the_baselines_answer(make_settings: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts: list[tuple[str, list[int]]] = []
    answers: list[str] = []

    def spying(*args: Any, **kwargs: Any) -> Decoder:
        decoder = specdecodes.load(*args, **kwargs)
        generate = decoder.generate

        def spy(prompt: Any, **settings: Any) -> Any:
            prompts.append((decoder.mode, prompt[0].tolist()))
            generation = generate(prompt, **settings)
            if decoder.mode == "naive":
                answers.append(generation.text)
            return generation

        decoder.generate = spy  # type: ignore[method-assign]
        return decoder

    run(make_settings(temperature=1.0), load=spying)
    assert prompts.pop() == prompts[1], "the answer that the report draws is asked for last"
    assert [mode for mode, _ in prompts] == ["naive", "stree", "stree", "naive", "stree", "naive"]
    for first, second in zip(prompts[::2], prompts[1::2], strict=True):
        assert first[1] == second[1]
    assert tokenizer.decode(prompts[0][1]) == "<|user|>What is two and two?<|end|><|assistant|>"
    expected = [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "And three more?"},
    ]
    text = tokenizer.apply_chat_template(expected, add_generation_prompt=True, tokenize=False)
    assert prompts[2][1] == tokenizer.encode(text, add_special_tokens=False)


def test_without_a_chat_template_turns_are_plain_text(make_settings: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    plain.chat_template = None
    prompts: list[str] = []

    def spying(*args: Any, **kwargs: Any) -> Decoder:
        decoder = specdecodes.load(*args, **kwargs)
        encode = decoder.encode

        def spy(prompt: Any) -> torch.Tensor:
            if isinstance(prompt, str):
                prompts.append(prompt)
            return encode(prompt)

        decoder.encode = spy  # type: ignore[method-assign]
        return decoder

    summary = run(make_settings(tokenizer=plain, modes=("naive",)), load=spying)
    # Twice the first turns: their lengths are measured for the warm-up, then they are asked.
    assert prompts[:3] == ["What is two and two?", "Name a gas.", "What is two and two?"]
    (line, _) = read_lines(Path(summary.folder) / "model_answer/bamba-naive.jsonl")
    assert prompts[3] == f"What is two and two?{line['choices'][0]['turns'][0]}\n\nAnd three more?\n\n"


def test_texts_are_cut_and_continued_as_they_are(
    make_settings: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "Compose a short poem about two rivers that never meet. " * 3
    (tmp_path / "text.txt").write_text(text)
    prompts: list[list[int]] = []

    def spying(*args: Any, **kwargs: Any) -> Decoder:
        decoder = specdecodes.load(*args, **kwargs)
        generate = decoder.generate
        decoder.generate = lambda prompt, **settings: (  # type: ignore[method-assign]
            prompts.append(prompt[0].tolist()) or generate(prompt, **settings)
        )
        return decoder

    summary = run(make_settings(questions=str(tmp_path / "text.txt"), prompt_tokens=9), load=spying)
    ids = tokenizer.encode(text, add_special_tokens=False)[:9]
    assert prompts == [ids] * 3  # plain decoding, the mode, and the answer that the report draws
    assert [(row["question_id"], row["category"], row["prompt_tokens"]) for row in summary.rows] == [(0, "text", 9)] * 2
    assert summary.samples[0].prompt == tokenizer.decode(ids)


def test_a_cache_that_is_too_small_skips_the_question(make_settings: Make) -> None:
    summary = run(make_settings(max_length=28))
    assert [skipped["question_id"] for skipped in summary.skipped] == [7]
    assert "the static cache holds 28 positions" in summary.skipped[0]["reason"]
    assert summary.num_questions == 1


def test_the_largest_seed_skips_no_question(make_settings: Make) -> None:
    assert run(make_settings(temperature=1.0, repeat=2, seed=2**63 - 1)).skipped == []


def test_a_seed_reproduces_sampled_answers_and_repeats_differ(make_settings: Make, tmp_path: Path) -> None:
    first = run(make_settings(temperature=1.0, repeat=2, out_dir=tmp_path / "a"))
    second = run(make_settings(temperature=1.0, repeat=2, out_dir=tmp_path / "b"))
    other = run(make_settings(temperature=1.0, repeat=2, out_dir=tmp_path / "c", seed=1))
    lines = [read_lines(tmp_path / name / "model_answer/bamba-stree.jsonl") for name in "abc"]
    texts = [[choice["turns"] for line in answers for choice in line["choices"]] for answers in lines]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
    assert without_times(first.rows) == without_times(second.rows)
    assert all(mode.compared == 0 for mode in (*first.modes, *other.modes))
    assert first.mode("stree").components.verifier == "WithoutReplacement"


def test_parts_and_settings_go_to_the_modes_that_take_them(make_settings: Make) -> None:
    summary = run(
        make_settings(
            modes=("sd", "stree"),
            commit_state="copy",
            settings={"depth": "2", "stree.tree": "2,1"},
            max_questions=1,
            max_new_tokens=4,
        )
    )
    assert [len(mode.offered) for mode in summary.modes] == [0, 2, 2]
    assert summary.mode("stree").drafted == 3 * summary.mode("stree").steps
    assert [mode.components.state for mode in summary.modes] == ["replay", "copy", "copy"]


# Modes that are wrong, questions that do not fit


class TakesAll(Greedy):
    """Corrupted: accepts the first child of every node, whatever the target says."""

    def accept(self, logp: torch.Tensor, tree: Any, rng: Any) -> Any:
        flattered = torch.full_like(logp, -1.0)
        for node in range(tree.shape[1] - 1, 0, -1):
            flattered[0, tree.parents[0, node], tree.tokens[0, node]] = 1.0
        last = (tree.structure.depths == tree.structure.depths.max()).nonzero()[:, 1]
        flattered[0, last] = logp[0, last]
        return super().accept(flattered, tree, rng)


def test_a_corrupted_verifier_is_found_out(make_settings: Make) -> None:
    torch.manual_seed(1)
    other = make_settings().target
    stranger = type(other)(other.config).eval()
    summary = run(make_settings(modes=("sd",), draft=stranger, verify=TakesAll()))
    mode = summary.mode("sd")
    assert mode.tau > 2  # it looks fast
    assert not mode.valid
    assert mode.equal < mode.compared
    assert mode.mismatches[0]["gap"] > 1e-4
    assert mode.verdict == "NOT EQUAL to plain decoding, speed-up not valid"


def test_a_question_that_does_not_fit_is_skipped_by_name(make_settings: Make, questions: Path) -> None:
    long = {"question_id": 9, "category": "math", "turns": ["two " * 300]}
    later = {"question_id": 10, "category": "math", "turns": ["What is two?", "two " * 300]}
    with questions.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (long, later))
    watcher = Stops()
    summary = run(make_settings(max_new_tokens=4), watcher=watcher)
    assert watcher.done == [7, "b", 9, 10]
    assert summary.num_questions == 2
    assert [skipped["question_id"] for skipped in summary.skipped] == [9, 10]
    assert "256 positions" in summary.skipped[0]["reason"]
    assert {row["question_id"] for row in summary.rows} == {7, "b"}
    out = make_settings().out_dir
    assert out is not None
    assert [line["question_id"] for line in read_lines(out / "model_answer/bamba-stree.jsonl")] == [7, "b"]


def test_nothing_is_written_when_no_question_fits(make_settings: Make) -> None:
    settings = make_settings(max_new_tokens=300)
    with pytest.raises(ValueError, match="expected at least one that fits the model, got none"):
        run(settings)
    assert settings.out_dir is not None
    assert not settings.out_dir.exists()


@pytest.mark.parametrize("name", ["out_dir", "log_dir"])
def test_a_file_where_the_folder_should_be_is_refused(make_settings: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"{name}: expected a folder, got '{place}', where a file is"):
            run(make_settings(**{name: place}))


# Resume


def check_same_run(ours: Path, reference: Path) -> None:
    for name in PIECES:
        assert without_times(read_lines(ours / name)) == without_times(read_lines(reference / name)), name


@pytest.fixture
def reference(make_settings: Make, tmp_path: Path) -> Path:
    """A run that nothing interrupts."""
    run(make_settings(out_dir=tmp_path / "whole"))
    return tmp_path / "whole"


def test_resume_between_questions_loses_and_doubles_nothing(make_settings: Make, reference: Path) -> None:
    settings = make_settings()
    assert settings.out_dir is not None
    stops = Stops(before="b")
    with pytest.raises(KeyboardInterrupt):
        run(settings, watcher=stops)
    assert (stops.done, stops.ends) == ([7], 1)
    assert not list(settings.out_dir.glob("summary.*"))
    kept = read_lines(settings.out_dir / PIECES[1])
    goes_on = Stops()
    summary = run(make_settings(resume=True), watcher=goes_on)
    assert goes_on.done == ["b"]
    assert read_lines(settings.out_dir / PIECES[1])[0] == kept[0]  # to the byte: id and times of the first process
    check_same_run(settings.out_dir, reference)
    assert len(summary.sessions) == 2
    assert summary.num_questions == 2
    again = run(make_settings(resume=True))
    assert without_times(again.rows) == without_times(summary.rows)


@pytest.mark.parametrize("piece", PIECES)
def test_resume_after_a_kill_in_the_middle_of_a_write(
    make_settings: Make, reference: Path, monkeypatch: pytest.MonkeyPatch, piece: str
) -> None:
    settings = make_settings()
    assert settings.out_dir is not None
    append = Journal.append

    def dies(self: Journal, values: dict[str, Any]) -> None:
        if self.path.name == Path(piece).name and values["question_id"] == "b":
            with self.path.open("ab") as file:
                file.write(json.dumps(values).encode()[:40])
            raise KeyboardInterrupt
        append(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    run(make_settings(resume=True))
    check_same_run(settings.out_dir, reference)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_new_tokens": 9}, "max_new_tokens = 8, got 9"),
        ({"modes": ("sd",)}, "modes"),
        ({"temperature": 1.0}, "temperature = 0.0, got 1.0"),
        ({"settings": {"tree": "2,1"}}, "settings"),
        ({"max_questions": 1}, "max_questions"),
    ],
)
def test_resume_refuses_answers_from_other_settings(make_settings: Make, changes: dict[str, Any], named: str) -> None:
    settings = make_settings()
    assert settings.out_dir is not None
    run(settings)
    before = {path: path.read_bytes() for path in settings.out_dir.rglob("*.json*")}
    with pytest.raises(ValueError, match="come from other settings") as caught:
        run(make_settings(resume=True, **changes))
    assert named in str(caught.value)
    assert {path: path.read_bytes() for path in settings.out_dir.rglob("*.json*")} == before


def test_resume_refuses_other_questions_under_the_same_name(make_settings: Make, questions: Path) -> None:
    run(make_settings())
    questions.write_text(questions.read_text().replace("gas", "metal"))
    with pytest.raises(ValueError, match="text of the questions"):
        run(make_settings(resume=True))


def test_a_run_is_never_overwritten(make_settings: Make, tmp_path: Path) -> None:
    run(make_settings(modes=("naive",)))
    with pytest.raises(ValueError, match="expected a folder without a run"):
        run(make_settings(modes=("naive",)))
    (tmp_path / "else" / "model_answer").mkdir(parents=True)
    with pytest.raises(ValueError, match="which holds model_answer"):
        run(make_settings(out_dir=tmp_path / "else"))
    with pytest.raises(ValueError, match=r"answers without a run\.json"):
        run(make_settings(out_dir=tmp_path / "else", resume=True))


def test_runs_are_named_after_the_time_and_the_latest_is_resumed(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected an earlier run below runs, found none"):
        run(make_settings(modes=("naive",), out_dir=None, resume=True))
    first = run(make_settings(modes=("naive",), out_dir=None))
    second = run(make_settings(modes=("naive",), out_dir=None))
    assert Path(first.folder).parent == Path("runs")
    assert first.folder < second.folder
    assert run(make_settings(modes=("naive",), out_dir=None, resume=True)).folder == second.folder


# Lossy modes


def test_lossless_only_refuses_a_lossy_mode_before_anything_runs(make_settings: Make) -> None:
    with pytest.raises(ValueError, match="mode 'commonsense': expected lossless verifiers alone"):
        make_settings(modes=["stree", "commonsense"], lossless_only=True)
    with pytest.raises(ValueError, match="got 'typical', which is lossy"):
        make_settings(modes=["stree"], verify="typical", lossless_only=True)
    assert make_settings(modes=["stree"], lossless_only=True).modes == ("naive", "stree")


def test_lossless_only_is_no_part_of_the_result(make_settings: Make) -> None:
    assert make_settings(lossless_only=True).to_json() == make_settings().to_json()
