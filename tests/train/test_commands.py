"""The commands of train/README.md, end to end, and what they say to bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdecodes
from specdecodes.benchmark.questions import load_questions
from specdecodes.plugins.drafters.ngram_table import NgramTable
from specdecodes.train.__main__ import main
from specdecodes.train.answers import read_answers
from specdecodes.train.data import load_documents
from specdecodes.train.recipe import load_recipe
from tests.train.conftest import BAMBA, ROOT

Make = Callable[..., Path]
README = (ROOT / "train" / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The arguments of the README's first commands."""
    block = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[0]
    prefix = "python -m specdecodes.train "
    assert all(line.startswith(prefix) for line in block.splitlines())
    return [line.removeprefix(prefix).split() for line in block.splitlines()]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's commands have left their output, run on a little data."""
    folder = tmp_path_factory.mktemp("smoke")
    records = [{"question": f"What is {i} and {i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"} for i in range(60)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "data").mkdir()
    (folder / "data" / "gsm8k_train.jsonl").write_text(lines, encoding="utf-8")
    for words in commands():
        arguments = [re.sub(r"^out/smoke/", f"{folder}/", re.sub(r"^train/", f"{ROOT}/train/", w)) for w in words]
        assert main([*arguments, "--data", str(folder / "data")]) == 0, arguments
    return folder


def test_readme_runs_every_task() -> None:
    assert [words[0] for words in commands()] == ["pretrain", "answers", "distill", "ngram"]


def test_readme_lists_every_recipe() -> None:
    for path in (ROOT / "train" / "recipes").glob("*.toml"):
        assert f"`{path.name}`" in README


def test_target_and_draft_load_with_their_tokenizer(smoke: Path) -> None:
    models = [AutoModelForCausalLM.from_pretrained(smoke / name) for name in ("target", "draft")]
    tokenizers = [AutoTokenizer.from_pretrained(smoke / name) for name in ("target", "draft")]
    assert [model.config.model_type for model in models] == ["bamba", "mamba2"]
    assert models[0].config.vocab_size == models[1].config.vocab_size == len(tokenizers[0])
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    chat = [{"role": "user", "content": "What is 3 and 4?"}]
    prompts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in tokenizers]
    assert prompts == ["<|user|>What is 3 and 4?<|end|><|assistant|>"] * 2


