"""What the commands share: the flags for models, modes and sampling, quiet libraries, bad input as one line."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import transformers

from specdecodes.core.decoder import Decoder
from specdecodes.core.load import load
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.settings import SettingWarning
from specdecodes.data import KNOWN

logger = logging.getLogger("specdecodes")

PARTS = {
    "propose": "drafter",
    "build_tree": "tree builder",
    "verify": "verifier",
    "commit_state": "state back-end",
}
"""The part of a mode that each of these flags replaces."""

DRAFT_HELP = "a folder, a hub id, an embedded draft, or a drafter's name"

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises its errors instead of printing the usage over several lines.

    Help keeps the line breaks of description and epilog; flags are never abbreviated.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}; '{self.prog} --help' lists the flags")


def add_target_arguments(group: argparse._ArgumentGroup) -> None:
    """Add what says which target runs where: ``target``, ``tokenizer``, ``device``, ``dtype``, whose code may run."""
    group.add_argument(
        "--target",
        "--model_target",
        "-llm",
        "--llm-path",
        "--model-name",
        default="embedded",
        metavar="NAME",
        help="a folder, a hub id, or 'embedded' (default)",
    )
    add_tokenizer_arguments(group)
    group.add_argument("--device", help="cpu or cuda[:N] (default: cuda where there is one)")
    group.add_argument(
        "--dtype",
        help="float32, bfloat16, float16, float64 (default: float32 on a CPU, the checkpoint's own on a GPU)",
    )


def add_tokenizer_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add ``tokenizer`` and ``trust_remote_code``."""
    group.add_argument("--tokenizer", metavar="NAME", help="a folder or hub id (default: the one beside the target)")
    add_trust_argument(group)


