"""Compile every Triton kernel ahead of time, for GPUs that need not be here: does it build, and what does it take?

Registers, spills and shared memory are what ``ptxas`` reports. Exit status 1 if a kernel spills more than
``SPILL_LIMIT`` bytes a thread or wants more shared memory than its GPU has.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdecodes.benchmark.provenance import write_measurement
from specdecodes.benchmark.shapes import SHAPES, AttentionSizes, DeltaSizes, Mamba2Sizes, S6Sizes
from specdecodes.cli.arguments import OneLineParser, check_out, run_reporting_errors
from specdecodes.kernels.causal_conv import triton as conv
from specdecodes.kernels.gated_delta import triton as delta
from specdecodes.kernels.kv_gather import triton as gather
from specdecodes.kernels.mamba2_scan import triton as scan
from specdecodes.kernels.s6_scan import triton as s6
from specdecodes.kernels.tree_attention import triton as attention
from specdecodes.models.recurrences.mamba2 import PENDING

PROG = "python -m specdecodes.benchmark.compile_kernels"
EXAMPLE = f"""\
example:
  {PROG} --kernel tree_conv --out kernels-aot.json
"""
SHARED_LIMIT = {80: 166912, 90: 232448}
"""The GPUs to compile for (compute capability times ten) and the bytes of shared memory that a block can have there."""
SPILL_LIMIT = 16
"""Bytes that a thread may spill: ptxas gives up a register or two where that lets another block run beside it."""
COUNTS = (13, 32, 64)
"""Tree sizes: one for each row tile; larger trees take one of these several times."""
S6_COUNTS = (13, 32, 64, 128)
"""Tree sizes of S6 scans, which hold a whole tree."""
FALCON_H1 = Mamba2Sizes(heads=24, head_dim=128, groups=1, state_dim=256, taps=4, layers=44)
"""Falcon-H1 7B has the largest states."""
LENGTH = 4
"""Of a path; up to 16 nodes the kernels are the same."""
OPTIONS = ("num_warps", "num_stages")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Case:
    """One kernel to compile: its constants and options, and the types of its pointers (float32 where none is given).

    All other arguments are int32, where ``pointers`` does not say otherwise.
    """

    name: str
    kernel: Any
    settings: dict[str, Any]
    pointers: dict[str, str]

    @property
    def constants(self) -> dict[str, Any]:
        """What the kernel takes as ``tl.constexpr``."""
        return {name: value for name, value in self.settings.items() if name not in OPTIONS}

    @property
    def options(self) -> dict[str, Any]:
        """What Triton takes itself."""
        return {"num_warps": 4, **{name: self.settings[name] for name in OPTIONS if name in self.settings}}


def cases() -> Iterator[Case]:
    """Every kernel in every configuration that the launchers choose for the models of ``SHAPES``, each once."""
    seen = []
    makers: dict[type[Any], Sequence[Callable[[Any, torch.dtype], Iterator[Case]]]] = {
        Mamba2Sizes: (_scans, _jumps, _windows, _conv),
        S6Sizes: (_s6,),
        DeltaSizes: (_delta, _windows),
        AttentionSizes: (_gathers, _attention),
    }
    for kind, made in makers.items():
        found = [shape.sizes[kind] for shape in SHAPES.values() if kind in shape.sizes]
        for sizes in (*found, FALCON_H1) if kind is Mamba2Sizes else found:
            for dtype in POINTERS:
                for case in (case for maker in made for case in maker(sizes, dtype)):
                    if case not in seen:
                        seen.append(case)
                        yield case


def _mixer(sizes: Mamba2Sizes) -> dict[str, int]:
    return {"H": sizes.heads, "P": sizes.head_dim, "G": sizes.groups, "N": sizes.state_dim}


def _scans(shape: Mamba2Sizes, dtype: torch.dtype) -> Iterator[Case]:
    types = _types(dtype, "p_x p_B p_C p_path p_dt_bias", p_ancestors="*u8", p_length="*i64")
    alone = {"M": 0, "SHARED": 1, "HAS_DT_BIAS": False, "SOFTPLUS": False}
    replay = {"M": PENDING, "SHARED": shape.shared, "HAS_DT_BIAS": True, "SOFTPLUS": True}
    for count in COUNTS:
        config = scan.scan_config(count, shape.head_dim, shape.state_dim, dtype)
        for name, settings in (("tree_scan", alone), ("replay_scan", replay)):
            yield Case(name, scan.tree_scan_kernel, {**_mixer(shape), "SKIP": True, **settings, **config}, types)


def _jumps(shape: Mamba2Sizes, dtype: torch.dtype) -> Iterator[Case]:
    flags = dict.fromkeys(("HAS_BIAS", "HAS_DT_BIAS", "SOFTPLUS", "SILU"), True)
    types = _types(dtype, "p_windows p_inputs p_dt p_weight p_bias p_dt_bias", p_path="*i64")
    config = scan.jump_config(LENGTH, shape.head_dim, shape.state_dim)
    constants = {**_mixer(shape), "SHARED": shape.shared, "W": shape.taps, **flags, **config}
    yield Case("jump_states", scan.jump_states_kernel, constants, types)


def _windows(shape: Mamba2Sizes | DeltaSizes, dtype: torch.dtype) -> Iterator[Case]:
    types = _types(dtype, "p_windows p_inputs", p_path="*i64")
    constants = {"W": shape.taps, **conv.windows_config(LENGTH, shape.taps)}
    yield Case("jump_windows", conv.jump_windows_kernel, constants, types)


def _conv(shape: Mamba2Sizes, dtype: torch.dtype) -> Iterator[Case]:
    types = _types(dtype, "p_x p_window p_weight p_bias p_y p_inputs p_path", p_index="*i64", p_length="*i64")
    for name, most in (("tree_conv", 0), ("replay_conv", PENDING)):
        constants = {"W": shape.taps, "HAS_BIAS": True, "SILU": True, **conv.conv_config(most, shape.taps)}
        yield Case(name, conv.tree_conv_kernel, constants, types)


def _s6(sizes: S6Sizes, dtype: torch.dtype) -> Iterator[Case]:
    channels, state_dim = sizes.channels, sizes.state_dim
    types = _types(dtype, "p_x p_B p_C p_D p_y", p_parents="*i64")
    for count in S6_COUNTS:
        config = s6.scan_config(count, channels, state_dim)
        yield Case("s6_tree_scan", s6.tree_scan_kernel, {"N": state_dim, "SKIP": True, **config}, types)
    config = s6.jump_config(channels, state_dim)
    yield Case("s6_jump", s6.jump_kernel, {"N": state_dim, **config}, _types(dtype, "p_x p_B"))


def _delta(sizes: DeltaSizes, dtype: torch.dtype) -> Iterator[Case]:
    types = _types(dtype, "p_v p_beta", p_ancestors="*u8")
    config = delta.scan_config(sizes.key_dim, sizes.value_dim, sizes.decays, dtype)
    heads = {"H": sizes.heads, "K": sizes.key_dim, "V": sizes.value_dim, "E": sizes.decays}
    yield Case("delta_tree_scan", delta.tree_scan_kernel, {**heads, **config}, types)
    constants = {**heads, "NORMALIZES": True, **delta.jump_config(LENGTH, sizes.key_dim, sizes.value_dim)}
    yield Case("delta_jump", delta.jump_kernel, constants, _types(dtype, "p_k", p_path="*i64"))


def _gathers(sizes: AttentionSizes, dtype: torch.dtype) -> Iterator[Case]:
    dim = sizes.head_dim
    types = _types(dtype, "p_keys p_values", p_source="*i64", p_target="*i64")
    for length in (LENGTH, max(S6_COUNTS)):
        config = gather.gather_config(length, dim, dim)
        yield Case("kv_gather", gather.move_rows_kernel, {"K": dim, "V": dim, **config}, types)


def _attention(sizes: AttentionSizes, dtype: torch.dtype) -> Iterator[Case]:
    types = _types(dtype, "p_q p_keys p_values", p_lengths="*i64", p_ancestors="*u8", scale="fp32")
    times, dim = sizes.heads // sizes.kv_heads, sizes.head_dim
    heads = {"G": sizes.kv_heads, "R": times, "V": dim}
    for count in (1, *COUNTS):
        config = attention.piece_config(count * times, dim, dim, dtype)
        yield Case("attention_piece", attention.piece_kernel, {**heads, "K": dim, **config}, types)
        tiles = {name: config[name] for name in ("BM", "BV")}
        yield Case("attention_merge", attention.merge_kernel, {**heads, **tiles}, _types(dtype, "p_y"))


def _types(dtype: torch.dtype, names: str, **others: str) -> dict[str, str]:
    return {**dict.fromkeys(names.split(), POINTERS[dtype]), **others}


def compiled(case: Case, capability: int) -> dict[str, Any]:
    """Compile for a capability (90 for 9.0); returns what the kernel takes."""
    names = case.kernel.arg_names
    signature = {name: _type(name, case) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=case.options)
    return {
        "kernel": case.name,
        "capability": capability,
        "settings": {**case.constants, **case.options},
        "pointers": {name: kind for name, kind in signature.items() if kind.startswith("*")},
        "shared_bytes": built.metadata.shared,
        **resources(built.asm["ptx"], capability),
    }


def _type(name: str, case: Case) -> str:
    if name in case.constants:
        return "constexpr"
    return case.pointers.get(name, "*fp32" if name.startswith("p_") else "i32")


def resources(ptx: str, capability: int) -> dict[str, int]:
    """Registers, and bytes of spills and of stack, that a thread of ``ptx`` takes on a GPU of that capability."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx, encoding="utf-8")
        gpu = f"sm_{capability}{'a' if capability >= 90 else ''}"  # as Triton itself calls ptxas
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--regAllocOptLevel=2", f"--gpu-name={gpu}"]
        command += [str(path), "-o", str(path.with_suffix(".o"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    patterns = {
        "registers": r"Used (\d+) registers",
        "spilled_bytes": r"(\d+) bytes spill stores",
        "stack_bytes": r"(\d+) bytes stack",
    }
    found = {name: re.search(pattern, said) for name, pattern in patterns.items()}
    assert all(found.values()), said
    return {name: int(match[1]) for name, match in found.items() if match}


def too_much(row: dict[str, Any]) -> str | None:
    """What a compiled kernel takes too much of, as one line; None if it takes nothing too much."""
    limit = SHARED_LIMIT[row["capability"]]
    if row["spilled_bytes"] > SPILL_LIMIT:
        return f"spills {row['spilled_bytes']} bytes a thread, above {SPILL_LIMIT}"
    if row["shared_bytes"] > limit:
        return f"takes {row['shared_bytes']} bytes of shared memory, above {limit}"
    return None


def main(argv: list[str] | None = None) -> int:
    """Compile and report; 1 if a kernel takes too much, 2 for bad input."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: list[str] | None) -> int:
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=EXAMPLE)
    names = list(dict.fromkeys(case.name for case in cases()))
    parser.add_argument("--kernel", choices=names, help="only this one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report to FILE")
    options = parser.parse_args(argv)
    if options.out is not None:
        check_out(options.out)
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET: expected 0 to compile kernels, got 1; unset it")
    rows, bad = [], 0
    for case in cases():
        if options.kernel not in (None, case.name):
            continue
        for capability in SHARED_LIMIT:
            row = compiled(case, capability)
            rows.append(row)
            problem = too_much(row)
            bad += problem is not None
            print(_line(row, problem), flush=True)
    if options.out is not None:
        limits = {"spilled_bytes": SPILL_LIMIT, "shared_bytes": SHARED_LIMIT}
        write_measurement(options.out, "specdecodes.benchmark.compile_kernels", argv, {"limits": limits, "rows": rows})
    return 1 if bad else 0


def _line(row: dict[str, Any], problem: str | None) -> str:
    tiles = " ".join(f"{name}={value}" for name, value in row["settings"].items() if not isinstance(value, bool))
    kind = next(
        row["pointers"][name] for name in ("p_x", "p_inputs", "p_v", "p_keys", "p_k", "p_y") if name in row["pointers"]
    )
    taken = f"{row['registers']} registers, {row['spilled_bytes']} spilled, {row['shared_bytes']} shared"
    return f"{row['kernel']} sm_{row['capability']} {kind} {tiles}: {taken}" + (f"; {problem}" if problem else "")


if __name__ == "__main__":
    sys.exit(main())
