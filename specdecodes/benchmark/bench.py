"""The decoders of a run, and how they are asked: plain decoding in alternation with the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from specdecodes.benchmark.arms import components_of
from specdecodes.benchmark.conversation import Conversation
from specdecodes.benchmark.equality import compare
from specdecodes.benchmark.folder import RunFolder
from specdecodes.benchmark.likelihood import log_perplexity
from specdecodes.benchmark.memory import PeakMemory
from specdecodes.benchmark.questions import Question
from specdecodes.benchmark.records import BASELINE, QuestionRecord, TurnRecord
from specdecodes.benchmark.sample import Sample, sample_of
from specdecodes.benchmark.settings import RunSettings, plain_value, short_name
from specdecodes.benchmark.stats import distinct_ngrams
from specdecodes.benchmark.summary import Components, Summary, distinct_share, summarise_mode, summary_row
from specdecodes.benchmark.watcher import Watcher
from specdecodes.core.decoder import Assembly, Decoder, Generation
from specdecodes.models.target import Target
from specdecodes.plugins.observers.trace import Trace


class Bench:
    """The decoders of one run, and how they are asked.

    Args:
        settings: of the run. arms: decoders by mode, the baseline first. watcher: gets told of every answer.
    """

    def __init__(self, settings: RunSettings, arms: Mapping[str, Decoder], watcher: Watcher) -> None:
        self.settings = settings
        self.arms = arms
        self.watcher = watcher
        self.target = arms[BASELINE].target
        self.device = self.target.device
        self.memory = PeakMemory(self.device)
        # One that is not compiled: a graph for every length of an answer would cost more than it gains.
        self.judge = Target(self.target.model) if settings.perplexity else None

    def warm_up(self, questions: Sequence[Question]) -> None:
        """Let every mode answer the shortest and the longest first turn, unmeasured.

        Raises:
            ValueError: no question fits the model, or a mode cannot decode with these settings.
        """
        for decoder in self.arms.values():
            decoder.assembly(self.settings.params(0))
        prompts, reason = self._first_prompts(questions)
        if not prompts:
            raise ValueError(f"questions: expected at least one that fits the model, got none; {reason}")
        for _ in range(self.settings.warmup):
            for prompt in (prompts[0], prompts[-1]):
                for decoder in self.arms.values():
                    decoder.generate(prompt, **self._sampling(self.settings.seed))

    def _first_prompts(self, questions: Sequence[Question]) -> tuple[list[Tensor], str]:
        """The first turns that fit, by length, and why the last that does not fit does not."""
        prompts, reason = [], ""
        for question in questions:
            try:
                prompts.append(self._conversation(question).prompt(0, self.settings.max_new_tokens))
            except ValueError as error:
                reason = str(error)
        return sorted(prompts, key=lambda ids: ids.shape[1]), reason

    def ask(self, index: int, question: Question) -> QuestionRecord:
        """All turns and repeats of one question, or a record that says why it was skipped.

        Args:
            index: the question's place in the run; the modes' order rotates with it.
            question: what is asked.
        """
        turns: list[TurnRecord] = []
        try:
            for repeat in range(self.settings.repeat):
                turns += self._ask_once(index, question, repeat)
        except ValueError as error:
            return QuestionRecord(question.question_id, question.category, skipped=str(error))
        return QuestionRecord(question.question_id, question.category, turns)

    def _ask_once(self, index: int, question: Question, repeat: int) -> Iterator[TurnRecord]:
        conversation = self._conversation(question)
        for turn in range(len(question.turns)):
            prompt = conversation.prompt(turn, self.settings.max_new_tokens)
            seed = self._seed(index, repeat, turn)
            answers: dict[str, tuple[Generation, int]] = {}
            for mode in self._order(index + repeat + turn):
                self.watcher.asking(question, mode)
                answers[mode] = self._measure(mode, prompt, seed)
            baseline = answers[BASELINE][0]
            for mode in self.arms:
                yield self._record(mode, repeat, turn, prompt, answers[mode], baseline)
            conversation.answered(baseline.text)

    def _order(self, shift: int) -> list[str]:
        """The modes, rotated, so that a machine that slows down or heats up hits all alike."""
        modes = list(self.arms)
        shift %= len(modes)
        return [*modes[shift:], *modes[:shift]]

    def _measure(self, mode: str, prompt: Tensor, seed: int) -> tuple[Generation, int]:
        """One answer and the peak memory meanwhile."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # nobody pays for the last one's unfinished commit
        self.memory.reset()
        try:
            generation = self.arms[mode].generate(prompt, **self._sampling(seed))
        except ValueError as error:  # what a mode cannot decode (its draft's own limit) is left out for all modes
            raise ValueError(f"{mode}: {error}") from error
        return generation, self.memory.read()

    def _record(
        self, mode: str, repeat: int, turn: int, prompt: Tensor, answer: tuple[Generation, int], baseline: Generation
    ) -> TurnRecord:
        generation, peak = answer
        tokens = generation.tokens[0]
        params = self.settings.params(0)
        mismatch = None
        if params.greedy and mode != BASELINE:
            mismatch = compare(self.target, params, prompt, baseline.tokens[0], tokens)
        counts = generation.extras.get("acceptance", {})
        return TurnRecord(
            mode=mode,
            repeat=repeat,
            turn=turn,
            prompt_tokens=generation.prompt_tokens,
            new_tokens=len(tokens),
            text=generation.text,
            accept_lengths=list(generation.accept_lengths),
            seconds=dict(generation.timings),
            ngrams=distinct_ngrams(tokens),
            peak_bytes=peak,
            mismatch=mismatch,
            log_perplexity=log_perplexity(self.judge, params, prompt, tokens) if self.judge is not None else None,
            **counts,
        )

    def _conversation(self, question: Question) -> Conversation:
        return Conversation(self.arms[BASELINE], question)

    def _sampling(self, seed: int) -> dict[str, object]:
        params = self.settings.params(seed)
        return {name: getattr(params, name) for name in params.__dataclass_fields__}

    def _seed(self, index: int, repeat: int, turn: int) -> int:
        """One seed per question, repeat and turn, the same for all modes."""
        return (self.settings.seed + 1_000_003 * index + 1_009 * repeat + turn) % 2**63

    def sample(self, questions: Sequence[Question], records: Sequence[QuestionRecord]) -> list[Sample]:
        """One answer of every mode but the baseline, step by step: the first turn of the first question answered.

        Decoded once more, with what the measured answer was decoded with, so that looking at it slows nothing down.
        """
        answered = {record.question_id for record in records if record.skipped is None}
        asked = ((index, question) for index, question in enumerate(questions) if question.question_id in answered)
        index, question = next(asked, (0, None))
        if question is None:
            return []
        prompt = self._conversation(question).prompt(0, self.settings.max_new_tokens)
        tokenizer = self.arms[BASELINE].tokenizer
        cut = question.prompt_tokens is not None
        text = str(tokenizer.decode(prompt[0], skip_special_tokens=True)) if cut else question.turns[0]
        samples = []
        for mode in [mode for mode in self.arms if mode != BASELINE]:
            with self._assembly(mode).hooks.joined_by(Trace()):
                generation = self.arms[mode].generate(prompt, **self._sampling(self._seed(index, 0, 0)))
            samples.append(sample_of(mode, question, text, generation, tokenizer))
        return samples

    def summarise(self, folder: RunFolder, samples: list[Sample]) -> Summary:
        """All numbers of the run's folder, with ``samples``."""
        records = folder.records
        greedy = self.settings.params(0).greedy
        modes = [
            summarise_mode(records, mode, folder.model_ids[mode], self._components(mode), greedy=greedy)
            for mode in self.arms
        ]
        skipped = [{"question_id": r.question_id, "reason": r.skipped} for r in records if r.skipped is not None]
        return Summary(
            settings=self.settings.to_json(),
            sessions=folder.sessions,
            num_questions=len(records) - len(skipped),
            skipped=skipped,
            baseline_distinct_4grams=distinct_share([turn for r in records for turn in r.of(BASELINE)]),
            modes=modes,
            rows=[summary_row(record, turn) for record in records for turn in record.turns],
            dtype=str(self.target.dtype).removeprefix("torch."),
            memory=self.memory.kind,
            folder=str(folder.path),
            samples=samples,
        )

    def _components(self, mode: str) -> Components:
        """What fills the hooks of ``mode`` at this run's temperature."""
        names = {kind: plain_value(found[0]) for kind, found in components_of(mode, self.settings).items()}
        draft = self.settings.draft if names["drafter"] == "model" else None
        assembly = self._assembly(mode)
        verifier = assembly.hooks.manager.get_plugin("verifier")
        return Components(
            drafter=names["drafter"],
            draft=None if draft is None else short_name(draft),
            tree=names["tree"],
            verifier=type(verifier).__name__,
            state=names["state"],
            lossless=assembly.lossless,
        )

    def _assembly(self, mode: str) -> Assembly:
        """What ``mode`` decodes with at this run's temperature."""
        return self.arms[mode].assembly(self.settings.params(0))
