"""``specdecodes bigrams build``: count the table that ``bigram-widen`` and ``commonsense`` look followers up in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.cli.building import add_build_arguments, read
from specdecodes.plugins.bigrams import BigramTable

PROG = "specdecodes bigrams"
EXAMPLE = f"""\
examples:
  {PROG} build --corpus notes.txt --out bigrams.safetensors
  {PROG} build --target FOLDER --corpus answers.jsonl --field answer --top 12 --out bigrams.safetensors
  specdecodes generate --build-tree bigram-widen --set bigrams=bigrams.safetensors --prompt "Why is the sky blue?"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG, description="Count which tokens follow which in a corpus, for one tokenizer.", epilog=EXAMPLE
    )
    add_build_arguments(made, makes="count a corpus and write the table", out="the table (safetensors)")
    made.add_argument("--top", type=int, default=12, metavar="K", help="followers that a token keeps (default: 12)")
    return made


def run(args: argparse.Namespace) -> None:
    """Read, count, write.

    Raises:
        ValueError: see :func:`specdecodes.cli.building.read`; no pair of tokens, a number out of range.
    """
    if args.top < 1:
        raise ValueError(f"--top: expected at least 1 follower per token, got {args.top}")
    corpus = read(args)
    if not any(len(ids) > 1 for ids in corpus.documents):
        raise ValueError(
            f"--corpus: expected text with at least one pair of tokens, got none in {args.corpus!r} ({corpus.size}); "
            "give a corpus that holds text"
        )
    table = BigramTable.build(*corpus, top=args.top)
    table.save(args.out)
    known = int((table.followers[:, 0] >= 0).sum())
    print(f"{args.out}: {corpus.size} counted")
    print(f"{known:,} of {table.vocab_size:,} tokens have followers, {args.top} at most")
