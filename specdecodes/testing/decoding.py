"""Checks of whole decodes: observers change nothing, a mode decodes like plain decoding."""

from __future__ import annotations

from typing import Any

from specdecodes.core.decoder import Decoder, Generation
from specdecodes.core.load import load
from specdecodes.models.target import Target
from specdecodes.plugin import Context, registry
from specdecodes.testing.contract import during, expect, made
from specdecodes.testing.toys import FAMILIES, toy_model, toy_prompt

LENGTH = 24
"""New tokens per generation."""

SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "seed": 7}


def check_observer(observer: Any, **settings: Any) -> None:  # noqa: ANN401
    """Check an observer, or a factory of observers: nothing that it does changes what is decoded.

    Args:
        observer: a component, or a factory called with a context and ``settings``.

    Raises:
        AssertionError: other tokens, other steps or a lost event with the observer than without.
    """
    target, draft = toy_model("bamba"), toy_model("mamba2")
    checked = made(observer, Context(Target(target), draft=draft), settings)
    name = f"observer {type(checked).__name__}"
    for mode in ("naive", "stree"):
        try:
            watched = load(target, draft, mode, observers=[checked])
        except ValueError as error:
            raise AssertionError(f"{name}: {error}") from error
        alone = load(target, draft, mode)
        for sampling in ({}, SAMPLED):
            with during(f"{name}, mode {mode}, {sampling or 'greedy'}"):
                first, second = (_decode(decoder, "bamba", sampling) for decoder in (alone, watched))
                expect(first.tokens == second.tokens, f"{name}: mode {mode}: the tokens differ when it watches")
                expect(
                    first.accept_lengths == second.accept_lengths,
                    f"{name}: mode {mode}: the steps differ when it watches",
                )


def check_mode(mode: str, **settings: Any) -> None:
    """Check a registered mode: every name in it is known, and it decodes.

    On tiny stock models of three families: greedy tokens equal plain decoding if its verifier declares lossless;
    a sampled run is reproduced by its seed; ``max_new_tokens`` is exact.

    Args:
        mode: the name it is registered under. settings: as for ``specdecodes.load``.

    Raises:
        AssertionError: names the mode, the model and what differs.
    """
    known = registry()
    chosen = known.get("mode", mode).factory
    lossless = bool(known.get("verifier", chosen.greedy).lossless)  # type: ignore[union-attr]
    for family in FAMILIES:
        target, draft = toy_model(family), toy_model("mamba2", seed=1)
        decoder = load(target, draft, mode, **settings)
        where = f"mode {mode!r} on a tiny {family}"
        with during(where):
            if not isinstance(decoder.greedy, str):
                ours = _decode(decoder, family, {})
                plain = _decode(load(target, mode="naive"), family, {})
                expect(
                    not lossless or ours.tokens == plain.tokens, f"{where}: greedy tokens differ from plain decoding"
                )
                _check_counts(where, ours)
            if not isinstance(decoder.sampling, str):
                first, second = (_decode(decoder, family, SAMPLED) for _ in range(2))
                expect(first.tokens == second.tokens, f"{where}: the same seed gave other tokens")
                _check_counts(where, first)


def _check_counts(where: str, generation: Generation) -> None:
    count, emitted = len(generation.tokens[0]), sum(generation.accept_lengths)
    expect(count == LENGTH, f"{where}: max_new_tokens {LENGTH} gave {count} tokens")
    expect(
        emitted == count - 1,
        f"{where}: the steps emitted {emitted} tokens, but the answer has {count}, the first included",
    )


def _decode(decoder: Decoder, family: str, sampling: dict[str, Any]) -> Generation:
    return decoder.generate(toy_prompt(9, 48, family), max_new_tokens=LENGTH, ignore_eos=True, **sampling)
