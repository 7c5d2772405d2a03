"""A stock causal model that can score a tree: prefill, score, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.core.tree import Topology, Tree
from specdecodes.models.cache import TreeCache
from specdecodes.models.captured import Captured, recorder_for
from specdecodes.models.compiled import compiled
from specdecodes.models.families import attends_plainly, check_supported, signature_of, splits_attention
from specdecodes.models.interpose import install, serving
from specdecodes.models.judging import Asked, Judge
from specdecodes.models.masks import Masks, by_kind, causal_mask, each_mask
from specdecodes.models.passes import CachedPass, SequencePass, StepPass, TreePass
from specdecodes.models.placement import Behind, Placement
from specdecodes.models.products import PackedProducts
from specdecodes.models.recurrences import recurrence_of
from specdecodes.models.recurrences.layer import RecurrentLayer
from specdecodes.models.recurrences.stack import RecurrentStack, make_stacks

if TYPE_CHECKING:
    from specdecodes.plugins.states.base import StateBackend

PREFILL_CHUNK = 1024
"""Tokens per prefill forward: bounds the mask to [chunk, length]."""
COMPILED_CAPACITY = 4096
"""Positions of the static caches of a compiled target, where the model allows more."""


class Target:
    """A stock Hugging Face causal model with a committed prefix, on which trees are scored.

    Args:
        model: a loaded causal model of a supported family; its weights are not changed.
        backend: what scoring keeps and how a commit moves the recurrent state (default: ``replay``).
        compile: compile steps, scores and commits with ``torch.compile``, and on CUDA capture them as graphs
            (``models/captured.py``); then the caches are static.
        max_length: positions of a static cache (None: grow as needed; compiled: 4,096 or what the model allows).

    Attributes:
        length: committed tokens. vocab_size, device, dtype, eos_ids: the model's.
        step_in_place: single-node trees advance the state while they are scored (plain decoding sets it); the
            caller then must commit every tree that it scores.

    Raises:
        ValueError: a family or configuration that is not supported (see :func:`check_supported`).
    """

    called: ClassVar[str] = "the model"
    """In messages."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        backend: StateBackend | None = None,
        compile: bool = False,
        max_length: int | None = None,
    ) -> None:
        check_supported(model.config)
        self.recurrence = recurrence_of(install(model))
        self.model = model.eval()
        self.device: torch.device = model.device  # a stock model looks through its parameters each time
        self.dtype: torch.dtype = model.dtype
        self.signature = signature_of(model)
        self.products = PackedProducts(model)
        if backend is None:
            from specdecodes.plugins.states.replay import Replay

            backend = Replay()
        self.backend = backend
        self.compile = compile
        if compile and max_length is None:
            max_length = min(self.signature.max_positions or COMPILED_CAPACITY, COMPILED_CAPACITY)
        self.max_length = max_length
        self.cache = TreeCache(max_length, self.recurrence.layer if self.recurrence else RecurrentLayer)
        self.step_in_place = False
        self.is_embedded = False
        self.stacks: list[RecurrentStack] = []
        self._conv_widths: tuple[int, ...] = ()
        self._plain = attends_plainly(model, self.signature)
        self._passes: dict[Any, CachedPass] = {}
        self._in_flight: TreePass | StepPass | None = None
        self._scored: Tree | None = None
        self._at = Behind(0, 0, None)  # what the tree scored last stands behind
        self._behind = False  # whether a path may be pending
        self._recorder = recorder_for(self.device, compile)
        self.placement = Placement(
            self.cache,
            self.signature,
            self.dtype,
            self.device,
            compiled=compile,
            captured=self.captures,
            splits=splits_attention(model, self.signature),
        )
        self._tree_logits = self._compiled(self._tree_forward)
        self._step_logits = self._compiled(self._forward_at)
        self._forward_tree = self._captured(self._judged_tree, self._moved)
        self._forward_step = self._captured(self._judged_step, self._moved)
        self._move = self._captured(self._move_along, self._moved_by_commit)

    # -- what the model is ----------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        embeddings = self.model.get_output_embeddings()
        return int(embeddings.weight.shape[0]) if embeddings is not None else int(self.model.config.vocab_size)

    @property
    def eos_ids(self) -> list[int]:
        """The model's end-of-text ids (config and generation config)."""
        found: list[int] = []
        for config in (self.model.config, getattr(self.model, "generation_config", None)):
            ids = getattr(config, "eos_token_id", None)
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
        return sorted(set(found))

    @property
    def length(self) -> int:
        """Committed tokens."""
        return self.cache.length

    def check_room(self, rows: int, prompt: int, new: int) -> None:
        """Refuse a prompt that cannot be decoded, before anything is run.

        Raises:
            ValueError: more rows than one (B > 1 is not supported yet), more positions than the model allows, or an
                answer that would cross a turn (see :class:`Signature`).
        """
        if rows != 1:
            raise ValueError(
                f"prompt: expected one row (B = 1), got {rows}; batches are not supported yet, "
                "decode the rows one by one"
            )
        most = {f"{self.called} allows": self.signature.max_positions, "the static cache holds": self.max_length}
        self.signature.check_room(prompt, new, most)

    def hold_nodes(self, count: int) -> None:
        """Let a static cache hold ``count`` nodes behind ``max_length`` committed tokens; before the first prefill."""
        if self.max_length is not None:
            self.cache.capacity = self.max_length + count

    # -- the three calls ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, ids: Tensor, **model_inputs: Any) -> Tensor:
        """Forget everything, commit ``ids`` [B, L] (int64) and return the logits after them [B, V].

        Raises:
            ValueError: an empty prompt, more rows than one, more tokens than the model allows, a padding mask.
        """
        if ids.ndim != 2 or ids.shape[1] == 0 or ids.is_floating_point():
            got = f"{ids.dtype} of shape {tuple(ids.shape)}"
            raise ValueError(f"prefill: expected integer token ids [B, L] with L >= 1, got {got}")
        self.check_room(ids.shape[0], ids.shape[1], 0)
        mask = model_inputs.pop("attention_mask", None)
        if mask is not None and not bool((mask == 1).all()):
            raise ValueError("prefill: attention_mask: expected all ones (one row needs no padding), got zeros")
        self.cache.reset()
        for stack in self.stacks:
            stack.settle()
        self.products.refresh()
        self._behind = False
        self._scored = self._in_flight = None
        logits = self._run_sequence(ids, clamps=True, **model_inputs)
        if self.recurrence is not None and not self.stacks:
            self.stacks = make_stacks(list(self.cache.recurrent.values()), self.recurrence.stack, self._compiled)
            self._conv_widths = tuple(sorted({stack.width for stack in self.stacks}))
            for stack in self.stacks if self.backend.keep == "inputs" else ():
                stack.defer()
        return logits

    @torch.inference_mode()
    def score(self, tree: Tree) -> Tensor:
        """Logits [B, T, V] after every node of ``tree``, each conditioned on the committed prefix and its own path.

        Commits nothing (except as ``step_in_place`` says): the same tree scored twice gives the same logits. Those of
        nodes that a text of this model has no room for (see :meth:`check_room`) mean nothing.

        Raises:
            ValueError: more rows than one, or a root beyond the table of a model that learns its positions.
            RuntimeError: no prompt has been prefilled; so after a score that was broken off while a path was pending.
        """
        return self._score(tree, None, ())[0]

    @property
    def captures(self) -> bool:
        """Whether forwards are captured."""
        return self._recorder is not None

    @property
    def judges(self) -> bool:
        """Whether a rule that can should judge by :meth:`score_and_judge`: on a GPU, where looks at values are waits.

        Captured or not, so that both draw the same tokens.
        """
        return self.captures or self.device.type == "cuda"

    @torch.inference_mode()
    def score_and_judge(self, tree: Tree, judge: Judge, *given: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """:meth:`score`, and what ``judge`` makes of the logits, captured with it as one run.

        Args:
            judge: of the logits [B, T, V], the tree, whose ``logq`` and ``draws`` it does not get, and ``given``; it
                draws nothing and reads no value on the host, and is the same function for the same kind of step.
            given: tensors, which may differ from step to step, and values that tell kinds of steps apart.
        """
        logits, found = self._score(tree, judge, given)
        assert found is not None
        return logits, found

    def _score(self, tree: Tree, judge: Judge | None, given: Sequence[Any]) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        rows, count = tree.shape
        if rows != 1:
            raise ValueError(f"score: expected one row (B = 1), got {rows}; batches are not supported yet")
        if not self.length:
            raise RuntimeError("score: no prompt has been prefilled")
        if (most := self.signature.learned_positions) is not None and self.length >= most:
            raise ValueError(
                f"score: expected a root within the {most} positions that the model has learned, "
                f"got one after {self.length} committed tokens"
            )
        if count == 1 and self.step_in_place:
            return self._score_step(tree, judge, given)
        current = self._tree_pass(count)
        if current.keep != "inputs":  # another back-end than that of the commit before
            self.flush()
        self._reserve(self.length + count)
        behind = self.placement.behind(count, split=True)
        self.cache.serving = current
        try:
            with serving(current):
                found = self._forward_tree(current, Asked.about(tree, self._view(tree, judge), behind, judge, given))
        except BaseException:
            if self._behind:  # some layers have moved along the pending path and others have not
                self.cache.length = 0
            raise
        logits, self._kept, verdict = found
        self._behind = False
        self._in_flight, self._scored, self._at = current, tree, behind
        return logits, verdict

    def prepare(self, topology: Topology) -> None:
        """Let ``topology`` work out what :meth:`score` will read of it: inside a run that is captured, for less."""
        topology.view(self._conv_widths, self.placement.mask_dtype(split=True))

    @torch.inference_mode()
    def commit(self, path: Tensor, nodes: Sequence[int] | None = None) -> None:
        """Move all caches and states along ``path`` [B, D]: nodes of the tree scored last, root first, padded with -1.

        ``nodes``: the path on the host, without padding, for a caller who has it: reading it waits for a GPU.

        Raises:
            RuntimeError: no tree was scored since the last commit.
            ValueError: more rows than one, or a path that does not start at the root.
        """
        tree, current = self._scored, self._in_flight
        if tree is None or current is None:
            raise RuntimeError("commit: no tree has been scored since the last commit")
        if path.ndim != 2 or path.shape[0] != 1:
            raise ValueError(f"commit: expected a path [B, D] of one row (B = 1), got shape {tuple(path.shape)}")
        accepted = [node for node in path[0].tolist() if node >= 0] if nodes is None else list(nodes)
        if accepted[:1] != [0] or max(accepted) >= tree.shape[1]:
            raise ValueError(f"commit: expected nodes of the tree from the root (0) on, got {accepted}")
        if isinstance(current, TreePass):
            # Captured, one graph serves paths of every length: what it copies behind the path is overwritten later.
            source = path[0, : tree.shape[1]].clamp(min=0) if self.captures else path[0, : len(accepted)]
            if accepted == list(range(len(accepted))):  # a chain's accepted nodes lie where they belong
                source = source[:0]
            move = self._move if self.backend.capturable else self._move_along
            move(current, source, path, self._at.length, self._kept)
            self._behind = any(stack.pending is not None for stack in self.stacks)
        self.cache.length += len(accepted)
        self._scored = self._in_flight = None
        self._kept = ()

    @torch.inference_mode()
    def flush(self) -> None:
        """Bring windows and states to the end of the committed prefix; scoring a tree does it on the way.

        A commit may leave them behind (see :meth:`RecurrentStack.defer`). All readers of this class call it, who reads
        ``stacks`` himself must.
        """
        if self._behind:
            for stack in self.stacks:
                stack.flush()
            self._behind = False

    # -- for state back-ends --------------------------------------------------------------------------------------

    @property
    def kept(self) -> Any:  # noqa: ANN401 - depends on the back-end
        """What scoring kept, per stack: what its ``jump`` or its ``select`` takes."""
        return self._kept

    @property
    def scored(self) -> Tree:
        """The tree scored last and not committed yet."""
        assert self._scored is not None
        return self._scored

    def run_again(self, tokens: Tensor) -> None:
        """Commit the states of ``tokens`` [B, k] by running them from the committed prefix; the length stays."""
        length = self.length
        self._run_sequence(tokens, clamps=False)
        self.cache.length = length

    # -- compilation ----------------------------------------------------------------------------------------------

    def _compiled(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method`` compiled, if this target compiles at all."""
        return compiled(method) if self.compile else method

    def _captured(self, run: Callable[..., Any], moved: Callable[[], Sequence[Tensor]]) -> Callable[..., Any]:
        """``run`` captured, where this target captures; ``moved``: what it may move in place."""
        return run if self._recorder is None else Captured(run, self._recorder, moved, self._places)

    def _moved(self) -> list[Tensor]:
        """What a forward may move in place, and must not move twice."""
        lengths = [stack.pending.length for stack in self.stacks if stack.pending is not None]
        return lengths + [each for stack in self.stacks for each in (stack.windows, stack.states) if each is not None]

    def _moved_by_commit(self) -> list[Tensor]:
        """The same, and the rows of the tree scored last."""
        start, end = self.length, self.length + self._rows_held()
        layers = self.cache.attention.values()
        rows = [each[:, :, start:end] for layer in layers for each in (layer.keys, layer.values) if each is not None]
        return self._moved() + rows

    def _rows_held(self) -> int:
        """Rows of keys and values behind the committed ones that a commit may read or write."""
        return self.scored.shape[1]

    def _places(self) -> tuple[int, ...]:
        """Where a forward finds caches and states."""
        return (
            *[rows.place for rows in self.cache.attention.values()],
            *[each.data_ptr() for each in self._moved()],
        )

    # -- forwards -------------------------------------------------------------------------------------------------

    def _run_sequence(self, ids: Tensor, *, clamps: bool, **model_inputs: Any) -> Tensor:
        self.flush()
        current = self._pass("sequence", SequencePass, plain=self._plain)
        current.clamps = clamps
        logits = ids.new_empty(0)
        self.cache.serving = current
        turned = any(self.length + ids.shape[1] > turn >= self.length for turn in self.signature.turns)
        for chunk in ids.split(ids.shape[1] if turned else PREFILL_CHUNK, dim=1):  # one forward turns all alike
            start = self.length
            end = start + chunk.shape[1]
            positions = torch.arange(end, device=ids.device)[None]
            current.positions, current.visible = positions[0, start:], end
            kwargs: dict[str, Any] = {"input_ids": chunk, **model_inputs}
            if self.signature.attention:
                mask = causal_mask(start, end, self.dtype, ids.device)
                kwargs["attention_mask"] = by_kind(mask, self.signature.windows, positions[:, start:], positions)
            if self.signature.takes_logits_to_keep:
                kwargs["logits_to_keep"] = 1
            with serving(current):
                logits = self._call(kwargs, current.positions[None])
            self.cache.length = end
        return logits[:, -1]

    def _call(self, kwargs: dict[str, Any], positions: Tensor) -> Tensor:
        if self.signature.takes_positions:
            # Nodes below the end of a table are of tokens that no text has room for (see ``check_room``).
            most = self.signature.learned_positions
            kwargs["position_ids"] = positions if most is None else positions.clamp(max=most - 1)
        kwargs[self.signature.cache_argument] = self.cache
        logits: Tensor = self.model(use_cache=True, **kwargs).logits
        return logits

    def _tree_forward(
        self, current: TreePass, ids: Tensor, positions: Tensor, mask: Masks, slots: Tensor
    ) -> tuple[Tensor, Any]:
        current.clear()
        logits = self._forward_at(current, ids, positions, mask, slots)
        # What is not finite must reach the descendants, which the passes hide from everything else.
        broken = (current.ancestors & ~logits[..., 0].isfinite()[:, None]).any(-1)
        logits = logits.masked_fill(broken[..., None], float("nan"))
        kept = tuple(current.collect(stack) for stack in self.stacks)
        current.clear()
        for stack in self.stacks:
            stack.settle()
        return logits, kept

    def _judged_tree(self, current: TreePass, asked: Asked) -> tuple[Any, ...]:
        """Logits, what was kept, and what the judge makes of it."""
        current.aim(asked.nodes, self._conv_widths)
        logits, kept = self._tree_logits(current, asked.tokens, *self.placement.place(asked.nodes, asked.behind))
        return logits, kept, asked.judged(logits)

    def _judged_step(self, current: StepPass, asked: Asked) -> tuple[Any, ...]:
        logits = self._step_logits(current, asked.tokens, *self.placement.place(asked.nodes, asked.behind))
        return logits, asked.judged(logits)

    def _view(self, tree: Tree, judge: Judge | None) -> Topology:
        """What a run reads of the topology of ``tree``."""
        if not self.captures:
            return tree.structure
        judges, drawn = judge is not None, tree.logq is not None
        dtype = self.placement.mask_dtype(split=tree.shape[1] > 1 or not self.step_in_place)
        return tree.structure.view(self._conv_widths, dtype, paths=judges, children=judges and drawn)

    def _forward_at(self, current: CachedPass, ids: Tensor, positions: Tensor, mask: Masks, slots: Tensor) -> Tensor:
        """Logits [B, n, V] of ``ids``, whose keys go to ``slots`` [n] of the caches."""
        splits = isinstance(current, TreePass) and current.splits
        current.positions, current.visible = slots, None if splits else each_mask(mask)[0].shape[-1]
        kwargs = {"input_ids": ids, "attention_mask": mask} if self.signature.attention else {"input_ids": ids}
        return self._call(kwargs, positions)

    def _score_step(
        self, tree: Tree, judge: Judge | None, given: Sequence[Any]
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        if self._in_flight is not None:
            raise RuntimeError("score: the last step was taken in place and must be committed before the next")
        self.flush()
        current = self._pass("step", StepPass)
        self._reserve(self.length + 1)
        asked = Asked.about(tree, self._view(tree, judge), self.placement.behind(1), judge, given)
        self.cache.serving = current
        with serving(current):
            logits, verdict = self._forward_step(current, asked)
        self._in_flight, self._scored = current, tree
        return logits, verdict

    def _move_along(
        self,
        current: TreePass,
        nodes: Tensor,
        path: Tensor,
        length: int | Tensor,
        kept: Any,  # noqa: ANN401
    ) -> None:
        """Move keys and values of ``nodes`` [k] to where the first k nodes lie, and the states along ``path``.

        Args:
            current: the pass that scored, which tells back-ends apart. length: of the prefix before the tree.
            kept: what scoring kept.
        """
        if len(nodes):
            self._move_rows(nodes, length)
        if self.stacks:
            self._kept = kept
            self.backend.move(self, path)

    def _move_rows(self, nodes: Tensor, length: int | Tensor) -> None:
        """Move keys and values from the places of ``nodes`` [k] behind the prefix to its next k."""
        source, rows = nodes + length, torch.arange(len(nodes), device=nodes.device) + length
        for each in self.cache.attention.values():
            each.move(source, rows)

    def _reserve(self, length: int) -> None:
        for rows in self.cache.attention.values():
            rows.reserve(length)

    def _pass(self, name: str, kind: type[Any], **settings: Any) -> Any:  # noqa: ANN401
        if name not in self._passes:
            self._passes[name] = kind(self.cache, **settings)
        return self._passes[name]

    def _tree_pass(self, count: int) -> TreePass:
        key = ("tree", count, self.backend.keep)
        if key not in self._passes:
            # Levels are read on the host.
            by_level = not self.compile and self._recorder is None and self.device.type == "cpu"
            self._passes[key] = TreePass(self.cache, self.backend.keep, by_level, self.placement.splits)
        current = self._passes[key]
        assert isinstance(current, TreePass)
        return current
