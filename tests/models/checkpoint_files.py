"""Weights written as checkpoints come: safetensors or torch pickles, in one file or in shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FORMS = ("model.safetensors", "model-0000x.safetensors", "pytorch_model.bin", "pytorch_model-0000x.bin")
"""What :func:`write_weights` can write."""


def write_weights(folder: Path, weights: dict[str, Tensor], form: str) -> list[Path]:
    """Write ``weights`` in one of ``FORMS``; three shards where there are several. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().contiguous().clone() for name, weight in weights.items()}
    names = sorted(weights)
    parts = [names[i::3] for i in range(3)] if "0000x" in form else [names]
    files = [folder / form.replace("x", f"{i}-of-00003", 1) for i in (1, 2, 3)] if len(parts) > 1 else [folder / form]
    for file, part in zip(files, parts, strict=True):
        held = {name: weights[name] for name in part}
        if form.endswith(".bin"):
            torch.save(held, file)
        else:
            save_file(held, file, metadata={"format": "pt"})
    if len(parts) > 1:
        places = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": places}
        stem = form.replace("-0000x", "")
        (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return files
