"""Streamed answers: text token by token, and speech chunk by chunk, of many conversations at once.

The language model goes on while the units of the segments before are decoded, and the codec
decodes units as they come. Requests of all conversations share the decode engines, so that each
step of a model serves all of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from echox.core.errors import EchoxError, SignalError
from echox.core.memory import is_out_of_memory, out_of_memory_text
from echox.inference.answers import Answer, Piece, Question, Transcript, cut_of, refuse_unanswerable
from echox.inference.clip_cache import ClipCache
from echox.inference.cutting import Cutting
from echox.inference.milestones import Milestones
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.speech_stream import UNIT_STEPS, SpeechStream
from echox.inference.text_stream import NoText, TextStream, text_stream
from echox.models.segmenting import Segment, SegmentsConfig, spans_of

log = logging.getLogger(__name__)

UNEXPECTED = "the answer could not be generated; the log says why"


@torch.no_grad()
def stream(
    pipeline: SpeechToSpeechPipeline, question: Question, segments: SegmentsConfig | None = None
) -> Iterator[Piece]:
    """Answer one conversation piece by piece, in order.

    Args:
        pipeline: answers aloud, or in text alone.
        question: the conversation.
        segments: how to cut; None cuts as whole answers of the pipeline are cut.

    Yields:
        a piece of text after every token, samples [T] as soon as they are final, and at the end
        the answer. Text, units and samples are those of `SpeechToSpeechPipeline.reply`.

    Raises:
        SignalError: as `SpeechToSpeechPipeline.reply`.
        ConfigError: the trigger of `segments` is not one token of the language model.
    """
    streams = AnswerStreams(pipeline, segments)
    number = streams.add(question)
    try:
        while not streams.is_idle:
            for _, piece in streams.step():
                if piece.error:
                    raise SignalError(piece.error)
                yield piece
    finally:
        streams.cancel(number)


class Asked(NamedTuple):
    """A conversation to answer, and how."""

    question: Question
    speak: bool
    max_tokens: int
    milestones: Milestones


class AnswerStreams:
    """Answers conversations piece by piece, any number of them at once."""

    def __init__(
        self, pipeline: SpeechToSpeechPipeline, segments: SegmentsConfig | None = None
    ) -> None:
        """Begin without conversations.

        Args:
            pipeline: answers aloud, or in text alone.
            segments: how to cut; None cuts as whole answers of the pipeline are cut.
        """
        self.pipeline = pipeline
        self.segments = segments
        self._waiting: deque[tuple[int, Asked]] = deque()
        self._answers: dict[int, _Answering] = {}
        self._numbers = count()
        self._clips = ClipCache()

    @property
    def is_idle(self) -> bool:
        """Whether every answer has ended or was cancelled."""
        return not self._waiting and not self._answers

    def add(self, question: Question, *, speak: bool = True, max_tokens: int | None = None) -> int:
        """Begin to answer a conversation.

        Args:
            question: the conversation.
            speak: False generates text only.
            max_tokens: text tokens at most, where fewer than the pipeline allows.

        Returns:
            its number, by which `step` names its pieces.

        Raises:
            SignalError: a clip is unusable, or there are more or fewer places for audio than clips.
        """
        refuse_unanswerable(question)
        number = next(self._numbers)
        limit = min(max_tokens or self.pipeline.max_tokens, self.pipeline.max_tokens)
        speaks = speak and self.pipeline.speaks
        self._waiting.append((number, Asked(question, speaks, limit, Milestones())))
        return number

    @torch.no_grad()
    def prefill(self, question: Question) -> None:
        """Read what precedes a question that is still being spoken.

        Args:
            question: whose last turn has a place for audio, without a clip for it.

        Raises:
            SignalError: the conversation is too long for the model.
        """
        self.pipeline.prefill(question, self._clips)

    def cancel(self, number: int) -> None:
        """Stop an answer and free what it holds; one that has ended is passed over."""
        self._waiting = deque(each for each in self._waiting if each[0] != number)
        if (answering := self._answers.pop(number, None)) is not None:
            answering.text.cancel()
            if answering.speech is not None:
                answering.speech.cancel()

    @torch.no_grad()
    def step(self) -> list[tuple[int, Piece]]:
        """Advance every answer a little.

        Returns:
            new pieces, each with the number of its answer. The last piece of an answer has its
            `answer`, or an `error`.
        """
        pieces = self._begin_waiting()
        writes = self._writes
        self._advance_engines(writes=writes)
        for number, answering in list(self._answers.items()):
            try:
                found = self._progress(answering, writes=writes)
                pieces += [(number, piece) for piece in found]
            except SignalError as error:
                self.cancel(number)
                pieces.append((number, Piece(answering.written, error=str(error), cause=error)))
                continue
            if answering.is_complete:
                del self._answers[number]
                pieces.append((number, self._last_piece(answering)))
        return pieces

    def _begin_waiting(self) -> list[tuple[int, Piece]]:
        """Encode the conversations that wait, in one batch, and ask for their text."""
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not waiting:
            return []
        try:
            self._begin(waiting)
        except Exception as error:
            # One that cannot be answered must not keep the others from their answers.
            if len(waiting) == 1:
                return [(waiting[0][0], Piece("", error=_reason(error), cause=error))]
            pieces = []
            for each in waiting:
                self.cancel(each[0])  # it may have begun before the one that failed
                self._waiting.append(each)
                pieces += self._begin_waiting()
            return pieces
        return []

    def _begin(self, waiting: Sequence[tuple[int, Asked]]) -> None:
        pipeline = self.pipeline
        questions = [asked.question for _, asked in waiting]
        encoded = pipeline.encode_questions(questions, self._clips)
        prompted = encoded.prompted
        prompts = zip(prompted.embeddings, prompted.mask, encoded.parts, strict=True)
        for (number, asked), transcript, (prompt, mask, parts) in zip(
            waiting, encoded.transcripts, prompts, strict=True
        ):
            answers = pipeline.answers(transcript)
            milestones, speech, cutting = asked.milestones, None, None
            milestones.mark("encoded")
            if answers and asked.speak:
                speech = SpeechStream(pipeline.speech_parts, milestones)
                cutting = pipeline.cutting(self.segments)
            text: TextStream = NoText()
            if answers:
                text = text_stream(pipeline, prompt, mask, asked.max_tokens, parts)
            self._answers[number] = _Answering(text, transcript, milestones, speech, cutting)

    @property
    def _writes(self) -> bool:
        """Whether texts go on: not while the answers there are wait for sound alone."""
        answers = self._answers.values()
        awaits_sound = any(answering.awaits_sound for answering in answers)
        return not awaits_sound or any(answering.awaits_text for answering in answers)

    def _advance_engines(self, *, writes: bool) -> None:
        """Take a step of the language model, if `writes`, and some of the unit decoder."""
        if writes and any(answering.text.uses_engine for answering in self._answers.values()):
            self.pipeline.require_text_engine().advance()
        speeches = [answering.speech for answering in self._answers.values()]
        if any(speech is not None and speech.open_segments for speech in speeches):
            for _ in range(UNIT_STEPS):
                if not self.pipeline.unit_engine.advance():
                    break

    def _progress(self, answering: _Answering, *, writes: bool) -> Iterator[Piece]:
        """Take what the engines have of one answer, text only if `writes`, and pass it on."""
        if writes:
            yield from self._take_text(answering)
        if answering.speech is None:
            return
        samples = answering.speech.next_samples()
        if samples is not None:
            first = answering.speech.samples - len(samples)
            yield Piece(answering.written, samples, first, answering.transcript.text)

    def _take_text(self, answering: _Answering) -> Iterator[Piece]:
        for token, state in answering.text.take():
            answering.tokens.append(token)
            answering.states.append(state)
            # The text of all tokens: a character may be spread over several of them.
            answering.written = self.pipeline.backbone.detokenize(answering.tokens)
            answering.milestones.mark("first_text")
            yield Piece(answering.written, heard=answering.transcript.text)
            if answering.cutting is not None:
                self._speak(answering, answering.cutting.push(state, answering.written))
        if answering.text.ended and answering.cutting is not None:
            self._speak(answering, answering.cutting.flush())
            answering.cutting = None
            if answering.speech is not None:
                answering.speech.finish()

    def _speak(self, answering: _Answering, segment: Segment | None) -> None:
        if segment is None or answering.speech is None:
            return
        pipeline, device = self.pipeline, self.pipeline.device
        # One segment of all states so far: its positions are those of the answer.
        span = spans_of([(0, segment.start, segment.end)], device)
        hidden = torch.stack(answering.states)[None].to(device)  # [1, S, H]
        text = torch.tensor(answering.tokens, device=device)[None]  # [1, S]
        engine = pipeline.unit_engine
        with pipeline.autocast():
            requests = pipeline.require_echo().segment_requests(
                hidden, span, text=text, steps=engine.steps
            )
        for request in requests.values():
            answering.speech.add(request)

    def _last_piece(self, answering: _Answering) -> Piece:
        codec, speech = self.pipeline.codec, answering.speech
        answering.milestones.mark("done")
        answer = Answer(
            text=answering.written,
            token_ids=tuple(answering.tokens),
            heard=answering.transcript.text,
            heard_ids=answering.transcript.ids,
            units=() if speech is None else tuple(speech.units),
            codebooks=1 if codec is None else codec.codebooks,
            timings_s=answering.milestones.seconds,
            cut=cut_of(answering.text.is_cut, speech is not None and speech.is_cut),
            unheard=answering.transcript.unheard,
        )
        return Piece(answering.written, heard=answering.transcript.text, answer=answer)


def _reason(error: Exception) -> str:
    """Return one sentence for an error; one that is a bug is logged with its traceback."""
    if isinstance(error, EchoxError):
        return str(error)
    if is_out_of_memory(error):
        return out_of_memory_text(error, "ask again when fewer sessions speak")
    log.error("a question could not be read", exc_info=error)
    return UNEXPECTED


@dataclass(slots=True)
class _Answering:
    """One answer on its way."""

    text: TextStream
    transcript: Transcript
    milestones: Milestones
    speech: SpeechStream | None  # None where nothing is synthesized
    cutting: Cutting | None  # None where nothing is synthesized, or the text has ended
    tokens: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # each [H]
    written: str = ""

    @property
    def awaits_text(self) -> bool:
        """Whether text is all that is given, or all that its first segment needs."""
        return not self.text.ended and (self.speech is None or not self.speech.has_begun)

    @property
    def awaits_sound(self) -> bool:
        """Whether a segment is on its way to be the first that is heard."""
        speech = self.speech
        return speech is not None and speech.open_segments > 0 and not self.milestones.is_audible

    @property
    def is_complete(self) -> bool:
        """Whether nothing follows."""
        return self.text.ended if self.speech is None else self.speech.is_complete
