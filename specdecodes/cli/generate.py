"""``specdecodes generate``: stream one answer and say how fast it came."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from specdecodes.cli.arguments import (
    OneLineParser,
    add_model_arguments,
    add_sampling_arguments,
    load_from,
    run_reporting_errors,
    sampling_from,
)
from specdecodes.cli.seeds import add_seed_arguments, apply
from specdecodes.core.decoder import Decoder, Generation
from specdecodes.core.state import DecodeState
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.observers.acceptance import Acceptance

PROG = "specdecodes generate"
EXAMPLE = f"""\
examples:
  {PROG} --mode stree --prompt "Why is the sky blue?"
  {PROG} --mode sd --draft mamba2 --set depth=5 --temperature 0.8 --seed 1 --prompt "Tell me a story."
  {PROG} --target FOLDER --draft FOLDER --prompt "def fibonacci(n):" --raw
  {PROG} --prompt "Why is the sky blue?" --max-new-tokens 16 --show-trees
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG, description="Stream one answer, then print times and how much was accepted.", epilog=EXAMPLE
    )
    made.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer or to continue")
    made.add_argument("--mode", metavar="NAME", help="(default: stree; with --K: sd)")
    form = made.add_mutually_exclusive_group()
    form.add_argument(
        "--chat", action="store_true", default=None, help="use the chat template (default where there is one)"
    )
    form.add_argument("--raw", dest="chat", action="store_false", help="continue the prompt as it is")
    add_model_arguments(made)
    add_sampling_arguments(made)
    add_seed_arguments(made)
    made.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer here; may be repeated"
    )
    made.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")
    made.add_argument(
        "--show-trees",
        action="store_true",
        help="print every step's tree with accepted, rejected and bonus tokens; the times then include the printing",
    )
    return made


def run(args: argparse.Namespace) -> None:
    """Load, stream, report. Everything that can be checked without a model is checked before one is loaded.

    Raises:
        ValueError: bad input.
    """
    sampling = {**sampling_from(args), "stop": args.stop, "ignore_eos": args.ignore_eos}
    if not args.prompt:
        raise ValueError("prompt: expected some text, got an empty prompt")
    (args.mode,) = apply(args, [] if args.mode is None else [args.mode]) or ("stree",)
    last = LastGeneration()
    decoder = load_from(args, observers=[Acceptance(), last, *(["show-trees"] if args.show_trees else [])])
    if decoder.tokenizer is None:
        raise ValueError(
            f"tokenizer: expected one beside the target {args.target!r}, got none; name one by --tokenizer"
        )
    pieces = decoder.stream(decoder.as_prompt(args.prompt, chat=args.chat), **sampling)
    if args.show_trees:
        pieces = iter(["".join(pieces)])  # the answer in one piece, below its steps
    for piece in pieces:
        print(piece, end="", flush=True)
    assert last.generation is not None
    print("\n", *report(decoder, last.generation), sep="\n")


class LastGeneration:
    """An observer that keeps what came out, which a stream does not return."""

    generation: Generation | None = None

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Keep it."""
        self.generation = generation


def report(decoder: Decoder, generation: Generation) -> Iterator[str]:
    """The lines below the answer."""
    timings, new = generation.timings, len(generation.tokens[0])
    decoded = new - 1  # the first token comes with the prefill
    rate = f", {decoded / timings['decode']:.1f} tokens/s" if decoded else ""
    yield f"mode             {decoder.mode}{'' if generation.lossless else ' (lossy)'}"
    yield f"prefill          {timings['prefill']:.3f} s ({generation.prompt_tokens} tokens)"
    yield f"decode           {timings['decode']:.3f} s ({decoded} tokens{rate})"
    yield f"tokens per step  {generation.tau:.2f} ({len(generation.accept_lengths)} steps, bonus token included)"
    yield f"acceptance rate  {acceptance(generation)}"


def acceptance(generation: Generation) -> str:
    """Accepted of drafted tokens; siblings in a tree exclude each other, so there it is accepted of steps * depth."""
    counts = generation.extras["acceptance"]
    drafted, accepted, steps = counts["drafted"], sum(counts["accepted"]), len(generation.accept_lengths)
    if not drafted:
        return "- (nothing drafted)"
    if drafted == sum(counts["offered"]):
        return f"{accepted / drafted:.1%} ({accepted} accepted of {drafted} drafted)"
    depth = len(counts["offered"])
    asked = f"{steps} steps * {depth} levels; {drafted} tokens drafted"
    return f"{accepted / (steps * depth):.1%} ({accepted} accepted of {asked})"
