"""The conformance run in short, with numbers: ``--conformance-json FILE`` writes what ``specdecodes models`` lists.

Every family: each node of six trees, and the states after four steps with every state back-end, against stock
one-token steps; forty greedy tokens against stock ``generate``. Runs on the oldest and the newest transformers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import specdecodes
from specdecodes.models.families import SUPPORTED
from specdecodes.models.target import Target
from specdecodes.plugin import registry

from .configs import FAMILIES
from .families import (
    Steps,
    gap,
    lifted,
    logits_of,
    path_to,
    prompt_of,
    shared,
    state_error,
    stock_prefix,
    stock_tree,
    stock_walk,
    tree_of,
)

F32, F64 = torch.float32, torch.float64
SHAPES = ("chain", "star", "comb", "stree", "random", "deep")
STEPS: Steps = (("stree", 12), ("single", 0), ("random", 15), ("six", 5))
PROMPT, NEW = 13, 40
LIFTED = 1e-9
"""Largest absolute difference in float64 with internal casts lifted; 3e-14 is usual."""


def limits_of(name: str) -> list[str]:
    """What a user of the family should know."""
    family, config = FAMILIES[name], shared(name).config
    found = []
    if hasattr(config, "time_step_limit"):
        found.append("a time_step_limit other than (0, inf) is refused")
    if family.clamps:
        found.append("steps do not bound step sizes, prefill does (as stock)")
    if not family.lifts:
        found.append(f"stock has no float64 ({name})")
    return found


def errors(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Largest absolute differences: ``logits`` over all nodes and steps, ``state`` by back-end."""
    model, start = shared(name, dtype), stock_prefix(name, dtype, PROMPT)
    target = Target(model)
    logits = [gap(target.prefill(prompt_of(PROMPT))[0], start.logits)]
    for shape in SHAPES:
        tree = tree_of(shape, "measured")
        logits.append(gap(target.score(tree), logits_of(stock_tree(model, start, tree))))
    state = {}
    for backend in registry().names("state"):
        target = Target(model, backend=registry().get("state", backend).factory(None))  # type: ignore[operator]
        target.prefill(prompt_of(PROMPT))
        moved = [state_error(target, start)]
        for (tree, nodes), (_, last) in zip(stock_walk(name, dtype, PROMPT, STEPS), STEPS, strict=True):
            logits.append(gap(target.score(tree), logits_of(nodes)))
            target.commit(torch.tensor([path_to(tree, last)]))
            moved.append(state_error(target, nodes[last]))
        state[backend] = max(moved)
        if not FAMILIES[name].recurrence:
            return {"logits": max(logits), "state": {"rows are gathered": max(moved)}}
    return {"logits": max(logits), "state": state}


def row(name: str, *more: Any, quick: tuple[str, ...], newest: bool = True) -> Any:
    """A parameter: ``quick`` families run always, the others in full runs and where ``newest`` on that transformers."""
    marks = [pytest.mark.conformance] if newest else []
    return pytest.param(name, *more, marks=marks if name in quick else [*marks, pytest.mark.slow])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [row(name, F32, quick=("qwen3_next", "jamba", "gpt2")) for name in FAMILIES]
    + [row(name, F64, quick=("mamba2",), newest=False) for name, family in FAMILIES.items() if family.lifts],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_errors(name: str, dtype: torch.dtype, measured: dict[str, dict[str, Any]]) -> None:
    shared(name, dtype)  # made outside of the lift: its weights start as float32
    with lifted(dtype):
        found = errors(name, dtype)
    allowed = FAMILIES[name].float32 if dtype == F32 else LIFTED
    assert max(found["logits"], *found["state"].values()) < allowed
    measured[name].setdefault("errors", {})[str(dtype).removeprefix("torch.")] = found


@pytest.mark.parametrize("name", [row(name, quick=("bamba", "falcon_mamba", "lfm2")) for name in FAMILIES])
def test_greedy_tokens(name: str, measured: dict[str, dict[str, Any]]) -> None:
    model, family = shared(name), shared(name).config.model_type
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    method = specdecodes.custom_generate("stree", model, tree="2,1.1,1.1,1.1")
    found = model.generate(prompt_of(PROMPT), custom_generate=method, **settings)
    assert found.tolist() == model.generate(prompt_of(PROMPT), **settings).tolist()
    measured[name] |= {
        "name": name,
        "family": family,
        "layers": SUPPORTED[family],
        "greedy": NEW,
        "limits": limits_of(name),
    }
