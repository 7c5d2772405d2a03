"""A target with the components of one mode: ``generate`` and ``stream``."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import torch
from torch import Tensor

from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, Rng, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.text import StopRule, StopStrings, TextStream
from specdecodes.models.target import Target
from specdecodes.plugin import Hooks

Prompt = str | Sequence[Mapping[str, str]] | Tensor


@dataclass(frozen=True)
class Generation:
    """What came out.

    Attributes:
        tokens: B lists of new token ids, the prompt excluded; the end-of-text token and the token that completes a
            stop string are included.
        text: the text of row 0 without special tokens and without the stop string ("" without a tokenizer).
        accept_lengths: tokens emitted by each decode step, bonus included: ``sum == len(tokens[0]) - 1``.
        timings: seconds: ``prefill``, ``decode`` (everything after it), and what observers add.
        prompt_tokens: length of the prompt.
        lossless: what the verifier declares: the tokens are the target's own, or distributed as they are.
    """

    tokens: list[list[int]]
    text: str
    accept_lengths: list[int]
    timings: dict[str, float]
    prompt_tokens: int
    extras: dict[str, Any] = field(default_factory=dict)
    lossless: bool = True

    @property
    def tau(self) -> float:
        """Mean tokens per decode step, bonus included (0 if the prefill's token ended the answer)."""
        return sum(self.accept_lengths) / len(self.accept_lengths) if self.accept_lengths else 0.0


@dataclass(frozen=True)
class Assembly:
    """The components of one decoder at one kind of temperature, checked to fit together."""

    hooks: Hooks
    draws: str

    @property
    def lossless(self) -> bool:
        """What the verifier declares."""
        return bool(getattr(self.hooks.manager.get_plugin("verifier"), "lossless", False))


class Decoder:
    """Generates with one mode. Made by :func:`specdecodes.load`.

    Attributes:
        target, tokenizer, mode: what it decodes with.
        greedy, sampling: the assembly for temperature 0 and above, or the reason (a message) why there is none.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Any,  # noqa: ANN401 - tokenizers have no common base
        mode: str,
        greedy: Assembly | str,
        sampling: Assembly | str,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.mode = mode
        self.greedy = greedy
        self.sampling = sampling

    def generate(self, prompt: Prompt, **settings: Any) -> Generation:
        """Decode an answer.

        Args:
            prompt: a string, chat messages (a list of {role, content}), or int64 [B, L] (then no tokenizer is needed).
            **settings: fields of :class:`SamplingParams`; ``model_inputs`` (a dict) goes to the prefill.

        Raises:
            ValueError: an empty or too long prompt, a setting out of range, more rows than one, or a mode whose
                components cannot serve this temperature.
        """
        state, assembly, started = self._start(prompt, settings)
        for _ in steps(assembly.hooks, state):
            pass
        return self.finish(state, assembly, started)

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[str]:
        """Like :meth:`generate`, giving out pieces of text as soon as they are final.

        Raises:
            ValueError: as :meth:`generate`, and without a tokenizer. Input is checked here, not at the first piece.
        """
        if self.tokenizer is None:
            raise ValueError("stream: expected a decoder with a tokenizer, got none; pass tokenizer= to load")
        state, assembly, started = self._start(prompt, settings)

        def pieces() -> Iterator[str]:
            text = TextStream(self.tokenizer, state.stop)
            yield text.push(state.tokens[0])
            for _ in steps(assembly.hooks, state):
                if piece := text.push(state.tokens[0]):
                    yield piece
            yield text.push(state.tokens[0], final=True)
            self.finish(state, assembly, started)

        return (piece for piece in pieces() if piece)

    def as_prompt(self, text: str, *, chat: bool | None = None, most: int | None = None) -> Prompt:
        """``text`` as a prompt: a chat message, or to be continued as it is.

        Args:
            chat: which of the two; None: a message where the tokenizer has a chat template.
            most: cut a longer text to so many tokens.
        """
        if most is not None and len(ids := self.tokenizer.encode(text, add_special_tokens=False)) > most:
            text = self.tokenizer.decode(ids[:most])
        if chat is None:
            chat = getattr(self.tokenizer, "chat_template", None) is not None
        return [{"role": "user", "content": text}] if chat else text

    def encode(self, prompt: Prompt) -> Tensor:
        """The prompt as int64 [B, L] on the target's device; chat messages go through the chat template.

        Raises:
            ValueError: no tokenizer for a text prompt, an empty prompt, ids outside the vocabulary.
        """
        if isinstance(prompt, Tensor):
            ids = prompt
        elif not isinstance(prompt, str) and not _are_messages(prompt):
            raise ValueError(
                "prompt: expected a string, int64 token ids [B, L] or messages such as "
                f"[{{'role': 'user', 'content': '...'}}], got {reprlib.repr(prompt)}"
            )
        elif not (prompt if isinstance(prompt, str) else any(message["content"] for message in prompt)):
            raise ValueError("prompt: expected some text, got an empty prompt")
        elif self.tokenizer is None:
            raise ValueError(
                "prompt: expected token ids [B, L], got text; this decoder has no tokenizer, name one for the target"
            )
        elif isinstance(prompt, str):
            ids = torch.tensor([self._encode(prompt)], dtype=torch.long)
        else:
            if self.tokenizer.chat_template is None:
                raise ValueError("prompt: the tokenizer has no chat template; pass a string instead of messages")
            ids = torch.tensor([self._encode(self._in_template(prompt), add_special_tokens=False)], dtype=torch.long)
        if ids.ndim != 2 or ids.dtype != torch.long:
            raise ValueError(f"prompt: expected int64 token ids [B, L], got {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.numel() == 0:
            raise ValueError("prompt: expected at least one token, got an empty prompt")
        if int(ids.min()) < 0 or int(ids.max()) >= self.target.vocab_size:
            low, high = int(ids.min()), int(ids.max())
            raise ValueError(f"prompt: expected token ids 0 to {self.target.vocab_size - 1}, got {low} to {high}")
        return ids.to(self.target.device)

    def _in_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
        except jinja2.TemplateError as error:
            raise ValueError(
                f"prompt: the tokenizer's chat template refuses these messages ({error}); pass a string instead"
            ) from error

    def _encode(self, text: str, **settings: Any) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, **settings))
        except (TypeError, UnicodeEncodeError) as error:  # what tokenizers makes of half a surrogate pair
            raise ValueError(f"prompt: expected valid Unicode, got {reprlib.repr(text)}") from error

    def assembly(self, params: SamplingParams) -> Assembly:
        """The components that decode with ``params``.

        Raises:
            ValueError: there are none for this temperature.
        """
        assembly = self.greedy if params.greedy else self.sampling
        if isinstance(assembly, str):
            raise ValueError(f"mode {self.mode!r} cannot decode at temperature {params.temperature:g}: {assembly}")
        return assembly

    def _start(self, prompt: Prompt, settings: dict[str, Any]) -> tuple[DecodeState, Assembly, float]:
        model_inputs = settings.pop("model_inputs", None) or {}
        extra = settings.pop("logits_processor", None)
        if isinstance(settings.get("stop"), str):
            settings["stop"] = (settings["stop"],)
        elif "stop" in settings:
            settings["stop"] = tuple(settings["stop"] or ())
        if unknown := sorted(set(settings) - set(SamplingParams.__dataclass_fields__)):
            known = ", ".join(SamplingParams.__dataclass_fields__)
            raise ValueError(
                f"generate: unknown setting {unknown[0]!r}; known: {known}, model_inputs, logits_processor"
            )
        params = SamplingParams(**settings)
        if params.stop and self.tokenizer is None:
            raise ValueError("stop: stop strings need a tokenizer; pass tokenizer= to load")
        return self.start(
            self.encode(prompt),
            params,
            LogitsPipeline(params, extra),
            eos_ids=self._eos_ids(),
            stop=StopStrings(self.tokenizer, params.stop) if params.stop else None,
            model_inputs=model_inputs,
        )

    def start(
        self,
        ids: Tensor,
        params: SamplingParams,
        pipeline: LogitsPipeline,
        *,
        eos_ids: Sequence[int],
        stop: StopRule | None = None,
        model_inputs: Mapping[str, Any] | None = None,
    ) -> tuple[DecodeState, Assembly, float]:
        """Prefill ``ids`` [B, L] and choose the first token; :func:`steps` goes on from there, :meth:`finish` ends.

        Returns:
            The state, the components that decode it, and when it began (``time.perf_counter``).

        Raises:
            ValueError: no assembly for this temperature, more rows than one, too long a prompt.
        """
        assembly = self.assembly(params)
        self.target.check_room(ids.shape[0], ids.shape[1], params.max_new_tokens)
        model_inputs = dict(model_inputs or {})
        state = DecodeState(
            self.target,
            ids,
            params,
            pipeline=pipeline,
            rng=Rng(params.seed, self.target.device),
            eos_ids=eos_ids,
            stop=stop,
            draws=assembly.draws,
            model_inputs=model_inputs,
        )
        started = time.perf_counter()
        with torch.inference_mode():
            state.first(self.target.prefill(ids, **model_inputs))
            state.extras["prefill_seconds"] = time.perf_counter() - started
            assembly.hooks.generation_started(state)
        return state, assembly, started

    def finish(self, state: DecodeState, assembly: Assembly, started: float) -> Generation:
        """What came out of a finished ``state``; observers see it."""
        prefill = state.extras["prefill_seconds"]
        timings = {"prefill": prefill, "decode": time.perf_counter() - started - prefill}
        text = ""
        if self.tokenizer is not None:
            text = self.tokenizer.decode(state.tokens[0], skip_special_tokens=True)
            text = state.stop.cut(text) if state.stop is not None else text
        prompt_tokens, lossless = state.prompt.shape[1], assembly.lossless
        generation = Generation(state.tokens, text, state.accept_lengths, timings, prompt_tokens, lossless=lossless)
        assembly.hooks.generation_finished(state, generation)
        return generation

    def _eos_ids(self) -> list[int]:
        ids = self.target.eos_ids
        own = getattr(self.tokenizer, "eos_token_id", None)
        return sorted({*ids, *([own] if own is not None else [])})


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
    )
