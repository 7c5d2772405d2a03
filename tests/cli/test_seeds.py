"""The flags of other programs: what each stands for, what contradicts what, and that docs/seeds.md tells the truth."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from specdecodes.benchmark import run_mtbench
from specdecodes.benchmark.settings import RunSettings
from specdecodes.cli import generate, main, score, tune
from specdecodes.cli.arguments import parse_settings
from specdecodes.cli.seeds import STRATEGIES, TITLE, apply

PAGE = (Path(__file__).parents[2] / "docs" / "seeds.md").read_text(encoding="utf-8")
PARSERS = {
    "generate": generate.parser,
    "runner": run_mtbench.make_parser,
    "score": score.parser,
    "tune": tune.parser,
}


def asked(*flags: str) -> dict[str, Any]:
    """What ``generate`` makes of the flags: what differs from no flag at all, the mode first."""
    args = generate.parser().parse_args(["--prompt", "x", *flags])
    modes = apply(args, [args.mode] if args.mode else [])
    parts = ("draft", "propose", "build_tree", "verify", "commit_state")
    chosen = {part: getattr(args, part) for part in parts if getattr(args, part) is not None}
    return {"modes": modes, **chosen, **parse_settings(args.set)}


def run_settings(*flags: str) -> RunSettings:
    return run_mtbench.to_settings(run_mtbench.make_parser().parse_args(list(flags)))


# What they stand for

REPLAY = ["--activation_replay", "--jit_state_copy"]
ASKED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nothing": ([], {"modes": ()}),
    "STree's tree": (
        [
            "--spec_Ngram",
            "--use_tree_decoding",
            *REPLAY,
            "--npad=4",
            "--ndraft=1",
            "--draft_num_beam=3",
            "--strategy=MIL-st",
        ],
        {"modes": ("stree",), "draft": "mamba2", "commit_state": "replay", "tree": "3,2.1,2.1,3"},
    ),
    "STree's chain": (
        ["--spec_Ngram", "--use_Nstep_kernel", *REPLAY, "--npad=4", "--ndraft=1", "--strategy", "MIL"],
        {"modes": ("sd",), "draft": "mamba2", "commit_state": "replay", "depth": "4"},
    ),
    "STree without speculation": ([*REPLAY, "--npad", "4", "--strategy", "MIL"], {"modes": ("naive",)}),
    "STree's states alone": (["--jit_state_copy"], {"modes": ("naive",)}),
    "states beside a mode": (
        ["--mode", "beam", *REPLAY, "--use_Nstep_kernel"],
        {"modes": ("beam",), "commit_state": "replay"},
    ),
    "states beside plain decoding": (["--mode", "naive", *REPLAY], {"modes": ("naive",)}),
    "beams": (
        ["--spec_Ngram", "--use_tree_decoding", "--strategy", "MIL-bs", "--npad", "5", "--draft_num_beam", "2"],
        {"modes": ("beam",), "draft": "mamba2", "depth": "5", "width": "2"},
    ),
    "beams of their own size": (
        ["--spec_Ngram", "--use_tree_decoding", "--strategy", "mamba-bs"],
        {"modes": ("beam",), "draft": "mamba2"},
    ),
    "the default strategy": (
        ["--spec_Ngram", "--npad", "3"],
        {"modes": ("ngram",), "propose": "ngram", "depth": "3"},
    ),
    "jacobi": (
        ["--spec_Ngram", "--strategy", "jacobi", "--npad", "3", "--draft_num_beam", "0"],
        {"modes": ("sd",), "propose": "jacobi", "depth": "3"},
    ),
    "a draft of one's own": (
        ["--spec_Ngram", "--strategy", "llama", "--draft", "folder"],
        {"modes": ("sd",), "draft": "folder"},
    ),
    "a target of one's own": (
        ["--spec_Ngram", "--strategy", "mamba", "--target", "folder", "--draft", "small"],
        {"modes": ("sd",), "draft": "small"},
    ),
    "chains side by side": (
        ["--spec_Ngram", "--use_tree_decoding", "--strategy", "mamba", "--npad", "3", "--ndraft", "2"],
        {"modes": ("stree",), "draft": "mamba2", "build_tree": "static", "tree": "2,1.1,1.1"},
    ),
    "chains of an index": (
        ["--spec_Ngram", "--npad", "2", "--ndraft", "3"],
        {"modes": ("stree",), "propose": "ngram", "build_tree": "static", "tree": "3,1.1.1"},
    ),
    "K": (["--K", "3"], {"modes": ("sd",), "depth": "3"}),
    "K in another mode": (["--K", "3", "--mode", "ngram"], {"modes": ("ngram",), "depth": "3"}),
    "K with another tree": (
        ["--K", "3", "--mode", "stree", "--build-tree", "chain"],
        {"modes": ("stree",), "build_tree": "chain", "depth": "3"},
    ),
    "growmap": (["--growmap", "a/b.pt"], {"modes": ("sequoia",), "tree": "a/b.pt"}),
    "growmap in another mode": (
        ["--growmap", "b.json", "--mode", "commonsense"],
        {"modes": ("commonsense",), "tree": "b.json"},
    ),
    "SpecDecodes' tree": (
        ["--topk-len", "10", "--max-depth", "6", "--max-verify-tokens", "60"],
        {"modes": ("dynamic",), "topk": "10", "width": "10", "depth": "6", "max_nodes": "60"},
    ),
    "its depth in a chain": (["--mode", "sd-classic", "--max-depth", "6"], {"modes": ("sd-classic",), "depth": "6"}),
}


@pytest.mark.parametrize(("flags", "expected"), ASKED.values(), ids=ASKED.keys())
def test_flags_stand_for(flags: list[str], expected: dict[str, Any]) -> None:
    assert asked(*flags) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_decodes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--npad", "4", *(["--draft_num_beam", "3"] if STRATEGIES[name].branches else [])]
    flags = ["--spec_Ngram", "--use_tree_decoding", "--strategy", name, *sizes]
    assert main(["generate", "--prompt", "Why is the sky blue?", "--max-new-tokens", "8", *flags]) == 0
    speculative = capsys.readouterr().out
    assert main(["generate", "--prompt", "Why is the sky blue?", "--max-new-tokens", "8", "--mode", "naive"]) == 0
    assert speculative.split("\n\nmode ")[0] == capsys.readouterr().out.split("\n\nmode ")[0]
    assert re.search(rf"^mode +{STRATEGIES[name].mode}$", speculative, re.MULTILINE)


def test_plain_decoding_by_flags_alone_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "Why?", "--max-new-tokens", "2", "--npad", "4", "--jit_state_copy"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^mode +naive$", printed.out, re.MULTILINE)


def test_warns_of_plain_decoding(caplog: pytest.LogCaptureFixture) -> None:
    asked("--npad", "4", "--jit_state_copy")
    assert caplog.messages == ["--npad, --jit_state_copy without --spec_Ngram: plain decoding, as in STree"]
    caplog.clear()
    asked("--mode", "stree", "--jit_state_copy")
    asked("--spec_Ngram", "--npad", "4")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--genlen", "7"], "max_new_tokens", 7),
        (["--n_tokens_to_generate", "7"], "max_new_tokens", 7),
        (["--T", "0.6"], "temperature", 0.6),
        (["--P", "0.9"], "top_p", 0.9),
        (["--topp", "0.9"], "top_p", 0.9),
        (["--topk", "4"], "top_k", 4),
        (["--minp", "0.1"], "min_p", 0.1),
        (["--M", "64"], "max_length", 64),
        (["--max-length", "64"], "max_length", 64),
        (["--model-name", "big"], "target", "big"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_further_names(flags: list[str], name: str, value: Any) -> None:
    assert getattr(generate.parser().parse_args(["--prompt", "x", *flags]), name) == value
    assert getattr(run_settings(*flags), name) == value


def test_max_length_bounds_the_cache(generate_refused: Callable[..., str]) -> None:
    refused = generate_refused("--mode", "naive", "--M", "10", "--max-new-tokens", "9")
    assert "make 13, but the static cache holds 10 positions" in refused
    assert generate_refused("--M", "0").startswith("max_length: expected at least 1 token, got 0")


# The runner


def test_the_studys_flags() -> None:
    common = ["--model", "small", "--target", "big", "--T", "0.6", "--P", "0.9", "--start", "5", "--end", "25"]
    common += ["--M", "1024", "--dataset", "cnn"]
    settings = run_settings(*common, "--Mode", "greedy", "--growmap", "g.pt")
    assert (settings.draft, settings.target, settings.modes) == ("small", "big", ("naive", "sequoia"))
    assert (settings.temperature, settings.top_p, settings.max_length) == (0.6, 0.9, 1024)
    assert (settings.questions, settings.start, settings.end) == ("cnn", 5, 25)
    assert (settings.verify, settings.settings) == ("token-match", {"tree": "g.pt"})
    plain = run_settings(*common, "--Mode", "baseline", "--growmap", "g.pt")
    assert (plain.modes, plain.verify, plain.settings) == (("naive",), None, {})


@pytest.mark.parametrize(
    ("flags", "verify"),
    [
        (["--Mode", "greedy"], "token-match"),
        (["--Mode", "benchmark", "--modes", "sd,sequoia"], "token-match"),
        (["--Mode", "greedy", "--mode", "sd", "--verify", "block"], "block"),
        (["--Mode", "greedy", "--mode", "commonsense"], None),
        (["--Mode", "greedy", "--mode", "naive"], None),
        (["--mode", "sd"], None),
    ],
    ids=str,
)
def test_greedy_drafts_are_verified_by_token_matching(flags: list[str], verify: str | None) -> None:
    assert run_settings("--T", "1", *flags).verify == verify


def test_a_flag_goes_to_the_modes_that_take_it() -> None:
    settings = run_settings("--modes", "sd,stree", "--K", "3", "--activation_replay")
    assert settings.modes == ("naive", "sd", "stree")
    assert (settings.settings, settings.commit_state) == ({"depth": "3"}, "replay")
    assert run_settings("--npad", "4").modes == ("naive",)


# What contradicts what

CONTRADICTIONS = {
    "--mode sd --strategy MIL": "--strategy: expected no other choice of the mode beside it, got --mode sd; leave one",
    "--mode sd --spec_Ngram": "--spec_Ngram: expected no other choice of the mode beside it, got --mode sd",
    "--spec_Ngram --K 3": "--spec_Ngram: expected no other choice of the mode beside it, got --K",
    "--npad 3 --growmap a.pt": "--npad: expected no other choice of the mode beside it, got --growmap",
    "--spec_Ngram --build-tree chain": "--spec_Ngram: expected no other choice of the mode beside it, got --build-tree",
    "--K 3 --growmap a.pt": "--K: expected --mode beside it and --growmap, got none; sd or sequoia?",
    "--K 3 --set depth=4": "--K: expected 'depth' to be set once, got depth=4 as well",
    "--mode sd --K 3 --max-depth 3": "--max-depth: expected 'depth' to be set once, got depth=3 as well",
    "--growmap a.pt --set tree=3": "--growmap: expected 'tree' to be set once",
    "--growmap 3,2": "--growmap: expected the path of a growmap (.json, .pt), got '3,2'",
    "--mode dynamic --growmap a.pt": "--growmap: expected a mode whose tree takes 'tree', such as sequoia",
    "--mode stree --topk-len 4": "--topk-len: expected a mode whose tree takes 'topk', such as dynamic, got 'stree'",
    "--mode naive --K 4": "got 'naive' with the tree builder 'root'; use --set with its settings (none)",
    "--mode nothing --K 4": "unknown mode 'nothing'",
    "--spec_Ngram --strategy MIL-xx": "--strategy: unknown strategy 'MIL-xx'; did you mean 'MIL-st'? known: MIL, ",
    "--spec_Ngram --strategy MIL-st": "--strategy MIL-st: expected --use_tree_decoding beside it",
    "--spec_Ngram --strategy mamba-bs --npad 4": "--strategy mamba-bs: expected --use_tree_decoding beside it",
    "--spec_Ngram --use_tree_decoding --strategy MIL-st --npad 5": "--strategy MIL-st: expected --npad 4 and "
    "--draft_num_beam 3, its only tree, got 5 and 3; spell another tree out: --mode stree --set tree=3,2.1,2.1,3",
    "--spec_Ngram --use_tree_decoding --strategy MIL-bs --ndraft 2": "--ndraft: expected 1 with --strategy MIL-bs",
    "--spec_Ngram --strategy MIL --draft_num_beam 3": "--draft_num_beam: expected none with --strategy MIL",
    "--spec_Ngram --ndraft 2": "--ndraft: expected --npad, the length of the chains, beside it, got none",
    "--spec_Ngram --npad 0": "--npad: expected at least 1, got 0",
    "--spec_Ngram --ndraft 0": "--ndraft: expected at least 1, got 0",
    "--draft_num_beam -1": "--draft_num_beam: expected at least 0, got -1",
    "--spec_Ngram --strategy jacobi --propose suffix": "--strategy: expected --propose jacobi beside it, or none, got",
    "--mode stree --activation_replay --commit-state copy": "--activation_replay: expected --commit-state replay",
}


@pytest.mark.parametrize(("flags", "message"), CONTRADICTIONS.items(), ids=CONTRADICTIONS.keys())
def test_contradictions_are_one_line(flags: str, message: str, generate_refused: Callable[..., str]) -> None:
    assert message in generate_refused(*flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--Mode baseline --mode sd", "--Mode: expected another than baseline, which is plain decoding, beside --mode"),
        (
            "--Mode baseline --spec_Ngram",
            "--Mode: expected another than baseline, which is plain decoding, beside --spec",
        ),
        (
            "--Mode greedy --modes sd,commonsense",
            "--Mode: expected modes that verify by token matching, got commonsense",
        ),
        ("--Mode quick", "invalid choice: 'quick'"),
        (
            "--dataset cnn",
            "questions 'cnn': expected a number of texts to take, got none; give --end or --max-questions",
        ),
        ("--start 24", "start: expected below 24, the number of questions in 'embedded', got 24"),
        ("--start 3 --end 3", "end: expected more than start (3), got 3"),
        ("--start -1", "start: expected 0 or more, got -1"),
        ("--prompt-tokens 8", "prompt_tokens: expected none with the questions 'embedded'"),
        ("--raw --prompt-tokens 0", "prompt_tokens: expected at least 1, got 0"),
    ],
)
def test_contradictions_in_the_runner(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_mtbench.main(flags.split()) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err, captured.err
    assert not list(tmp_path.iterdir())


# docs/seeds.md


def table_rows() -> Iterator[tuple[list[str], list[str]]]:
    """The flags of each row, and who takes them."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `-"):
            assert len(cells) == 3, line
            yield re.findall(r"`(-[^`]*)`", cells[0]), cells[2].split(", ")


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {name: action for action in parser._actions for name in action.option_strings}


