"""What the commands that make something of a corpus share: their flags, and the corpus as token ids."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdecodes.cli.arguments import OneLineParser, add_text_arguments, add_tokenizer_arguments, check_out
from specdecodes.models.loading import load_tokenizer, tokenizer_fingerprint
from specdecodes.plugins.drafters.corpus import read_corpus


class Corpus(NamedTuple):
    """A corpus as token ids.

    Attributes:
        documents: int32 [n] each. vocab_size: ids are below this. tokenizer: its fingerprint.
    """

    documents: list[NDArray[np.int32]]
    vocab_size: int
    tokenizer: str

    @property
    def size(self) -> str:
        """How much it is, in words."""
        return f"{sum(map(len, self.documents)):,} tokens of {len(self.documents):,} texts"


def add_build_arguments(parser: OneLineParser, *, makes: str, out: str) -> None:
    """Add the action ``build``, which ``makes`` something, what :func:`read` reads, and ``out``."""
    parser.add_argument("action", choices=["build"], metavar="build", help=makes)
    add_text_arguments(parser, "--corpus", limit=None, required=True)
    parser.add_argument("--target", default="embedded", metavar="NAME", help="a folder, a hub id (default: embedded)")
    add_tokenizer_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=out)


def read(args: argparse.Namespace) -> Corpus:
    """Read and tokenize what the flags name; ``--out`` is checked before, so that nothing is read in vain.

    Raises:
        ValueError: no tokenizer, a corpus that cannot be read or holds no text, a place where no file can be.
    """
    check_out(args.out)
    tokenizer = load_tokenizer(args.target, args.tokenizer, trust_remote_code=args.trust_remote_code)
    if tokenizer is None:
        raise ValueError(f"--target: expected a model with a tokenizer, got {args.target!r}; name one with --tokenizer")
    found = read_corpus(args.corpus, tokenizer, split=args.split, field=args.field, limit=args.limit)
    documents = [np.array(document, dtype=np.int32) for document in found]
    return Corpus(documents, 1 + max(tokenizer.get_vocab().values()), tokenizer_fingerprint(tokenizer))
