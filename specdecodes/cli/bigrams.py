"""``specdecodes bigrams``: count the table that ``bigram-widen`` and ``commonsense`` look followers up in."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.models.loading import load_tokenizer
from specdecodes.plugins.bigrams import BigramTable, fingerprint

PROG = "specdecodes bigrams"
EXAMPLE = f"""\
examples:
  {PROG} build --corpus notes.txt --out bigrams.safetensors
  {PROG} build --target FOLDER --corpus answers.jsonl --field answer --top 12 --out bigrams.safetensors
  specdecodes generate --build-tree bigram-widen --set bigrams=bigrams.safetensors --prompt "Why is the sky blue?"
"""

BATCH = 1000
"""Texts that are tokenized at a time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG, description="Count which tokens follow which in a corpus, for one tokenizer.", epilog=EXAMPLE
    )
    made.add_argument("action", choices=["build"], help="count a corpus and write the table")
    made.add_argument("--corpus", required=True, metavar="FILE", help="a text file, or JSON lines (.jsonl)")
    made.add_argument("--field", metavar="NAME", help="where JSON lines hold the text (default: text)")
    made.add_argument("--limit", type=int, metavar="N", help="count the first N texts (default: all)")
    made.add_argument("--target", default="embedded", metavar="NAME", help="a folder, a hub id (default: embedded)")
    made.add_argument("--tokenizer", metavar="NAME", help="a folder or hub id (default: the one beside the target)")
    made.add_argument("--top", type=int, default=12, metavar="K", help="followers that a token keeps (default: 12)")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="the table (safetensors)")
    return made


def run(args: argparse.Namespace) -> None:
    """Read, tokenize, count, write.

    Raises:
        ValueError: no tokenizer, a corpus that cannot be read or has no pair of tokens, a number out of range.
    """
    if args.top < 1:
        raise ValueError(f"--top: expected at least 1 follower per token, got {args.top}")
    if args.out.is_dir():
        raise ValueError(f"--out: expected a file, got the folder {str(args.out)!r}")
    found = texts(args.corpus, field=args.field, limit=args.limit)
    tokenizer = load_tokenizer(args.target, args.tokenizer)
    if tokenizer is None:
        raise ValueError(f"--target: expected a model with a tokenizer, got {args.target!r}; name one with --tokenizer")
    documents = list(tokenized(found, tokenizer))
    if not any(len(ids) > 1 for ids in documents):
        raise ValueError(
            f"--corpus: expected text with at least one pair of tokens, got none in {args.corpus!r} "
            f"({len(documents)} texts); give a corpus that holds text"
        )
    vocab_size = 1 + max(tokenizer.get_vocab().values())
    table = BigramTable.build(documents, vocab_size, top=args.top, tokenizer=fingerprint(tokenizer))
    table.save(args.out)
    known = int((table.followers[:, 0] >= 0).sum())
    print(f"{args.out}: {table.tokens:,} tokens of {len(documents):,} texts counted")
    print(f"{known:,} of {vocab_size:,} tokens have followers, {args.top} at most")


def tokenized(found: Iterator[str], tokenizer: Any) -> Iterator[NDArray[np.int32]]:  # noqa: ANN401
    """The token ids of every text, without special tokens."""
    while batch := list(islice(found, BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            yield np.array(ids, dtype=np.int32)


def texts(source: str, *, field: str | None = None, limit: int | None = None) -> Iterator[str]:
    """The texts of a file: one per line of a ``.jsonl`` file, any other file as a whole.

    Raises:
        ValueError: no such file, not UTF-8, a line that is no JSON object with a text in ``field`` (None: ``text``).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 text, got {limit}; leave it out to take all")
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"corpus: expected a text file or JSON lines, got {source!r}, which is no file; check the path"
        )
    return islice(_texts(path, field or "text"), limit)


def _texts(path: Path, field: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            if path.suffix == ".jsonl":
                yield from (
                    _text_of(line, field, f"{path}: line {n}") for n, line in enumerate(file, 1) if line.strip()
                )
            else:
                yield file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus: {path}: expected UTF-8 text, got {error}; convert the file") from error


def _text_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"corpus: {where}: expected JSON, got {error}; correct the line") from error
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f"corpus: {where}: expected a JSON object with text in {field!r}, got {line[:60]!r}; name it with --field"
        )
    return text