def test_every_flag_of_the_page_is_taken_where_it_says() -> None:
    taken = {name: actions(make()) for name, make in PARSERS.items()}
    rows = list(table_rows())
    assert len(rows) > 40
    for flags, commands in rows:
        for flag in flags:
            assert set(commands) <= {name for name, known in taken.items() if flag in known}, flag
            further = {name for name, known in taken.items() if flag in known and flag in further_names(known)}
            assert further <= set(commands), flag


def test_every_flag_of_a_seed_is_on_the_page() -> None:
    on_the_page = {flag for flags, _ in table_rows() for flag in flags}
    for make in PARSERS.values():
        parser = make()
        theirs = {
            flag
            for group in parser._action_groups
            if group.title == TITLE
            for action in group._group_actions
            for flag in action.option_strings
        }
        ours = {"--help", "--modes"}
        assert (theirs | further_names(actions(parser))) - ours <= on_the_page


def further_names(known: dict[str, argparse.Action]) -> set[str]:
    """Flags that are another name of one of ours."""
    return {flag for action in known.values() for flag in action.option_strings[1:]}


def test_every_flag_of_the_issue_is_on_the_page() -> None:
    wanted = "--growmap --T --P --M --start --end --Mode --dataset --npad --ndraft --draft_num_beam --strategy --K "
    wanted += "--spec_Ngram --activation_replay --jit_state_copy --use_tree_decoding --topk-len --max-depth "
    wanted += "--max-verify-tokens"
    assert set(wanted.split()) <= {flag for flags, _ in table_rows() for flag in flags}


