"""``specdecodes generate`` on a tiny pair: what it prints, and that it prints what ``load`` and ``generate`` give."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import specdecodes
from specdecodes.cli import main
from specdecodes.cli.generate import acceptance, parser
from specdecodes.core.decoder import Generation

from ..conftest import Pair

ROOT = Path(__file__).parents[2]
PROMPT = "w5 w6 w7 w8 w5 w6 w7 w8 w5 w6"
REPORT = re.compile(
    r"""
(?P<text>.*)

mode             (?P<mode>\S+)
prefill          \d+\.\d{3} s \((?P<prompt>\d+) tokens\)
decode           \d+\.\d{3} s \((?P<decoded>\d+) tokens, \d+\.\d tokens/s\)
tokens per step  (?P<tau>\d+\.\d\d) \((?P<steps>\d+) steps, bonus token included\)
acceptance rate  (?P<acceptance>.+)
""".strip("\n"),
    re.DOTALL,
)


def read(out: str) -> dict[str, str]:
    match = REPORT.fullmatch(out.rstrip("\n"))
    assert match is not None, out
    return match.groupdict()


@pytest.fixture
def generate(pair: Pair, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on the pair; returns what it printed, read."""

    def run(*arguments: str, draft: bool = True) -> dict[str, str]:
        named = ["--draft", pair.draft] if draft else []
        capsys.readouterr()  # what the test itself has loaded
        code = main(["generate", "--target", pair.target, *named, "--prompt", PROMPT, *arguments])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return read(captured.out)

    return run


@pytest.mark.parametrize(
    ("mode", "sampling"),
    [("naive", {}), ("sd", {}), ("stree", {}), ("ngram", {}), ("stree", {"temperature": 0.9, "seed": 5})],
    ids=str,
)
def test_prints_the_answer_and_its_numbers(pair: Pair, generate: Any, mode: str, sampling: dict[str, Any]) -> None:
    draft = pair.draft if mode in ("sd", "stree") else None
    decoder = specdecodes.load(pair.target, draft, mode)
    expected = decoder.generate([{"role": "user", "content": PROMPT}], max_new_tokens=24, **sampling)
    flags = [text for name, value in sampling.items() for text in (f"--{name}", str(value))]
    printed = generate("--mode", mode, "--max-new-tokens", "24", *flags, draft=draft is not None)
    assert printed["text"] == expected.text
    assert printed["mode"] == mode
    assert (int(printed["prompt"]), int(printed["decoded"])) == (12, 23)  # the template adds two words
    assert int(printed["steps"]) == len(expected.accept_lengths)
    assert printed["tau"] == f"{sum(expected.accept_lengths) / len(expected.accept_lengths):.2f}"
    accepted = sum(length - 1 for length in expected.accept_lengths)
    if mode == "naive":
        assert printed["acceptance"] == "- (nothing drafted)"
    elif mode == "sd":
        drafted = 4 * len(expected.accept_lengths)
        assert printed["acceptance"] == f"{accepted / drafted:.1%} ({accepted} accepted of {drafted} drafted)"
    else:
        assert f"({accepted} accepted of " in printed["acceptance"]


def test_mode_is_stree_unless_named(generate: Any) -> None:
    assert generate("--max-new-tokens", "8")["mode"] == "stree"


