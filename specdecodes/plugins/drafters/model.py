"""Draft with a small causal model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdecodes.core.sampling import LogitsPipeline, best_tokens
from specdecodes.core.tree import MAX_NODES, Tree, Verdict
from specdecodes.hookspecs import hookimpl
from specdecodes.models.slots import Build, SlotRunner

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


SLOTS = 64
"""Room in a draft's own tree where the tree builder does not say how much it needs."""


class ModelDrafter:
    """Draft with any supported causal model, which keeps its own tree of states.

    Per step it runs the catch-up (what was accepted but never expanded, and the root) and the nodes that the
    builder expands, nothing else; on CUDA, where it is compiled, in one captured run with a builder that can
    (``Proposal.in_one``). ``max_slots``: room for the nodes that a step may run, the root included; 0: for as
    many as the tree builder says (``SLOTS`` where it does not).
    """

    has_probs = True
    capturable = True

    def __init__(self, context: Context, *, max_slots: int = 0) -> None:
        from specdecodes.models.loading import load_draft

        max_slots = room_for(context.max_slots, max_slots)
        model = load_draft(context)
        # Past the target's own limit the draft needs room for its slots.
        self.runner = SlotRunner(model, max_slots=max_slots, compile=context.compile)
        self.vocab_size = context.target.vocab_size
        self._pending: list[int] = []
        self._proposal: ModelProposal | None = None
        self._pipeline: LogitsPipeline | None = None

    @property
    def max_slots(self) -> int:
        """Nodes that a step may run, the root included."""
        return self.runner.max_slots

    def known(self, tokens: Tensor) -> Tensor:
        """``tokens`` with 0 for what a draft with a narrower (less padded) vocabulary does not have."""
        size = self.runner.vocab_size
        return tokens if size >= self.vocab_size else tokens.masked_fill(tokens >= size, 0)

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Commit the prompt; the first token is the first root."""
        self.runner.prefill(self.known(state.prompt))
        self._pending = state.tokens[0][-1:]
        self._proposal = None

    @hookimpl
    def propose(self, state: DecodeState) -> ModelProposal:
        """Catch up with what was accepted (in a captured run: once something is asked); the root is slot 0."""
        self._proposal = ModelProposal(self, state.pipeline, state.history[0])
        if not self.runner.captures or state.pipeline.key is None:
            self._proposal.start()
        return self._proposal

    def catch_up(self) -> Tensor:
        """Run what was accepted and has not been run; the root's logits [1, V]."""
        return self.runner.catch_up(self._waiting())

    def draft(self, pipeline: LogitsPipeline, build: Build, inputs: Sequence[Tensor]) -> tuple[Any, Tensor]:
        """Catch up and ``build`` on that, in one captured run; with the log-probabilities of all slots then [n, V]."""
        self._pipeline = pipeline
        return self.runner.draft(self._drafted, self._waiting(), pipeline.key, build, *inputs)

    def _drafted(self, root_logits: Tensor, key: object, build: Build, *inputs: Tensor) -> tuple[Any, Tensor]:
        """What ``build`` gives, and what is known then, for all pipelines of this ``key``."""
        assert self._pipeline is not None
        proposal = ModelProposal(self, self._pipeline)
        proposal.start(root_logits)
        return build(proposal, *inputs), proposal.known

    def _waiting(self) -> list[int]:
        size = self.runner.vocab_size
        return [token if token < size else 0 for token in self._pending]

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Move along the accepted nodes that have been run; the rest of them and the bonus wait for the catch-up.

        A root without a slot stands for a step in which nothing was run: what waits then keeps waiting.
        """
        (path,) = state.path_of(verdict, tree)
        if path.slots is None:
            raise ValueError(
                "Tree.slots: expected the drafter's slot of every node from the tree builder, got None; return what "
                "Proposal.expand gave, 0 at the root and -1 where nothing was run"
            )
        run = [slot for slot in path.slots if slot >= 0]
        if run:
            if self._proposal is not None:
                self._proposal.start()  # nobody asked, but the root has a slot
            self.runner.move(run)
            self._pending = path.tokens[len(run) :]
        else:  # not asked in this step: the root is waiting already
            self._pending += path.tokens[1:]
        self._pending.append(path.bonus)
        self._proposal = None


def room_for(needed: int | None, given: int) -> int:
    """Slots for a tree builder that may use ``needed`` (None: it does not say); ``given``: the setting, 0 if unset.

    Raises:
        ValueError: fewer given than are needed.
    """
    if given < 0 or 0 < given < (needed or 1):
        raise ValueError(
            f"max_slots: expected at least {needed or 1}, the nodes that the draft runs in a step of this tree, "
            f"got {given}; leave it out for as many as needed, or make the tree smaller"
        )
    if given > MAX_NODES:
        raise ValueError(f"max_slots: expected at most {MAX_NODES} nodes, got {given}")
    return given or needed or SLOTS


class ModelProposal:
    """The distributions of one step, by slot; all float32 (float64 from a float64 draft)."""

    marginals: Tensor | None = None

    def __init__(self, drafter: ModelDrafter, pipeline: LogitsPipeline, history: Sequence[int] = ()) -> None:
        self._drafter = drafter
        self._pipeline = pipeline
        self._prefixes: list[list[int]] = [[*history]] if pipeline.needs_prefix else []
        self._known: Tensor | None = None
        self.at_least = drafter.vocab_size
        self.dtype = torch.float64 if drafter.runner.dtype == torch.float64 else torch.float32
        self.in_one: Callable[..., Any] | None = self._in_one

    def start(self, root_logits: Tensor | None = None) -> None:
        """Run the root, unless it has been; from now on every slot is run when it is asked for."""
        if self._known is None:
            self._known = self._process(self._drafter.catch_up() if root_logits is None else root_logits, [0])
        self.in_one = None

    def _in_one(self, build: Build, *inputs: Tensor) -> Any:  # noqa: ANN401 - what ``build`` gives
        """See ``in_one`` of :class:`Proposal`."""
        self.in_one = None
        found, self._known = self._drafter.draft(self._pipeline, build, inputs)
        return found

    @property
    def known(self) -> Tensor:
        """Log-probabilities by slot [n, V]."""
        self.start()
        assert self._known is not None
        return self._known

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Proposal.topk`."""
        rows = self.logq(slots)
        if (missing := k - rows.shape[-1]) > 0:
            tokens, logq = self.topk(slots, rows.shape[-1])
            return pad(tokens, (0, missing), value=-1), pad(logq, (0, missing), value=float("-inf"))
        if k == 1:  # of equals the first, as greedy verification does; torch.topk takes any, and bfloat16 has many ties
            best = best_tokens(rows)[..., None]
            return best, rows.gather(-1, best)
        logq, tokens = rows.topk(k, dim=-1)
        return tokens, logq

    def logq(self, slots: Tensor) -> Tensor:
        """See :meth:`Proposal.logq`."""
        return self.known.index_select(0, slots[0])[None]

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`Proposal.expand`."""
        known = self.known
        start = self._drafter.runner.num_slots
        new, logits = self._drafter.runner.expand(slots, self._drafter.known(tokens))
        if self._pipeline.needs_prefix:
            for slot, token in zip(slots[0].tolist(), tokens[0].tolist(), strict=True):
                self._prefixes.append([*self._prefixes[slot], token])
        rows = self._process(logits[0], range(start, start + new.shape[1]))
        self._known = torch.cat([known, rows])
        return new

    def _process(self, logits: Tensor, slots: Any) -> Tensor:  # noqa: ANN401 - ints
        """Log-probabilities over the target's vocabulary, processed as the target's are: [n, V]."""
        pipeline = self._pipeline
        size = self._drafter.vocab_size
        if logits.shape[-1] != size:  # padded vocabularies of different width
            extra = size - logits.shape[-1]
            logits = pad(logits, (0, extra), value=float("-inf"))
        scores = pipeline(logits, [self._prefixes[slot] for slot in slots] if pipeline.needs_prefix else None)
        return scores.log_softmax(-1) if pipeline.greedy else scores