def test_every_strategy_is_on_the_page() -> None:
    rows = re.findall(r"^\| ((?:`[A-Za-z-]+`(?:, )?)+) \| `--mode", PAGE, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(.*?)`", row)) == sorted(STRATEGIES)


COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_page_has_a_command_of_every_kind() -> None:
    for flag in ("--spec_Ngram", "--K", "--growmap", "--topk-len", "-ssm", "specdecodes score"):
        assert any(flag in command for command in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a small way: few tokens, one question, no compiling, a hub that is not there."""
    monkeypatch.chdir(tmp_path)
    words = "The river rises in the hills and runs to the sea, past two towns and a mill. "
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": words * 9, "article": words * 9}] * 3)
    if "--growmap" in command:
        first = next(line for line in COMMANDS if line.startswith("specdecodes tree save"))
        assert main(shlex.split(first)[1:]) == 0
    program, *arguments = [word for word in shlex.split(command) if word != "--cg"]
    few = ["--max-new-tokens", "8"]
    if program == "python":
        assert arguments[:2] == ["-m", "specdecodes.benchmark.run_mtbench"]
        assert run_mtbench.main([*arguments[2:], *few, "--max-questions", "1", "--warmup", "0"]) == 0
        assert "tokens/s, decode" in capfd.readouterr().out
    else:
        assert program == "specdecodes"
        small = {"generate": few, "score": ["--limit", "1", "--max-tokens", "8", "--plot", "none"]}
        assert main([*arguments, *small.get(arguments[0], [])]) == 0
        printed = capfd.readouterr().out
        shows = {"generate": "tokens per step", "score": "KL, nats", "tree": ""}
        assert shows[arguments[0]] in printed
