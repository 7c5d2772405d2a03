"""A draft model with its own tree: any node that was run can be expanded, in any order.

A slot is a node of that tree. Slot s writes its attention rows at position ``length + s`` and keeps its own conv
window and recurrent state, so that a child starts from its parent wherever the parent stands. The committed window
and state of a layer are the last row of the same buffers, from which the root starts.
Letters: B rows (1), n expanded nodes, S slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.core.transfer import sent
from specdecodes.models.interpose import serving
from specdecodes.models.masks import Masks
from specdecodes.models.passes import ExpandPass
from specdecodes.models.placement import Behind
from specdecodes.models.target import Target

MAX_SINGLE = 4
"""Waiting tokens that :meth:`SlotRunner.catch_up` runs one by one at most, in the forward that is compiled."""

Build = Callable[..., Any]


class SlotRunner(Target):
    """Runs a draft model over a growing tree of slots.

    Attributes:
        max_slots: slots that one step may use (slot 0 is the root).
        tokens_run: tokens that went through the model since it was made, prompts left out.
    """

    called: ClassVar[str] = "the draft"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_slots: int,
        compile: bool = False,
        max_length: int | None = None,
    ) -> None:
        super().__init__(model, compile=compile, max_length=max_length)
        self.hold_nodes(max_slots)
        self.max_slots = max_slots
        self.tokens_run = 0
        self.num_slots = 0
        self._buffers: list[Tensor] = []
        # What the slots stand behind: what has been committed before the step, and so many tokens that were waiting.
        self._before, self._waited = Behind(0, 0, None), 0
        self._expand_pass = ExpandPass(self.cache)
        self._slot_logits = self._compiled(self._forward_at)
        self._forward_expand = self._captured(self._forward_slots, self._moved)
        self._draft = self._captured(self._drafted, self._moved)
        self._move_slots = self._captured(self._move_to, self._moved_by_commit)
        # Row 0 is the root's for good; a slot's row is written when it is run, from its parent's.
        lowest = torch.finfo(self.dtype).min
        self._masks = torch.full((max_slots, max_slots), lowest, dtype=self.dtype, device=self.device)
        self._masks[0, 0] = 0
        self._others = 1 - torch.eye(max_slots, dtype=self.dtype, device=self.device)
        self._depths = torch.zeros(max_slots, dtype=torch.long, device=self.device)
        self._slots = torch.arange(max_slots, device=self.device)
        self._root = self._slots[:1]
        self._committed = torch.tensor([max_slots], device=self.device)

    @torch.inference_mode()
    def catch_up(self, tokens: Sequence[int]) -> Tensor:
        """Run ``tokens`` (the root last) from the committed prefix; all but the root are committed.

        One by one as a rule, since few are waiting; more than ``MAX_SINGLE`` in one forward.

        Returns:
            The root's logits [1, V].
        """
        waiting, behind, limits = self._begin(tokens)
        logits = self._caught_up(waiting, behind, limits)
        self.cache.length += waiting.shape[1] - 1
        return logits

    @torch.inference_mode()
    def draft(self, build: Build, tokens: Sequence[int], *inputs: Any) -> Any:  # noqa: ANN401 - what ``build`` gives
        """:meth:`catch_up`, and what ``build`` makes of the root's logits [1, V] and ``inputs``; captured as one run.

        Args:
            build: a function that stays the same from step to step. It may :meth:`expand`, draws nothing, reads no
                value on the host and returns tensors in any nest of tuples; what it does otherwise is not repeated.
        """
        waiting, behind, limits = self._begin(tokens)
        before = self.tokens_run
        found, self.num_slots, ran = self._draft(build, waiting, behind, limits, *inputs)
        self._stand(behind, limits)
        self.tokens_run = before + ran
        self.cache.length += waiting.shape[1] - 1
        return found

    @torch.inference_mode()
    def expand(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run ``tokens`` [1, n] as children of the slots ``parents`` [1, n].

        Returns:
            Their slots [1, n] and logits [1, n, V].
        """
        start, end = self.num_slots, self.num_slots + tokens.shape[1]
        if end > self.max_slots:
            raise ValueError(
                f"max_slots: expected a tree that expands at most {self.max_slots} nodes, the root included, "
                f"got {end}; choose a smaller tree or raise max_slots"
            )
        self.num_slots = end
        above, slots, rows = parents[0], self._slots[start:end], self._masks[:0]
        if self.signature.attention:
            self._depths[start:end] = self._depths.index_select(0, above) + 1
            rows = self._masks.index_select(0, above) * self._others[start:end]
            self._masks[start:end] = rows
        return slots[None], self._run(tokens, above, slots, slots, rows)

    @torch.inference_mode()
    def move(self, slots: Sequence[int]) -> None:
        """Commit the path of ``slots``, from slot 0 downwards."""
        source = sent(list(slots), self.device)
        moves = self.cache.attention and slots[-1] != len(slots) - 1  # otherwise the rows lie where they belong
        length = self.placement.behind(len(slots)).length
        self._move_slots(source if moves else source[:0], source[-1:], length)
        self.cache.length += len(slots)

    def _moved(self) -> list[Tensor]:
        """See the base: with those of all slots."""
        return self._buffers or super()._moved()

    def _rows_held(self) -> int:
        """See the base."""
        return self.max_slots

    def _begin(self, tokens: Sequence[int]) -> tuple[Tensor, Behind, tuple[int | None, ...]]:
        """Make room for a step; what of ``tokens`` is left to run one by one [1, w], behind what, and their limits."""
        if not self._buffers:
            self._make_slots()
        if len(tokens) - 1 > MAX_SINGLE:
            *waiting, root = tokens
            self._run_sequence(sent([waiting], self.device), clamps=False)
            self.tokens_run += len(waiting)
            tokens = [root]
        rows = len(tokens) - 1 + self.max_slots
        self._reserve(self.length + rows)
        limits = tuple(self.placement.limit(self.length + i) for i in range(len(tokens)))
        return sent([list(tokens)], self.device), self.placement.behind(rows), limits

    def _drafted(
        self,
        build: Build,
        tokens: Tensor,
        behind: Behind,
        limits: Sequence[int | None],
        *inputs: Any,
    ) -> Any:  # noqa: ANN401
        """What ``build`` gives, the slots that are used then, and the tokens that were run."""
        before = self.tokens_run
        found = build(self._caught_up(tokens, behind, limits), *inputs)
        return found, self.num_slots, self.tokens_run - before

    def _stand(self, behind: Behind, limits: Sequence[int | None]) -> None:
        """What is run now stands behind ``behind`` and one token less than ``limits``, of which the last one counts."""
        self._before, self._waited = behind._replace(limit=limits[-1]), len(limits) - 1

    def _caught_up(self, tokens: Tensor, behind: Behind, limits: Sequence[int | None]) -> Tensor:
        """Run what is waiting [1, w] one by one, the root last; its logits [1, V]."""
        self.num_slots = 1
        logits, count = torch.empty(0), tokens.shape[1]
        for i in range(count):
            self._stand(behind, limits[: i + 1])
            place = self._committed if i + 1 < count else self._root
            logits = self._run(tokens[:, i : i + 1], self._committed, place, self._root, self._masks[:1])
        return logits[:, 0]

    def _move_to(self, slots: Tensor, last: Tensor, length: int | Tensor) -> None:
        """Keys and values of ``slots`` [k] become the next committed ones, the state of ``last`` [1] that of all."""
        if len(slots):
            self._move_rows(slots, length)
        for buffer in self._buffers:
            buffer[:, -1:] = buffer.index_select(1, last)

    def _make_slots(self) -> None:
        """Per stack, buffers [layers, S + 1, C, W] and [layers, S + 1, ...]; the last row is the committed one."""
        current = self._expand_pass
        for stack in self.stacks:
            windows = stack.windows.repeat_interleave(self.max_slots + 1, dim=1)
            states = None if stack.states is None else stack.states.repeat_interleave(self.max_slots + 1, dim=1)
            stack.hold(windows[:, -1:], None if states is None else states[:, -1:])
            self._buffers += [windows] if states is None else [windows, states]
            for i, layer in enumerate(stack.layers):
                current.windows[layer.index] = windows[i]
                if states is not None:
                    current.states[layer.index] = states[i]

    def _run(self, tokens: Tensor, parents: Tensor, places: Tensor, slots: Tensor, masks: Tensor) -> Tensor:
        """Logits [1, n, V] of ``tokens`` [1, n], whose states start from the rows ``parents`` and go to ``places``.

        Args:
            slots: whose attention rows and depths they have [n]. masks: among the slots, additive [n, S].
        """
        behind = self._before
        if self._waited:
            behind = behind._replace(length=behind.length + self._waited)
        self.cache.serving = self._expand_pass
        self.tokens_run += tokens.shape[1]
        rows = slots + behind.length
        positions = rows[None]
        mask: Masks = rows[None, None, None]
        if self.signature.attention:
            depths = self._depths + behind.length
            positions = depths.index_select(0, slots)[None]
            mask = self.placement.mask(masks[None, None], positions, depths[None], behind)
            positions = self.placement.within(positions, behind)
        with serving(self._expand_pass):
            return self._forward_expand(tokens, parents, places, positions, mask, rows)

    def _forward_slots(
        self, tokens: Tensor, parents: Tensor, places: Tensor, positions: Tensor, mask: Masks, rows: Tensor
    ) -> Tensor:
        current = self._expand_pass
        current.parents, current.slots = parents, places
        return self._slot_logits(current, tokens, positions, mask, rows)
