"""The command ``specdecodes``: one file per subcommand, each with a ``main(argv) -> exit code`` of its own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from specdecodes import __version__
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.plugin import unknown

COMMANDS = {
    "generate": ("specdecodes.cli.generate", "stream one answer and say how fast it came"),
    "bigrams": ("specdecodes.cli.bigrams", "count which tokens follow which in a corpus"),
    "plugins": ("specdecodes.cli.plugins", "list modes and components"),
    "models": ("specdecodes.cli.models", "list the model families, and how exact they are"),
    "check": ("specdecodes.cli.check", "run the self-test on a model of yours"),
    "tree": ("specdecodes.cli.tree", "draw a tree shape"),
    "score": ("specdecodes.cli.score", "score drafters for a target: divergence, overlap, acceptance vectors"),
    "tune": ("specdecodes.cli.tune", "find the fastest mode, tree and size on this machine"),
    "corpus": ("specdecodes.cli.corpus", "index texts to draft from"),
    "doctor": ("specdecodes.cli.doctor", "say which kernels run on this machine, and why"),
    "train": ("specdecodes.train.__main__", "train a target or a drafter by a recipe"),
}
"""Name to module and summary; a module is imported when its command runs."""

EXAMPLE = """\
'specdecodes COMMAND --help' lists a command's flags.

example:
  specdecodes generate --mode stree --prompt "Why is the sky blue?"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[arguments[0]][0])
        code: int = command.main(arguments[1:])
        return code
    return run_reporting_errors(lambda: _no_command(arguments))


def _no_command(arguments: list[str]) -> None:
    """Answer ``--help`` and ``--version``, or refuse.

    Raises:
        ValueError: no command, or one that does not exist.
    """
    parser = OneLineParser(
        prog="specdecodes", description=_summaries(), epilog=EXAMPLE, usage="specdecodes COMMAND ..."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    name = parser.parse_known_args(arguments)[0].command
    if name is None:
        parser.error(f"expected a command ({', '.join(COMMANDS)})")
    raise ValueError(unknown("command", name, COMMANDS))


def _summaries() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return "Speculative decoding in which every phase of a decode step is a plugin.\n\ncommands:\n" + "\n".join(lines)
