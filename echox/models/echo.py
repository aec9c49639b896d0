"""Echo: the S2T model whose hidden states are decoded to units."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from echox.core.errors import SignalError
from echox.core.signals import Spans
from echox.decoding import DecodeEngine, Request, Steps
from echox.decoding.engine import Impl
from echox.models.denoising import Candidates, DenoisingAdapter, T2CModel
from echox.models.segmenting import Cutter, SegmentsConfig, cut, whole
from echox.models.speech_llm import SpeechLLM
from echox.models.unit_generation import (
    SLOTS,
    UnitDecoderSteps,
    UnitTokens,
    target_requests,
    unit_decode_engine,
)

MAX_STEPS = 1024  # of a segment, where the caller does not say
NOT_FINITE = (
    "the unit decoder's scores for segment {} are not finite, so it is not spoken; its weights or "
    "its states are damaged"
)


class EchoBase(nn.Module, ABC):
    """What answers aloud: an S2T model whose hidden states are decoded to units.

    Attributes:
        speech_llm: the S2T model.
        cutter: cuts answers into segments that are decoded one by one; None decodes whole answers.
        joins_segments: whether a codec decodes the units of an answer's segments together.
    """

    speech_llm: SpeechLLM
    cutter: Cutter | None
    joins_segments: bool = True

    @abstractmethod
    def decode_engine(
        self, longest: int, slots: int | None = None, max_steps: int | None = None
    ) -> DecodeEngine:
        """Build a decode engine with the present weights.

        Args:
            longest: text tokens of an answer at most.
            slots: segments decoded together; None is as many as a pipeline needs.
            max_steps: as in `speak_segments`.
        """

    @abstractmethod
    def segment_requests(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        text: Tensor | None = None,
        *,
        steps: Steps,
    ) -> dict[int, Request]:
        """Return a request for the unit tokens of each segment that has text, by its number.

        Args:
            hidden, spans, max_steps, text: as in `speak_segments`.
            steps: of the engine that takes the requests.
        """

    @abstractmethod
    def unit_tokens_in(self, tokens: Tensor, *, ended: bool) -> UnitTokens:
        """Return the unit tokens that decoded tokens stand for, cut where their end is not there.

        Args:
            tokens: [T, K] of a segment, all or the first of them.
            ended: all of them are there. Otherwise the result is a beginning of that of all.
        """

    def speak_segments(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        engine: DecodeEngine | None = None,
        text: Tensor | None = None,
    ) -> list[UnitTokens]:
        """Generate the unit tokens of given segments, greedy; no context crosses segments.

        Args:
            hidden: states [B, S, H] that predicted the answers' tokens.
            spans: G segments.
            max_steps: decode steps of a segment at most, each a unit token or a mark; None is the
                model's own limit.
            engine: of `decode_engine`; None builds one for this call.
            text: the answers' greedy tokens [B, S], if they are known.

        Returns:
            unit tokens of each segment, and whether the limit cut them.

        Raises:
            SignalError: a segment is too long for the engine, or scores are NaN or infinite.
        """
        unit_tokens = [UnitTokens() for _ in spans.rows]
        if not unit_tokens:
            return unit_tokens
        if engine is None:
            longest = int((spans.ends - spans.starts).max())
            engine = self.decode_engine(longest, min(len(unit_tokens), SLOTS), max_steps)
        requests = self.segment_requests(hidden, spans, max_steps, text, steps=engine.steps)
        for number, completion in zip(requests, engine.run(requests.values())):
            if completion.failed:
                raise SignalError(NOT_FINITE.format(number))
            unit_tokens[number] = self.unit_tokens_in(completion.tokens, ended=True)
        return unit_tokens

    def spans(self, hidden: Tensor, lengths: Tensor) -> Spans:
        """The segments of answers: hidden states [B, S, H], lengths [B] in tokens."""
        return whole(lengths) if self.cutter is None else self.cutter.spans(hidden, lengths)

    def speak(
        self,
        hidden: Tensor,
        lengths: Tensor,
        max_steps: int | None = None,
        engine: DecodeEngine | None = None,
        text: Tensor | None = None,
    ) -> list[UnitTokens]:
        """Generate the unit tokens of answers; see `speak_segments`.

        Args:
            hidden: states [B, S, H] that predicted the answers' tokens.
            lengths: [B] tokens.
            max_steps, engine, text: as there.

        Returns:
            unit tokens per row, those of its segments joined.

        Raises:
            SignalError: as there.
        """
        return self.speak_spans(hidden, self.spans(hidden, lengths), max_steps, engine, text)

    def speak_spans(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        engine: DecodeEngine | None = None,
        text: Tensor | None = None,
    ) -> list[UnitTokens]:
        """Generate the unit tokens of answers by given segments; see `speak`.

        Answers without a segment have no unit tokens.
        """
        unit_tokens = [UnitTokens() for _ in hidden]
        segments = self.speak_segments(hidden, spans, max_steps, engine, text)
        # Segments lie in the order of rows and positions, so appending restores each answer.
        for row, tokens in zip(spans.rows.tolist(), segments):
            unit_tokens[row].append_segment(tokens)
        return unit_tokens


class EchoModel(EchoBase):
    """SpeechLLM -> hidden states -> denoising adapter -> unit decoder."""

    def __init__(
        self,
        speech_llm: SpeechLLM,
        denoiser: DenoisingAdapter,
        t2c_model: T2CModel,
        segments: SegmentsConfig | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Join the trained parts.

        Args:
            speech_llm: the S2T model.
            denoiser: between its hidden states and the unit decoder.
            t2c_model: its unit decoder and text rows, named `voice.*` in checkpoints.
            segments: how answers are cut into segments that are decoded one by one; None decodes
                whole answers.
            teacher: a frozen T2C model that makes labels in training; checkpoints do without it.

        Raises:
            ConfigError: the trigger of `segments` is not one token of the language model.
        """
        super().__init__()
        self.speech_llm = speech_llm
        self.denoiser = denoiser
        self.voice = t2c_model
        self.teacher = teacher
        self.cutter = None if segments is None else Cutter(segments, speech_llm.backbone)

    def denoise(self, hidden: Tensor, candidates: Candidates | None) -> Tensor:
        """Hidden states [B, S, H] and their candidates, if any -> text vectors [B, S, H]."""
        return self.denoiser(hidden, candidates, self.voice.rows)

    def candidates(self, hidden: Tensor, text: Tensor | None = None) -> Candidates | None:
        """The tokens that denoising starts from.

        The vocabulary head, a large matrix, is applied only where `text` does not tell.

        Args:
            hidden: states [B, S, H] that predicted tokens.
            text: [B, S] the likeliest token of each state; None if it is not known.
        """
        count = self.denoiser.config.candidates
        if count == 0:
            return None
        if count == 1 and text is not None:
            return Candidates.greedy(text)
        return self.denoiser.candidates(self.speech_llm.backbone.logits(hidden))

    def decode_engine(
        self, longest: int, slots: int | None = None, max_steps: int | None = None
    ) -> DecodeEngine:
        """Build a decode engine of the unit decoder; see `EchoBase.decode_engine`."""
        # A pipeline's has all positions that the decoder was built for: typed texts may be longer.
        capacity = None if slots is None else longest + (max_steps or MAX_STEPS)
        return unit_decode_engine(self.voice.decoder, slots=slots or SLOTS, capacity=capacity)

    def segment_requests(
        self,
        hidden: Tensor,
        spans: Spans,
        max_steps: int | None = None,
        text: Tensor | None = None,
        *,
        steps: Steps,
    ) -> dict[int, Request]:
        """Return a request for each segment; see `EchoBase.segment_requests`."""
        if not isinstance(steps, UnitDecoderSteps):
            raise TypeError(f"segments are decoded by UnitDecoderSteps, not {type(steps).__name__}")
        # Over whole answers, not by segment: the adapter acts on each position by itself.
        denoised = self.denoise(hidden, self.candidates(hidden, text))
        vectors, lengths = cut(denoised, spans)  # [G, L, H], [G]
        return target_requests(steps, vectors, lengths, max_steps or MAX_STEPS)

    def unit_tokens_in(self, tokens: Tensor, *, ended: bool) -> UnitTokens:
        """Return the unit tokens without marks; see `EchoBase.unit_tokens_in`."""
        return self.voice.unit_tokens_in(tokens, ended=ended)


