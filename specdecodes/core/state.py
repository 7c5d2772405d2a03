"""What a decode step reads and moves: tokens, stop rules, randomness, the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdecodes.core import host_path
from specdecodes.core.host_path import HostPath
from specdecodes.core.sampling import LogitsPipeline, Rng, SamplingParams, best_tokens, node_prefixes
from specdecodes.core.text import StopRule
from specdecodes.core.transfer import sent
from specdecodes.core.tree import Tree, Verdict

if TYPE_CHECKING:
    from specdecodes.models.target import Target


class DecodeState:
    """The state of one generation.

    Attributes:
        target: the model that decides.
        params, pipeline, rng: how tokens are chosen; the drafter uses the same pipeline.
        prompt: int64 [B, L]. model_inputs: what else the prefill was given (padding mask, pixel values).
        root: int64 [B, 1] on the target's device: the last emitted token, in no cache yet.
        history: per row, prompt and emitted tokens, the root last (host lists; read only for components).
        tokens: per row, the emitted tokens. accept_lengths: tokens emitted by each step (row 0), bonus included.
        scores: what :meth:`process` returned last [B, T, V], for drafters that learn from it; None before the first.
        logits: what it was given, or the prefill's [B, V].
        judged: a verdict and what :func:`specdecodes.core.host_path.numbers_of` makes of it, from a captured run
            (see :meth:`judged_as`).
        draws: how the tree builder must come by children in this generation (see ``Tree.draws``).
        extras: for components that hand each other something the contract has no field for.
    """

    def __init__(
        self,
        target: Target,
        prompt: Tensor,
        params: SamplingParams,
        *,
        pipeline: LogitsPipeline | None = None,
        rng: Rng | None = None,
        eos_ids: Sequence[int] = (),
        stop: StopRule | None = None,
        draws: str = "none",
        model_inputs: dict[str, Any] | None = None,
    ) -> None:
        self.target = target
        self.prompt = prompt
        self.params = params
        self.pipeline = pipeline or LogitsPipeline(params)
        self.rng = rng or Rng(params.seed, target.device)
        self.eos_ids = frozenset() if params.ignore_eos else frozenset(eos_ids)
        self.stop = stop
        self.draws = draws
        self.model_inputs = model_inputs or {}
        self.history: list[list[int]] = prompt.tolist()
        self.tokens: list[list[int]] = [[] for _ in self.history]
        self.accept_lengths: list[int] = []
        self.done = [False] * len(self.history)
        self.extras: dict[str, Any] = {}
        self.root = prompt[:, -1:]
        self.scores: Tensor | None = None
        self.logits = torch.empty(0)
        self.judged: tuple[Verdict, Tensor] | None = None
        self._emitted: list[list[int]] = []
        self._clipped: tuple[Verdict, Tree, list[HostPath]] | None = None

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(self.done)

    def first(self, logits: Tensor) -> None:
        """Choose the first token of every row from the prefill's ``logits`` [B, V]; it belongs to no step."""
        self.logits = logits
        scores = self.pipeline(logits, self.history)
        if self.pipeline.greedy:
            self.root = best_tokens(scores)[:, None]
        else:
            drawn = [self.rng.categorical(row.exp()) for row in scores]
            self.root = torch.tensor(drawn, device=scores.device)[:, None]
        for row, token in enumerate(self.root[:, 0].tolist()):
            self._append(row, [token])

    def process(self, logits: Tensor, tree: Tree) -> Tensor:
        """The target's ``logits`` [B, T, V] after all processors: log-probabilities, or plain scores when greedy."""
        self.logits = logits
        prefixes = node_prefixes(self.history, tree) if self.pipeline.needs_prefix else None
        self.scores = self.pipeline(logits.flatten(0, 1), prefixes).view(logits.shape)
        return self.scores

    def judged_as(self, verdict: Verdict, logits: Tensor, scores: Tensor, numbers: Tensor) -> Verdict:
        """Take in what a captured run gave: a verdict with its numbers, and what :meth:`process` would remember."""
        self.logits, self.scores, self.judged = logits, scores, (verdict, numbers)
        return verdict

    def clip(self, verdict: Verdict, tree: Tree) -> Verdict:
        """Cut the verdict at the first end-of-text token and at ``max_new_tokens``.

        The one device-to-host copy of a step. What a row emits is its accepted tokens and the bonus; the last
        of them is never committed (it is the next root), so a row cut after j + 1 tokens keeps j accepted nodes.
        """
        self._emitted = []
        numbers = self.judged[1] if self.judged is not None and self.judged[0] is verdict else None
        read, paths = host_path.read(verdict, tree, numbers), []
        for row, path in enumerate(read):
            if path.bonus < 0:
                raise RuntimeError(
                    f"verify: expected a distribution over the next token in row {row}, got one in which no token has "
                    "a probability above 0; the target's logits there are not finite"
                )
            emitted = [*path.tokens[1:], path.bonus]  # the first is the root
            if self.done[row]:
                emitted = emitted[:1]
            room = self.params.max_new_tokens - len(self.tokens[row])
            end = next((i + 1 for i, token in enumerate(emitted) if token in self.eos_ids), len(emitted))
            emitted = emitted[: max(1, min(end, room))]
            self._emitted.append(emitted)
            paths.append(path.cut(emitted))
        if paths != read:
            verdict = self._cut(verdict, [len(path.nodes) - 1 for path in paths], [path.bonus for path in paths])
        self._clipped = (verdict, tree, paths)
        return verdict

    @staticmethod
    def _cut(verdict: Verdict, keep: Sequence[int], last: Sequence[int]) -> Verdict:
        """The first ``keep`` accepted nodes of every row; ``last``: the drafted tokens that end the rows."""
        num_accepted = sent(list(keep), verdict.path.device)
        column = torch.arange(verdict.path.shape[1], device=verdict.path.device)
        path = verdict.path.masked_fill(column > num_accepted[:, None], -1)
        return Verdict(path, num_accepted, sent(list(last), verdict.path.device))

    def path_of(self, verdict: Verdict, tree: Tree) -> list[HostPath]:
        """Per row what ``verdict`` accepted of ``tree``, on the host; read only if :meth:`clip` has not read it."""
        if self._clipped is not None and self._clipped[0] is verdict and self._clipped[1] is tree:
            return self._clipped[2]
        return host_path.read(verdict, tree)

    def advance(self, verdict: Verdict) -> None:
        """Emit what :meth:`clip` kept; stop strings end a row at the token that completes them."""
        emitted = 0
        for row, tokens in enumerate(self._emitted):
            if not self.done[row]:
                count = self._append(row, tokens)
                emitted = count if row == 0 else emitted
        self.accept_lengths.append(emitted)
        self.root = verdict.bonus[:, None]

    def _append(self, row: int, tokens: Sequence[int]) -> int:
        """Append tokens to a row until one ends it; returns how many were appended."""
        for count, token in enumerate(tokens, 1):
            self.tokens[row].append(token)
            self.history[row].append(token)
            stopped = self.stop is not None and self.stop.completed_by(self.tokens[row])
            if stopped or token in self.eos_ids or len(self.tokens[row]) >= self.params.max_new_tokens:
                self.done[row] = True
                return count
        return len(tokens)
