"""The callable that ``generate`` takes as ``custom_generate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from specdecodes.core.load import load
from specdecodes.core.sampling import SamplingParams
from specdecodes.integration.call import Call
from specdecodes.integration.checks import check_config, check_inputs, check_processors
from specdecodes.integration.pool import pool_of, weights_of
from specdecodes.plugin import registry

OF_THE_MODEL = ("target", "device", "dtype")
"""Settings of :func:`specdecodes.load` that the model itself decides here."""


def custom_generate(
    mode: str = "stree",
    draft_model: str | PreTrainedModel | None = None,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - tokenizers have no common base
    **settings: Any,
) -> CustomGenerate:
    """A decoding method for ``model.generate(**inputs, custom_generate=...)``.

    The result can be used with any number of models and calls. A call with the same model and settings as one of the
    last few uses its decoder again; the decoders go with the model.

    Args:
        mode: which components decode (``specdecodes plugins``).
        draft_model: a loaded model, a folder, a hub id, or a drafter's name (``ngram``).
        tokenizer: the target's, for stop strings and for modes that read text.
        **settings: what else :func:`specdecodes.load` takes: parts of the mode, components' settings, ``compile``,
            ``observers``.

    Raises:
        ValueError: an unknown mode, a setting that the model decides.
    """
    registry().get("mode", mode)
    for name in OF_THE_MODEL:
        if name in settings:
            raise ValueError(f"custom_generate: {name!r} is the model's own; leave it out")
    return CustomGenerate({"draft": draft_model, "mode": mode, "tokenizer": tokenizer, **settings})


class CustomGenerate:
    """What :func:`custom_generate` returns; ``generate`` calls it with everything prepared.

    Of ``generate``'s arguments, these beyond the stock ones reach :meth:`__call__`:

    * ``token_streamer``: a streamer; gets the prompt, then every token as soon as it is final.
    * ``stop``: strings that end the answer, as stock's ``stop_strings`` (which needs the ``tokenizer`` that stock
      withholds); ``tokenizer`` must have been given to :func:`custom_generate`.
    * ``seed``: reproduces a sampled answer; without it ``torch.manual_seed`` does.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        token_streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Decode one row.

        Returns:
            int64 [1, L + n], prompt included; with ``return_dict_in_generate`` a :class:`GenerateDecoderOnlyOutput`
            with ``sequences``, and ``scores`` and ``logits`` (n of float32 [1, V] each) where asked for. Its cache is
            None: ours cannot go on in a stock call.

        Raises:
            ValueError: what cannot be done (several rows, beams, contrastive and assisted search, a processor with a
                memory, a cache that holds tokens, embeddings for ids, attentions or hidden states as outputs), and
                what :func:`specdecodes.load` refuses. Stopping criteria get no scores.
        """
        check_config(generation_config)
        check_processors(logits_processor)
        check_inputs(input_ids, model_kwargs)
        criteria = StoppingCriteriaList(stopping_criteria)
        if stop:
            criteria.append(self._stop_strings([stop] if isinstance(stop, str) else list(stop)))
        greedy, length = not generation_config.do_sample, input_ids.shape[1]
        if seed is None and not greedy:
            seed = int(torch.randint(2**63 - 1, ()))  # from the generator that torch.manual_seed seeds
        room = int(generation_config.max_length) - length
        params = SamplingParams(max_new_tokens=room, temperature=0.0 if greedy else 1.0, seed=seed)
        call = Call(params, input_ids, logits_processor, criteria, generation_config, token_streamer)
        draft = self.settings["draft"]
        models = [each for each in (model, draft) if isinstance(each, PreTrainedModel)]
        with _evaluating(models):
            pool, weights = pool_of(model), weights_of(models)
            decoder = pool.take(self.settings, weights) or load(model, **self.settings)
            output = call.run(decoder)
            pool.put(self.settings, weights, decoder)
        return output

    def _stop_strings(self, strings: list[str]) -> StopStringCriteria:
        tokenizer = self.settings["tokenizer"]
        if tokenizer is None or isinstance(tokenizer, str):
            raise ValueError(
                "stop: stop strings need a tokenizer; make the method with specdecodes.custom_generate(tokenizer=...)"
            )
        return StopStringCriteria(tokenizer, strings)


@contextmanager
def _evaluating(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Evaluation mode for the length of the block: dropout would make the target disagree with itself."""
    training = [module for model in models for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
