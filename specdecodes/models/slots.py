"""A draft model with its own tree: any node that was run can be expanded, in any order.

A slot is a node of that tree. Slot s writes its attention rows at position ``length + s`` and keeps its own conv
window and recurrent state, so that a child starts from its parent wherever the parent stands.
Letters: B rows (1), n expanded nodes, S slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from specdecodes.core.tree import Topology, Tree
from specdecodes.models.interpose import serving
from specdecodes.models.passes import ExpandPass
from specdecodes.models.target import Target

CATCH_UP = 2
"""Tokens of a catch-up forward: at most one accepted node that was never expanded, and the root."""


class SlotRunner(Target):
    """Runs a draft model over a growing tree of slots.

    Attributes:
        max_slots: slots that one step may use (node 0 is the root).
        tokens_run: tokens that went through the model since it was made, padding of the catch-up included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_slots: int,
        compile: bool = False,
        max_length: int | None = None,
    ) -> None:
        from specdecodes.plugins.states.copy import StateCopy  # the plugins import this module

        super().__init__(model, backend=StateCopy(), compile=compile, max_length=max_length)
        self.hold_nodes(max_slots)
        self.max_slots = max_slots
        self.tokens_run = 0
        self.num_slots = 0
        self._chains: dict[int, Topology] = {}
        self._expand_pass = ExpandPass(self.cache)
        self._forward_expand = self._compiled(self._expand_forward)
        # Row 0 is the root's for good; a slot's row is written when it is run, from its parent's.
        lowest = torch.finfo(self.dtype).min
        self._masks = torch.full((max_slots, max_slots), lowest, dtype=self.dtype, device=self.device)
        self._masks[0, 0] = 0
        self._others = 1 - torch.eye(max_slots, dtype=self.dtype, device=self.device)
        self._depths = torch.zeros(max_slots, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def catch_up(self, tokens: Sequence[int]) -> Tensor:
        """Run ``tokens`` (the root last) from the committed prefix; all but the root are committed.

        Padded to a fixed length, so that every step has the same shape. Slot 0 becomes the root.

        Returns:
            The root's logits [1, V].
        """
        count = len(tokens)
        width = max(count, CATCH_UP)
        if width not in self._chains:
            self._chains[width] = Topology(torch.arange(-1, width - 1, device=self.device)[None])
        chain = self._chains[width]
        ids = torch.tensor([[*tokens, *([0] * (width - count))]], device=self.device)
        logits = self.score(Tree(ids, chain.parents, topology=chain))
        self.tokens_run += width
        self._open(count - 1)
        if count > 1:
            self.commit(torch.arange(count - 1, device=self.device)[None])
        return logits[:, count - 1]

    @torch.inference_mode()
    def expand(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run ``tokens`` [1, n] as children of the slots ``parents`` [1, n].

        Returns:
            Their slots [1, n] and logits [1, n, V].
        """
        count = tokens.shape[1]
        start = self.num_slots
        if start + count > self.max_slots:
            raise ValueError(f"draft tree: expected at most {self.max_slots} slots, got {start + count}")
        self.num_slots += count
        current = self._expand_pass
        current.parents = parents[0]
        current.slots = torch.arange(start, start + count, device=self.device)
        self._reserve(self.length + self.max_slots)
        self.cache.serving = current
        self.tokens_run += count
        logits = self._run_expand(current, tokens, start)
        return current.slots[None], logits

    @torch.inference_mode()
    def move(self, slots: Sequence[int]) -> None:
        """Commit the path of ``slots``, from slot 0 downwards."""
        source = torch.tensor(list(slots), device=self.device) + self.length
        if slots[-1] != len(slots) - 1:  # otherwise the rows lie where they belong
            for rows in self.cache.attention.values():
                rows.move(source, self.length)
        last = slots[-1]
        for index, layer in self.cache.recurrent.items():
            assert layer.window is not None and layer.state is not None
            layer.window.copy_(self._expand_pass.windows[index][last : last + 1])
            layer.state.copy_(self._expand_pass.states[index][last : last + 1])
        self.cache.length += len(slots)

    def _open(self, node: int) -> None:
        """Slot 0 is node ``node`` of the chain scored last."""
        current = self._expand_pass
        for stack, (windows, states) in zip(self.stacks, self.kept, strict=True):
            for layer, window, state in zip(stack.layers, windows, states, strict=True):
                if layer.index not in current.windows:
                    current.windows[layer.index] = window.new_zeros(self.max_slots, *window.shape[2:])
                    current.states[layer.index] = state.new_zeros(self.max_slots, *state.shape[2:])
                current.windows[layer.index][0] = window[0, node]
                current.states[layer.index][0] = state[0, node]
        self.num_slots = 1

    def _run_expand(self, current: ExpandPass, tokens: Tensor, start: int) -> Tensor:
        end = start + tokens.shape[1]
        depths = self._depths.index_select(0, current.parents) + 1
        self._depths[start:end] = depths
        positions = (depths + self.length)[None]
        mask = positions[:, None, None, :]
        if self.signature.attention:
            rows = self._masks.index_select(0, current.parents) * self._others[start:end]
            self._masks[start:end] = rows
            mask = self._slot_mask(rows)
        with serving(current):
            return self._forward_expand(current, tokens, positions, mask, current.slots + self.length)

    def _slot_mask(self, rows: Tensor) -> Tensor:
        """Additive mask [1, 1, n, S]: everything committed, and of the slots (``rows`` [n, slots]) the own path."""
        visible = self._visible(self.length + self.max_slots)
        mask = pad(rows, (self.length, 0))[None, None]
        if beyond := visible - self.length - self.max_slots:
            mask = pad(mask, (0, beyond), value=torch.finfo(self.dtype).min)
        if self.compile:
            torch._dynamo.maybe_mark_dynamic(mask, 3)  # at full capacity it is a constant
        return mask

    def _expand_forward(
        self, current: ExpandPass, ids: Tensor, positions: Tensor, mask: Tensor, slots: Tensor
    ) -> Tensor:
        current.positions, current.visible = slots, mask.shape[-1]
        kwargs = {"input_ids": ids, "attention_mask": mask} if self.signature.attention else {"input_ids": ids}
        return self._call(kwargs, positions)