def test_held_out_prompts_become_questions(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, output = ROOT / "train" / "recipes" / "smoke.toml", tmp_path / "questions.jsonl"
    arguments = ["questions", "--recipe", str(recipe), "--data", str(smoke / "data"), "--output", str(output)]
    assert main([*arguments, "--source", "gsm8k"]) == 0
    trained, held_out = load_documents(load_recipe(recipe), smoke / "data")
    found = load_questions(str(output))
    assert [question.turns for question in found] == [(document[0]["content"],) for document in held_out]
    assert {question.category for question in found} == {"gsm8k"}
    assert not {question.turns[0] for question in found} & {document[0]["content"] for document in trained}
    assert main([*arguments, "--count", "1"]) == 0
    assert len(load_questions(str(output))) == 1
    capsys.readouterr()
    assert main([*arguments, "--source", "gsm"]) == 2
    assert "--source: expected a data source" in capsys.readouterr().err


def test_what_came_out_is_written_down(smoke: Path) -> None:
    target, draft = (json.loads((smoke / n / "training.json").read_text("utf-8")) for n in ("target", "draft"))
    assert (target["recipe"], target["task"], target["tokens_seen"]) == ("smoke.toml", "pretrain", 3072)
    assert (draft["recipe"], draft["task"], draft["tokens_seen"]) == ("smoke_draft.toml", "distill", 1536)
    losses = [entry["loss"] for entry in target["log"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    assert "eval_perplexity" not in draft and draft["eval_loss"] > 0, "a KL is no loss on text"
    kl = [entry["eval_loss"] for entry in draft["log"] if "eval_loss" in entry]
    assert kl[-1] < kl[0]


def test_answers_are_the_targets_own_greedy_ones_to_training_prompts(smoke: Path) -> None:
    recipe = load_recipe(ROOT / "train" / "recipes" / "smoke.toml")
    train, held_out = load_documents(recipe, smoke / "data")
    answers = read_answers(smoke / "answers.jsonl")
    prompts = [document[0]["content"] for document in answers]
    assert len(answers) == 8
    assert set(prompts) <= {document[0]["content"] for document in train}
    assert not set(prompts) & {document[0]["content"] for document in held_out}
    model = AutoModelForCausalLM.from_pretrained(smoke / "target", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smoke / "target")
    for prompt, answer in answers[:3]:
        text = tokenizer.apply_chat_template([prompt], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        alone = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(alone, skip_special_tokens=True).strip() == answer["content"]
        assert (answer.get("end") == "cut") == (tokenizer.eos_token_id not in alone)


def test_table_loads_for_the_target(smoke: Path) -> None:
    vocab_size = AutoModelForCausalLM.from_pretrained(smoke / "target").config.vocab_size
    table = NgramTable.load(smoke / "ngram.safetensors", vocab_size)
    assert len(table.successors) > 20


def test_the_pair_decodes_with_the_targets_own_tokens(smoke: Path) -> None:
    prompt = [{"role": "user", "content": "What is 3 and 4?"}]
    tokens = {}
    for mode in ("naive", "stree"):
        decoder = specdecodes.load(str(smoke / "target"), str(smoke / "draft"), mode, device="cpu", dtype="float64")
        tokens[mode] = decoder.generate(prompt, max_new_tokens=12, ignore_eos=True).tokens
    assert tokens["stree"] == tokens["naive"] and len(tokens["naive"][0]) == 12


def test_progress_and_outcome_are_shown(
    make_recipe: Make, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(training={"tokens": 192})
    assert main(["pretrain", "--recipe", str(recipe), "--output", str(tmp_path / "out"), "--data", str(data)]) == 0
    shown = capfd.readouterr()
    assert "3/3" in shown.err
    assert "tokens_seen: 192" in shown.out.splitlines() and "log:" not in shown.out


# Bad input


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one line, and must leave no file; returns the line."""

    def run(*arguments: object, output: str = "out") -> str:
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        capfd.readouterr()
        code = main([*map(str, arguments), "--output", str(tmp_path / output)])
        captured = capfd.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("specdecodes.train: ")]
        assert code == 2, captured.err
        assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0] and captured.out == "", captured
        assert "Traceback" not in captured.err
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        return lines[0].removeprefix("specdecodes.train: ")

    return run


Refused = Callable[..., str]


def test_recipe_that_is_missing(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert refused("pretrain", "--recipe", path) == f"--recipe: expected a TOML file, got {path}; no such file"


def test_setting_that_is_unknown(refused: Refused, make_recipe: Make) -> None:
    path = make_recipe(training={"step": 3})
    assert refused("pretrain", "--recipe", path).startswith(
        f"recipe {path}: [training]: unknown setting 'step'; known:"
    )


@pytest.mark.parametrize("task", ["pretrain", "distill"])
def test_recipe_of_the_other_task(task: str, refused: Refused, make_recipe: Make, data: Path) -> None:
    other = {"pretrain": "distill", "distill": "pretrain"}[task]
    path = make_recipe(other)
    line = refused(task, "--recipe", path, "--data", data)
    assert line == f"--recipe: expected a recipe with task = '{task}', got '{other}' in {path}"


def test_data_that_is_missing(refused: Refused, make_recipe: Make, tmp_path: Path) -> None:
    line = refused("pretrain", "--recipe", make_recipe(), "--data", tmp_path)
    assert line == f"data source sums: expected the file sums.jsonl in {tmp_path}"
    line = refused("pretrain", "--recipe", make_recipe(), "--data", tmp_path / "absent")
    assert line == f"--data: expected a folder, got {tmp_path / 'absent'}; no such folder"


def test_hub_that_cannot_be_reached(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    line = refused("pretrain", "--recipe", ROOT / "train" / "recipes" / "smoke.toml")
    assert line == (
        "data source gsm8k: expected the data set openai/gsm8k, config 'main', split 'train[:200]' from the hub, got "
        "ConnectionError: Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError) more; "
        "give a folder that holds gsm8k_train.jsonl with --data"
    )


@pytest.mark.parametrize("task", ["distill", "answers", "ngram"])
def test_target_that_is_no_model(task: str, refused: Refused, make_recipe: Make, data: Path, tmp_path: Path) -> None:
    recipe = make_recipe("distill" if task == "distill" else "pretrain")
    (tmp_path / "empty").mkdir()
    line = refused(task, "--recipe", recipe, "--data", data, "--target", tmp_path / "empty")
    assert line.startswith("target: the folder") or line.startswith("--target: expected a model")
    assert str(tmp_path / "empty") in line


def test_target_whose_tokenizer_has_no_end(
    refused: Refused, make_recipe: Make, data: Path, smoke: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(smoke / "target", tmp_path / "target", ignore=shutil.ignore_patterns("checkpoints")))
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        text = (target / file).read_text(encoding="utf-8").replace('"eos_token": "<|end|>",', "")
        (target / file).write_text(text, encoding="utf-8")
    line = refused("distill", "--recipe", make_recipe("distill"), "--data", data, "--target", target)
    assert line == "tokenizer: expected one with an end-of-text token, got none"


def test_answers_that_are_missing_or_broken(refused: Refused, make_recipe: Make, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    words = ("distill", "--recipe", make_recipe("distill"), "--data", data, "--answers", path)
    assert refused(*words) == f"--answers: expected a file written by the task 'answers', got {path}; no such file"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": \n', encoding="utf-8")
    assert refused(*words).startswith(f"{path}: line 2: expected one JSON object per line")


def test_output_of_the_wrong_kind(refused: Refused, make_recipe: Make, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    words = ("--recipe", make_recipe(), "--data", data)
    assert (
        refused("pretrain", *words, output="file") == f"--output: expected a folder, got the file {tmp_path / 'file'}"
    )
    line = refused("answers", *words, "--target", "x", output="folder")
    assert line == f"--output: expected a file, got the folder {tmp_path / 'folder'}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"block": 4096}}, "data: expected at least one block of 4096 tokens, got "),
        (
            {"training": {"held_out": 0.01}},
            "training.held_out: expected at least one block of 16 tokens, got 0 tokens in 0",
        ),
        ({"model": {"model_type": "bloom"}}, "[model]: model: family 'bloom' is not supported yet; supported: bamba"),
        ({"model": BAMBA | {"layers": 3}}, "[model]: unknown setting 'layers'; bamba has "),
    ],
    ids=["data", "held out", "family", "model"],
)
def test_recipe_that_does_not_fit(
    change: dict[str, Any], message: str, refused: Refused, make_recipe: Make, data: Path
) -> None:
    assert refused("pretrain", "--recipe", make_recipe(**change), "--data", data).startswith(message)


def test_tokenizer_that_does_not_load(refused: Refused, make_recipe: Make, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", "--recipe", make_recipe(), "--data", data, "--tokenizer", tmp_path / "absent")
    assert line.startswith("tokenizer: expected a folder, a hub id") and "absent'; no such folder" in line


def test_data_without_chats_has_no_prompts_to_answer(refused: Refused, make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text("To be\n\nor not to be", encoding="utf-8")
    recipe = make_recipe(data=[{"name": "play", "file": "play.txt", "format": "text"}])
    line = refused("answers", "--recipe", recipe, "--data", tmp_path, "--target", "x", output="answers.jsonl")
    assert line == f"--recipe: expected data with chats, whose prompts can be answered; {recipe} has none"


@pytest.mark.parametrize("option", ["--count", "--max-new-tokens"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_count_that_is_none(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["answers", "--recipe", "x", "--output", "y", "--target", "z", option, value]) == 2
    said = capsys.readouterr().err
    assert f"{option}: expected a whole number of at least 1, got '{value}'" in said and said.count("\n") == 1


@pytest.mark.parametrize("task", ["pretrain", "distill", "answers", "ngram"])
def test_help_of_every_task(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([task, "--help"])
    assert stopped.value.code == 0 and "--recipe" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"specdecodes.train {task} " in capsys.readouterr().out
