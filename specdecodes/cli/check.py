"""``specdecodes check``: the self-test on a user's model, once per state back-end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from specdecodes.cli.arguments import OneLineParser, add_trust_argument, run_reporting_errors
from specdecodes.cli.columns import print_columns
from specdecodes.models.families import SUPPORTED, RefusedError, family_of
from specdecodes.models.loading import load_model, parse_device, parse_dtype
from specdecodes.models.selftest import self_test
from specdecodes.models.target import Target
from specdecodes.plugin import Context, registry

PROG = "specdecodes check"
EXAMPLE = f"""\
examples:
  {PROG} embedded
  {PROG} FOLDER --dtype bfloat16
  {PROG} ibm-ai-platform/Bamba-9B-v1 --device cuda --json
"""
DESCRIPTION = """\
Load a model and compare trees, commits and steps on it with its own stock one-token steps, once per state back-end.
Exit code: 0 where every back-end agrees, 1 where the model is refused, 2 where it cannot be read."""
REFUSED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(prog=PROG, description=DESCRIPTION, epilog=EXAMPLE)
    made.add_argument("model", metavar="PATH_OR_ID", help="a folder, a hub id, or 'embedded'")
    made.add_argument("--device", help="cpu or cuda[:N] (default: cuda where there is one)")
    made.add_argument("--dtype", help="(default: float32 on a CPU, the checkpoint's own on a GPU)")
    add_trust_argument(made)
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def run(args: argparse.Namespace) -> int:
    """Load, test, report; returns the exit code.

    Raises:
        ValueError: bad input: no such model, or files that are missing or damaged.
    """
    device = parse_device(args.device)
    began = time.perf_counter()
    try:
        dtype = parse_dtype(args.dtype, device)
        model = load_model(args.model, "model", device, dtype, trust_remote_code=args.trust_remote_code)
        target = Target(model)
    except RefusedError as refusal:
        found: dict[str, Any] = {"model": args.model, "refused": str(refusal)}
    else:
        family, loaded = family_of(model.config), time.perf_counter() - began
        found = {"model": args.model, "family": family, "layers": SUPPORTED[family], "refused": None}
        found |= {"dtype": str(target.dtype).removeprefix("torch."), "device": str(target.device)}
        found |= {"load_seconds": loaded, "backends": [tested(target, name) for name in registry().names("state")]}
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print_report(found)
    return REFUSED if found["refused"] or any(each["refused"] for each in found["backends"]) else 0


def tested(target: Target, name: str) -> dict[str, Any]:
    """The self-test with the state back-end ``name``: error and tolerance, or why it is refused."""
    backend = registry().get("state", name).factory
    began = time.perf_counter()
    try:
        report = self_test(Target(target.model, backend=backend(Context(target))))  # type: ignore[operator]
    except RefusedError as refusal:
        found: dict[str, Any] = {"error": None, "tolerance": None, "refused": str(refusal)}
    else:
        found = {"error": report.max_error, "tolerance": report.tolerance, "refused": None}
    return {"name": name, **found, "seconds": time.perf_counter() - began}


def print_report(found: dict[str, Any]) -> None:
    """What was found, for people."""
    print(f"model   {found['model']}")
    if found["refused"]:
        print(f"refused {found['refused']}")
        return
    print(f"family  {found['family']} ({found['layers']})")
    print(f"dtype   {found['dtype']} on {found['device']}, loaded in {found['load_seconds']:.1f} s\n")
    rows = [("state back-end", "error", "allowed", "time", "")]
    for each in found["backends"]:
        numbers = ("-", "-") if each["refused"] else (f"{each['error']:.1e}", f"{each['tolerance']:.1e}")
        rows.append((each["name"], *numbers, f"{each['seconds']:.2f} s", each["refused"] or "agrees with stock"))
    print_columns(rows)
