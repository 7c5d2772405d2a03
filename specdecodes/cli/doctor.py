"""``specdecodes doctor``: what this machine has, and which form of every op runs on it."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import torch

from specdecodes.benchmark.provenance import versions
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.kernels import installed, native
from specdecodes.kernels.choice import Choice, decide
from specdecodes.kernels.linear import packed
from specdecodes.kernels.switch import SWITCH, wanted
from specdecodes.models.loading import parse_device, parse_dtype
from specdecodes.models.products import PACK_LIMIT

PROG = "specdecodes doctor"
EXAMPLE = f"""\
The environment variable {SWITCH} (auto, triton, native, naive) forces a form where an op has it.

example:
  {PROG} --dtype bfloat16
"""


PLAIN = "models with sdpa and without windows"
"""Whose attention others than transformers may serve."""


class Served(NamedTuple):
    """An op, the form that runs, and why."""

    op: str
    form: str
    why: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG, description="Say which form of every op runs on this machine, and why.", epilog=EXAMPLE
    )
    made.add_argument("--device", help="cpu or cuda[:N] (default: cuda where there is one)")
    made.add_argument("--dtype", help="of the model (default: float32 on a CPU, bfloat16 on a GPU)")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def run(args: argparse.Namespace) -> None:
    """Print what there is and what serves.

    Raises:
        ValueError: a device or dtype that cannot be, or a form forced that cannot be had here.
    """
    device = parse_device(args.device)
    dtype = parse_dtype(args.dtype, device)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    found, ops = machine(), served(device.type, dtype)
    if args.json:
        print(json.dumps({"machine": found, "ops": [each._asdict() for each in ops]}, indent=2))
        return
    width = max(map(len, [*found, *(each.op for each in ops)]))
    for name, value in found.items():
        print(f"{name:{width}}  {value}")
    print(f"\nops on {device.type} in {str(dtype).removeprefix('torch.')}:")
    for each in ops:
        print(f"{each.op:{width}}  {each.form:6}  {each.why}")


def machine() -> dict[str, str]:
    """Versions, the GPU, the C++ compiler and the switch, each as one line."""
    found = {**versions(), "triton": _triton(), "CUDA": _cuda(), "C++ compiler": _compiler()}
    return {**found, SWITCH: wanted()}


def served(device: str, dtype: torch.dtype) -> list[Served]:
    """What runs for tensors of a device type and dtype, op by op, outside compiled graphs."""
    chosen = decide(device, dtype)
    step = chosen if chosen.form != "triton" else Choice("naive", "a step has no Triton kernel")
    only_triton = chosen if chosen.form != "native" else Choice("naive", "no C++ kernel, only Triton's")
    forms = {
        "mamba2 tree scan": chosen,
        "mamba2 jump": chosen,
        "mamba2 step": step,
        "tree conv": chosen,
        "step conv": step,
        "weight products": _products(device, dtype),
        "prefill conv": installed.CONV.decide(device, dtype),
        "prefill attention": _prefill_attention(device, dtype),
        "prefill scan, Mamba-2": installed.MAMBA2.decide(device, dtype),
        "prefill scan, gated delta": installed.GATED_DELTA.decide(device, dtype),
        "prefill scan, Kimi delta": installed.KIMI_DELTA.decide(device, dtype),
        "prefill scan, S6": Choice("naive", "plain torch; others' kernels start from no state"),
        "S6 tree scan and jump": only_triton,
        "delta-rule tree scan and jump": only_triton,
        "kv gather": only_triton,
        "tree attention": _attention(chosen),
    }
    return [Served(op, *choice) for op, choice in forms.items()]


def _prefill_attention(device: str, dtype: torch.dtype) -> Choice:
    """Which form lets the tokens of a sequence attend."""
    chosen = installed.ATTENTION.decide(device, dtype)
    if chosen.form == "naive":
        return chosen._replace(form="torch")
    return chosen._replace(why=f"{chosen.why}; {PLAIN}. Others: {installed.ATTENTION.otherwise}")


def _attention(chosen: Choice) -> Choice:
    """Which form lets the nodes of a tree attend."""
    stock = "transformers' sdpa or eager, as the model is loaded; flash-attn has no tree mask"
    if chosen.form != "triton":
        return Choice("torch", stock)
    return Choice("triton", f"{chosen.why}; {PLAIN}. Others: {stock}")


def _products(device: str, dtype: torch.dtype) -> Choice:
    """Which form multiplies by weights."""
    if device != "cpu":
        return Choice("torch", "packed copies are for CPUs")
    if not packed.available(dtype):
        return Choice("torch", f"neither our kernel nor oneDNN packs {str(dtype).removeprefix('torch.')} here")
    limit = f"weights packed once, up to {PACK_LIMIT >> 30} GiB a model"
    if dtype == torch.float32 and native.library() is not None:
        tiles = "tile registers (AMX)" if packed.has_tiles() else "vectors"
        return Choice("native", f"{limit}; in bfloat16, on {tiles}, those that it holds exactly")
    return Choice("oneDNN", limit)


def _triton() -> str:
    try:
        import triton
    except (ImportError, OSError, RuntimeError) as error:
        return f"does not import: {' '.join(str(error).split())}"
    return f"{triton.__version__}{' (interpreter)' if triton.knobs.runtime.interpret else ''}"


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"none ({'this build of torch has none' if built is None else f'torch is built for {built}'})"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{torch.version.cuda}, {torch.cuda.get_device_name()}, compute capability {capability}"


def _compiler() -> str:
    path = native.compiler()
    if path is None:
        return "none: neither CXX nor g++ nor c++ was found"
    try:
        done = subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not run: {' '.join(str(error).split())}"
    return f"{path}, {done.stdout.partition(chr(10))[0]}"