def test_names_of_the_seeds_mean_the_same(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    old = ["--model_target", pair.target, "--model_draft", pair.draft, "--K", "3", "--n_tokens_to_generate", "16"]
    old += ["--top_k", "20", "--top_p", "0.8", "--temperature", "0.8", "--dtype", "float64"]
    new = ["--target", pair.target, "--draft", pair.draft, "--mode", "sd", "--set", "depth=3", "--max-new-tokens", "16"]
    new += ["--top-k", "20", "--top-p", "0.8", "--temp", "0.8", "--dtype", "fp64"]
    texts = []
    for flags in (old, new):
        assert main(["generate", "--prompt", PROMPT, "--seed", "1", *flags]) == 0
        texts.append(read(capsys.readouterr().out))
    for printed in texts:
        assert printed["mode"] == "sd"
        assert f"of {3 * int(printed['steps'])} drafted" in printed["acceptance"]
    same = ("text", "steps", "acceptance")
    assert [texts[0][name] for name in same] == [texts[1][name] for name in same]


def test_cg_is_compile() -> None:
    assert parser().parse_args(["--prompt", "x", "--cg"]).compile
    assert parser().parse_args(["--prompt", "x", "--compile"]).compile
    assert not parser().parse_args(["--prompt", "x"]).compile


def test_raw_continues_the_prompt_and_chat_uses_the_template(pair: Pair, generate: Any) -> None:
    decoder = specdecodes.load(pair.target, mode="naive")
    raw = decoder.generate(PROMPT, max_new_tokens=8)
    chat = decoder.generate([{"role": "user", "content": PROMPT}], max_new_tokens=8)
    assert raw.text != chat.text
    short = ("--mode", "naive", "--max-new-tokens", "8")
    assert generate("--raw", *short, draft=False)["text"] == raw.text
    assert generate("--chat", *short, draft=False)["text"] == chat.text
    assert generate(*short, draft=False)["text"] == chat.text


def test_stop_ends_the_answer_and_is_left_out(pair: Pair, generate: Any) -> None:
    short = ("--mode", "naive", "--max-new-tokens", "12")
    words = generate(*short, draft=False)["text"].split()
    stop = words[5]
    printed = generate(*short, "--stop", stop, "--stop", "never", draft=False)
    assert printed["text"].split() == words[: words.index(stop)]


def test_parts_of_a_mode_and_settings_are_replaced(generate: Any) -> None:
    plain = generate("--mode", "naive", "--max-new-tokens", "16", draft=False)
    replaced = generate(
        *("--mode", "sd", "--build-tree", "static", "--set", "tree=2,1.1", "--commit-state", "copy"),
        *("--verify", "greedy", "--propose", "model", "--max-new-tokens", "16"),
    )
    assert replaced["text"] == plain["text"]
    steps = int(replaced["steps"])
    assert f"{steps} steps * 2 levels; {4 * steps} tokens drafted" in replaced["acceptance"]


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1", "--seed", "2"]], ids=["greedy", "sampling"])
@pytest.mark.parametrize("mode", ["naive", "sd", "stree", "ngram"])
def test_show_trees_prints_every_step_above_the_answer(
    pair: Pair, capsys: pytest.CaptureFixture[str], mode: str, sampling: list[str]
) -> None:
    draft = ["--draft", pair.draft] if mode in ("sd", "stree") else []
    flags = ["generate", "--target", pair.target, *draft, "--mode", mode, "--max-new-tokens", "16", *sampling]
    assert main([*flags, "--prompt", PROMPT]) == 0
    plain = read(capsys.readouterr().out)
    assert main([*flags, "--prompt", PROMPT, "--show-trees"]) == 0
    legend, *steps, rest = re.split(r"^(?=step \d)|\n\n(?=w\d)", capsys.readouterr().out, flags=re.MULTILINE)
    shown = read(rest)
    assert (shown["text"], shown["steps"]) == (plain["text"], plain["steps"])
    assert legend.startswith("[accepted]  (rejected)  <bonus")
    assert len(steps) == int(plain["steps"])
    told = [steps[0].splitlines()[1].lstrip("␣")]  # the first root: the token that the prefill chose
    for number, step in enumerate(steps, 1):
        told += re.findall(r"[\[<]␣(\S+)[\]>]$", step, re.MULTILINE)
        drafted = len(re.findall(r"[\[({]␣", step))
        accepted = len(re.findall(r"\[␣", step))
        words = f"{accepted} of {drafted} drafted tokens accepted" if drafted else "no draft"
        assert step.startswith(f"step {number}: {words}, ")
    assert [word for word in told if word != "<pad>"] == plain["text"].split()


def generation(accept_lengths: list[int], drafted: int, offered: list[int], accepted: list[int]) -> Generation:
    counts = {"drafted": drafted, "offered": offered, "accepted": accepted}
    return Generation([[0] * (1 + sum(accept_lengths))], "", accept_lengths, {}, 1, {"acceptance": counts})


def test_acceptance_of_a_chain_is_accepted_of_drafted() -> None:
    assert acceptance(generation([3, 1], 8, [2, 2, 2, 2], [1, 1, 0, 0])) == "25.0% (2 accepted of 8 drafted)"


def test_acceptance_of_a_tree_is_accepted_of_steps_times_depth() -> None:
    printed = acceptance(generation([3, 1], 24, [2, 2, 2, 2], [1, 1, 0, 0]))
    assert printed == "25.0% (2 accepted of 2 steps * 4 levels; 24 tokens drafted)"


def test_acceptance_without_a_draft() -> None:
    assert acceptance(generation([1, 1], 0, [], [])) == "- (nothing drafted)"
    assert acceptance(generation([], 0, [], [])) == "- (nothing drafted)"


def test_answer_of_one_token_has_no_rate(generate: Any, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["generate", "--target", pair.target, "--mode", "naive", "--prompt", PROMPT, "--max-new-tokens", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[-3].endswith(" s (0 tokens)")
    assert lines[-2] == "tokens per step  0.00 (0 steps, bonus token included)"
    assert lines[-1] == "acceptance rate  - (nothing drafted)"


def test_traces_hooks_and_says_nothing_else(
    pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPECDECODES_TRACE_HOOKS", "1")
    assert (
        main(["generate", "--target", pair.target, "--mode", "naive", "--prompt", "w1", "--max-new-tokens", "2"]) == 0
    )
    assert {record.name for record in caplog.records} == {"specdecodes"}
    assert any(re.fullmatch(r"hook verify -> .*verifier: \d+\.\d{3} ms", line) for line in caplog.messages)


@pytest.mark.slow
def test_as_a_process_it_prints_the_answer_and_nothing_on_stderr(pair: Pair) -> None:
    command = [sys.executable, "-m", "specdecodes", "generate", "--target", pair.target, "--draft", pair.draft]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "SPECDECODES_PLUGINS": ""}
    env.pop("LOGLEVEL", None)
    result = subprocess.run(
        [*command, "--prompt", PROMPT, "--max-new-tokens", "8"], capture_output=True, text=True, timeout=300, env=env
    )
    assert (result.returncode, result.stderr) == (0, "")
    decoder = specdecodes.load(pair.target, mode="naive")
    expected = decoder.generate([{"role": "user", "content": PROMPT}], max_new_tokens=8)
    assert read(result.stdout)["text"] == expected.text
