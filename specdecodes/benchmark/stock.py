"""Plain decoding and prefill against stock transformers: ``python -m specdecodes.benchmark.stock``.

Shows that the baseline of every speed-up is honest (``naive`` is at least as fast as stock ``generate``) and what the
sequence ops gain over the stock CPU scan at its best chunk size.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from specdecodes import Target, load
from specdecodes.benchmark.provenance import write_measurement
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors

PROG = "python -m specdecodes.benchmark.stock"
STOCK_CHUNKS = (8, 16, 32, 64)


def paired(ours: Callable[[], Any], stock: Callable[[], Any], repeat: int) -> dict[str, Any]:
    """Time both in turn after one warm-up each: seconds, and the ratio stock / ours pair by pair."""
    ours()
    stock()
    pairs = [(_seconds(ours), _seconds(stock)) for _ in range(repeat)]
    ratios = [b / a for a, b in pairs]
    return {
        "ours_seconds": statistics.median(a for a, _ in pairs),
        "stock_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def measure_prefill(tokens: int, repeat: int) -> dict[str, Any]:
    """Prefill of ``tokens`` tokens on a 50M-parameter Mamba-2 with random weights, stock at its best chunk size."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=16384, hidden_size=512, num_hidden_layers=24, num_heads=16, head_dim=64, state_size=128, n_groups=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Mamba2ForCausalLM(config).eval()
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    target = Target(model)

    def stock() -> None:
        with torch.inference_mode():
            model(ids, use_cache=True, logits_to_keep=1)

    best = min(STOCK_CHUNKS, key=lambda chunk: _with_chunk(model, chunk, stock))
    _set_chunk(model, best)
    result = paired(lambda: target.prefill(ids), stock, repeat)
    parameters = sum(p.numel() for p in model.parameters())
    return {"tokens": tokens, "parameters": parameters, "stock_chunk": best, **result}


def measure_plain(new_tokens: int, repeat: int) -> dict[str, Any]:
    """``naive`` against stock ``generate`` on the embedded target, greedy, without stopping at end of text."""
    decoder = load(mode="naive")
    prompt = "Tom has 3 boxes with 12 apples each. He gives 7 apples to Mary. How many apples are left?"
    ids = decoder.encode([{"role": "user", "content": prompt}])
    model = decoder.target.model

    def stock() -> list[int]:
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        return list(out[0, ids.shape[1] :].tolist())

    def ours() -> list[int]:
        return decoder.generate(ids, max_new_tokens=new_tokens, ignore_eos=True).tokens[0]

    return {"new_tokens": new_tokens, **paired(ours, stock, repeat)}


def main(argv: list[str] | None = None) -> int:
    """Print both comparisons; ``--json FILE`` keeps them with their provenance."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: list[str] | None) -> None:
    parser = OneLineParser(prog=PROG, description=__doc__)
    parser.add_argument("--prefill-tokens", type=int, default=512, metavar="N", help="(default: 512)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="(default: 128)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="pairs (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers, versions and hardware to FILE")
    args = parser.parse_args(argv)
    for name in ("prefill_tokens", "new_tokens", "repeat"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    found = {
        "prefill": measure_prefill(args.prefill_tokens, args.repeat),
        "plain": measure_plain(args.new_tokens, args.repeat),
    }
    for name, row in found.items():
        print(
            f"{name}: ours {row['ours_seconds'] * 1e3:.1f} ms, stock {row['stock_seconds'] * 1e3:.1f} ms, "
            f"stock / ours {row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})"
        )
    if args.json:
        write_measurement(args.json, "specdecodes.benchmark.stock", argv, found)


def _with_chunk(model: torch.nn.Module, chunk: int, run: Callable[[], Any]) -> float:
    _set_chunk(model, chunk)
    return _seconds(run)


def _set_chunk(model: torch.nn.Module, chunk: int) -> None:
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            setattr(module, "chunk_size", chunk)  # noqa: B010 - a mixer's own attribute


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
