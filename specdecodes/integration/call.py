"""One call of ``generate``: tokens streamed and stopped one by one, outputs in transformers' form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from specdecodes.core.decoder import Decoder
from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.state import DecodeState


class Call:
    """One call of ``generate``."""

    def __init__(
        self,
        params: SamplingParams,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        self.params, self.input_ids, self.processors, self.config = params, input_ids, processors, config
        self.rule = CriteriaRule(criteria, input_ids, params.max_new_tokens)
        self.streamer = streamer
        self.streamed = 0
        wanted = config.return_dict_in_generate and (config.output_scores or config.output_logits)
        self.logits: list[Tensor] | None = [] if wanted else None

    def run(self, decoder: Decoder) -> Tensor | GenerateDecoderOnlyOutput:
        """Decode with a decoder of the model; see ``CustomGenerate.__call__``."""
        ids = decoder.encode(self.input_ids)
        try:
            if self.streamer is not None:
                self.streamer.put(self.input_ids.cpu())
            state, assembly, started = decoder.start(
                ids,
                self.params,
                LogitsPipeline(self.params, self.processors),
                eos_ids=_ids(self.config.eos_token_id),
                stop=self.rule,
            )
            self._take(state, state.logits)
            for verdict in steps(assembly.hooks, state):
                self._take(state, state.logits[0, verdict.path[0, : state.accept_lengths[-1]]])
            decoder.finish(state, assembly, started)
        finally:
            if self.streamer is not None:
                self.streamer.end()
        return self._output(state.tokens[0])

    def _take(self, state: DecodeState, logits: Tensor) -> None:
        """Hand out the tokens that are new in ``state``, and keep the ``logits`` [n, V] that they came from."""
        new = state.tokens[0][self.streamed :]
        self.streamed += len(new)
        if self.streamer is not None:
            for token in new:
                self.streamer.put(torch.tensor([token]))
        if self.logits is not None:
            self.logits += logits.unbind()

    def _output(self, tokens: list[int]) -> Tensor | GenerateDecoderOnlyOutput:
        new = torch.tensor([tokens], dtype=torch.long, device=self.input_ids.device)
        sequences = torch.cat([self.input_ids, new], dim=1)
        if not self.config.return_dict_in_generate:
            return sequences
        logits = tuple(row.clone().float()[None].to(sequences.device) for row in self.logits or ())
        length, processors = self.input_ids.shape[1], cast(Any, self.processors)
        scores = tuple(
            processors(sequences[:, : length + i], row.clone())
            for i, row in enumerate(logits)
            if self.config.output_scores
        )
        fields: dict[str, Any] = {"sequences": sequences}  # annotated with the old per-dtype tensor classes
        if self.config.output_scores:
            fields["scores"] = scores
        if self.config.output_logits:
            fields["logits"] = logits
        return GenerateDecoderOnlyOutput(**fields)


class CriteriaRule:
    """transformers' stopping criteria as a stop rule: asked after every token, also inside an accepted block."""

    def __init__(self, criteria: StoppingCriteriaList, prompt: Tensor, room: int) -> None:
        self.criteria: Any = criteria  # annotated with the old per-dtype tensor classes
        self.length = prompt.shape[1]
        self.ids = torch.cat([prompt, prompt.new_zeros(1, room)], dim=1)

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Whether any criterion is met."""
        end = self.length + len(tokens)
        self.ids[0, end - 1] = tokens[-1]
        return bool(self.criteria(self.ids[:, :end], None).all())

    def cut(self, text: str) -> str:
        """Nothing is left out."""
        return text

    def held_back(self, text: str) -> int:
        """Nothing is held back."""
        return 0


def _ids(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