class Teacher(nn.Module):
    """A frozen T2C model that labels texts with units.

    It stays in eval mode whatever mode its owner is in, so that labels do not depend on dropout.
    """

    def __init__(self, t2c_model: T2CModel) -> None:
        super().__init__()
        self.voice = t2c_model.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Ignore `mode` and stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def targets(self, text: Tensor, lengths: Tensor, max_steps: int = 1024) -> list[UnitTokens]:
        """Generate pseudo-labels for texts.

        Args:
            text: token ids [G, S].
            lengths: [G] tokens.
            max_steps: decode steps at most, before the end mark.

        Returns:
            target ids of the unit decoder per row.

        Raises:
            SignalError: the decoder's scores are NaN or infinite.
        """
        capacity = (int(lengths.max()) if len(lengths) else 0) + max_steps
        # Plain steps: CUDA graphs would be captured anew at every training step, and while
        # gradients travel.
        engine = unit_decode_engine(
            self.voice.decoder, slots=max(1, len(text)), capacity=capacity, impl=Impl.plain
        )
        return self.voice.targets(text, lengths, max_steps, engine)


def teacher_of(t2c_model: T2CModel) -> Teacher:
    """A frozen copy of a T2C model, as the teacher of online labels."""
    # Text rows without a spelling are never trained, and as large as the output head: shared.
    rows = t2c_model.rows
    if rows.spelling is not None:
        rows = copy.deepcopy(rows)
    return Teacher(T2CModel(rows, copy.deepcopy(t2c_model.decoder)))
