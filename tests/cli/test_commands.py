"""The command line as a whole: help, dispatch, exit codes."""

from __future__ import annotations

import logging

import pytest

from specdecodes import __version__
from specdecodes.cli import COMMANDS, main
from specdecodes.cli.arguments import (
    BAD_INPUT,
    BROKEN_PIPE,
    INTERRUPTED,
    parse_settings,
    run_reporting_errors,
)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "usage: " in out
    if command != "train":  # its parser is the training package's own
        assert f"usage: specdecodes {command}" in out
        assert "example" in out.lower()
        assert f"  specdecodes {command} " in out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in out.splitlines()), name
    assert 'specdecodes generate --mode stree --prompt "' in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_train_is_the_training_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pretrain", "--recipe", "no-such.toml", "--output", "nowhere"]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and "no-such.toml" in captured.err and captured.err.count("\n") == 1


# Exit codes


def failing(error: BaseException) -> int:
    def function() -> None:
        raise error

    return run_reporting_errors(function, "prog")


@pytest.mark.parametrize("error", [ValueError("a: expected b,\n  got c"), FileNotFoundError("a: expected b, got c")])
def test_bad_input_is_one_line_and_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(error) == BAD_INPUT == 2
    assert capsys.readouterr().err == "prog: a: expected b, got c\n"


def test_interrupt_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == INTERRUPTED == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_a_mistake_of_our_own_keeps_its_traceback() -> None:
    with pytest.raises(TypeError):
        failing(TypeError("a bug"))


def test_reader_that_closed_the_pipe_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert failing(BrokenPipeError()) == BROKEN_PIPE == 141
    assert capfd.readouterr().err == ""


def test_success_is_0() -> None:
    assert run_reporting_errors(lambda: None) == 0


def test_log_level_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOGLEVEL", "debug")
    assert failing(ValueError("told")) == BAD_INPUT
    assert caplog.records[-1].exc_info is not None, "DEBUG shows where bad input was noticed"
    caplog.clear()
    monkeypatch.delenv("LOGLEVEL")
    assert failing(ValueError("told")) == BAD_INPUT
    assert not caplog.records
    monkeypatch.setenv("LOGLEVEL", "loud")
    capsys.readouterr()
    assert run_reporting_errors(lambda: None) == BAD_INPUT
    assert capsys.readouterr().err.startswith("specdecodes: LOGLEVEL: expected one of CRITICAL, ")


@pytest.fixture(autouse=True)
def _log_levels() -> object:
    logger = logging.getLogger("specdecodes")
    before = logger.level
    yield
    logger.setLevel(before)


# --set


def test_settings_are_pairs_and_the_later_counts() -> None:
    assert parse_settings(["tree=3,2.1", "table=a=b", " depth = 4 ", "depth=5"]) == {
        "tree": "3,2.1",
        "table": "a=b",
        "depth": "5",
    }


@pytest.mark.parametrize("pair", ["depth", "=4", "", " =4"])
def test_settings_that_are_no_pairs_are_refused(pair: str) -> None:
    with pytest.raises(ValueError, match=r"^--set: expected KEY=VALUE, got "):
        parse_settings([pair])