def add_trust_argument(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add ``trust_remote_code``."""
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a model or tokenizer comes with (default: never)",
    )


def add_draft_argument(group: argparse._ArgumentGroup, *names: str, **settings: Any) -> None:
    """Add ``draft``; ``names`` are further flags for it, ``settings`` go to ``add_argument``."""
    group.add_argument("--draft", "--model_draft", "-ssm", "--ssm-path", *names, metavar="NAME", **settings)


def add_text_arguments(
    group: argparse._ArgumentGroup | argparse.ArgumentParser,
    flag: str,
    *,
    limit: int | None,
    many: str = "",
    **settings: Any,
) -> None:
    """Add what names texts, see :func:`specdecodes.data.texts`: ``flag``, ``split``, ``field``, ``limit``.

    Args:
        flag: the source; ``settings`` go to its ``add_argument``. limit: the default; many: how the help says it.
    """
    group.add_argument(flag, metavar="NAME", help=f"a file, a folder or a data set: {', '.join(KNOWN)}", **settings)
    group.add_argument("--split", metavar="NAME", help="of a data set on the hub (default: its usual one)")
    group.add_argument("--field", metavar="NAME", help="where a JSON record holds its text (default: the usual names)")
    many = many or ("all" if limit is None else str(limit))
    group.add_argument("--limit", type=int, default=limit, metavar="N", help=f"read N texts (default: {many})")


def add_length_argument(group: argparse._ArgumentGroup) -> None:
    """Add ``max_length``."""
    help = "tokens that a cache can hold, prompt included (default: as many as needed)"
    group.add_argument("--max-length", "--M", type=int, metavar="N", help=help)


def add_model_arguments(parser: argparse.ArgumentParser, *draft_names: str) -> None:
    """Add what :func:`load_from` reads, except ``--mode``: the model, the parts of the mode, their settings.

    ``draft_names`` are further flags for the draft.
    """
    group = parser.add_argument_group("model")
    add_target_arguments(group)
    add_draft_argument(group, *draft_names, help=DRAFT_HELP)
    group.add_argument(
        "--compile", "--cg", action="store_true", help="compile the forwards, and capture them as graphs on CUDA"
    )
    add_length_argument(group)
    group.add_argument(
        "--lossless-only", action="store_true", help="refuse modes and verifiers that are lossy ('specdecodes plugins')"
    )
    group = parser.add_argument_group("parts of the mode ('specdecodes plugins' lists them)")
    for part, kind in PARTS.items():
        group.add_argument(f"--{part.replace('_', '-')}", metavar="NAME", help=f"replace the {kind}")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a component's setting; may be repeated"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Add what :func:`sampling_from` reads: how tokens are chosen and how many; ``seed`` only where it is taken."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        *("--max-new-tokens", "--n_tokens_to_generate", "--genlen"),
        type=int,
        default=128,
        metavar="N",
        help="(default: %(default)s)",
    )
    group.add_argument(
        *("--temperature", "--temp", "--T"),
        type=float,
        metavar="T",
        help="0 is greedy (default); the logits are divided by it",
    )
    group.add_argument("--do-sample", action="store_true", help="temperature 1, where --temperature says nothing else")
    group.add_argument("--top-k", "--top_k", "--topk", type=int, default=0, metavar="K", help="0 is off (default)")
    group.add_argument(
        *("--top-p", "--top_p", "--topp", "--P"), type=float, default=1.0, metavar="P", help="1 is off (default)"
    )
    group.add_argument("--min-p", "--min_p", "--minp", type=float, default=0.0, metavar="P", help="0 is off (default)")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1 is off (default)")
    if seed:
        group.add_argument("--seed", type=int, help="reproduces a sampled answer (default: a fresh one)")
    else:
        parser.set_defaults(seed=None)


def load_from(args: argparse.Namespace, **extra: Any) -> Decoder:
    """The decoder that the flags ask for: ``args.mode`` and what :func:`add_model_arguments` added.

    Raises:
        ValueError: see :func:`specdecodes.load`.
    """
    settings: dict[str, Any] = {**parse_settings(args.set)}
    for name in settings:
        if name in inspect.signature(load).parameters:
            raise ValueError(f"--set: {name!r} is no component's setting; use --{name.replace('_', '-')}")
    parts = {part: getattr(args, part) for part in PARTS}
    return load(
        args.target,
        args.draft,
        args.mode,
        tokenizer=args.tokenizer,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        compile=args.compile,
        max_length=args.max_length,
        lossless_only=args.lossless_only,
        **parts,
        **extra,
        **settings,
    )


def sampling_from(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``Decoder.generate``, checked here so that nothing is loaded for an answer that cannot be.

    Raises:
        ValueError: a value out of range.
    """
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if args.do_sample else 0.0
    elif args.do_sample and temperature == 0:
        raise ValueError("temperature: expected above 0 with --do-sample, got 0; leave one of the two out")
    names = ("max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = {name: getattr(args, name) for name in names}
    sampling["temperature"] = temperature
    SamplingParams(**sampling)
    return sampling


def parse_settings(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` pairs; of two with one key the later counts. ``load`` reads the values as each setting's type.

    Raises:
        ValueError: no equals sign, or nothing before it.
    """
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set: expected KEY=VALUE, got {pair!r}; for example --set depth=4")
        settings[key.strip()] = value.strip()
    return settings


def check_out(path: Path, flag: str = "--out") -> None:
    """Refuse a place where ``flag``'s file cannot be written, before any work is done for it.

    Raises:
        ValueError: a folder, or a file in a folder that does not exist.
    """
    if path.is_dir():
        raise ValueError(f"{flag}: expected a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{flag}: expected a file in a folder that exists, got {str(path)!r}; make the folder first")


def run_reporting_errors(function: Callable[[], int | None], prog: str = "specdecodes") -> int:
    """Run a command's work; returns its exit code, 0 where the work returns none.

    Bad input (``ValueError``, ``OSError``) becomes one line on stderr and 2; ``LOGLEVEL=DEBUG`` adds the traceback.
    """
    try:
        set_log_level()
        code = function()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; the interpreter must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError) as error:
        logger.debug("bad input", exc_info=True)
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code or 0


def set_log_level() -> None:
    """Obey ``LOGLEVEL``; without it libraries keep quiet, so that an error is the only line.

    Raises:
        ValueError: a level that does not exist.
    """
    name = os.environ.get("LOGLEVEL", "").upper()
    levels = logging.getLevelNamesMapping()
    if name and name not in levels:
        raise ValueError(f"LOGLEVEL: expected one of {', '.join(levels)}, got {name!r}")
    logging.basicConfig(level=name or "ERROR", format="%(levelname)s %(name)s: %(message)s")
    logger.setLevel(name or "WARNING")  # hook traces and what our own code warns of
    transformers.logging.set_verbosity(levels[name or "ERROR"])
    logging.getLogger("huggingface_hub").setLevel(name or "ERROR")  # it prints by itself, for example every retry
    transformers.logging.disable_progress_bar()
    if not name and not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SettingWarning)
        warnings.showwarning = _show_setting_warning


def _show_setting_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """The only warnings that get here: what a user should know, as one line."""
    print(f"warning: {message}", file=sys.stderr)
