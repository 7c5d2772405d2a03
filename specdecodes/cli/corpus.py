"""``specdecodes corpus build``: index texts for the drafter ``rest``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.models.loading import load_tokenizer, tokenizer_fingerprint
from specdecodes.plugins.drafters.corpus import read_corpus
from specdecodes.plugins.drafters.datastore import Datastore

PROG = "specdecodes corpus"
EXAMPLE = f"""\
example:
  {PROG} build --tokenizer embedded --corpus texts.jsonl --out texts.safetensors
  specdecodes generate --draft rest --set datastore=texts.safetensors --prompt "Why is the sky blue?"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG,
        description="Index texts, so that the drafter 'rest' finds what followed a context in them.",
        epilog=EXAMPLE,
    )
    made.add_argument("action", choices=["build"], help="make a datastore")
    made.add_argument(
        "--tokenizer", required=True, metavar="NAME", help="the target's: a folder, a hub id or 'embedded'"
    )
    made.add_argument("--corpus", required=True, metavar="FILE", help="a text or JSONL file, a folder, or a data set")
    made.add_argument("--field", metavar="NAME", help="of a JSONL record, what is its text (default: the usual names)")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="the datastore to write")
    return made


def run(args: argparse.Namespace) -> None:
    """Read, index, write.

    Raises:
        ValueError: a tokenizer or a corpus that cannot be read, or a corpus without text.
    """
    began = time.perf_counter()
    tokenizer = load_tokenizer(None, args.tokenizer)
    documents = read_corpus(args.corpus, tokenizer, args.field)
    store = Datastore.build(documents, max(tokenizer.get_vocab().values()) + 1, tokenizer_fingerprint(tokenizer))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    store.save(args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {store.size} tokens, {size:.1f} MB, {time.perf_counter() - began:.1f} s")
