"""Text to speech: the part that typed texts and Echo's answers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.core.device import multiplies_bf16_fast
from echox.core.signals import Units, padded
from echox.decoding import DecodeEngine
from echox.inference.answers import Answer, Clock, cut_of
from echox.inference.cutting import PauseCutting, PauseRule, segments_of
from echox.inference.milestones import Milestones
from echox.inference.speech_stream import UNIT_STEPS, SpeechParts, SpeechStream
from echox.models.denoising import T2CModel
from echox.models.unit_generation import UnitTokens, unit_decode_engine

MAX_STEPS = 1024  # decode steps of a text or a segment, each a unit token or a mark


@dataclass(frozen=True, slots=True)
class UnitSynthesizer:
    """Turns unit tokens into samples [T] by a codec."""

    codec: Codec
    bf16: bool

    @torch.no_grad()
    def synthesize(
        self, unit_tokens: Sequence[Sequence[int]], clock: Clock
    ) -> tuple[list[tuple[int, ...]], list[Tensor | None]]:
        """Decode the unit tokens of a batch.

        Args:
            unit_tokens: of each row.
            clock: counts the codec's seconds.

        Returns:
            units of each row.
            samples [T] of each row, float32 on the CPU; None for a row without units.
        """
        if not unit_tokens:
            return [], []
        # From the unit language, whose tokens may stand for several units, to the codec's units.
        rows = [tuple(self.codec.units_of(list(tokens))) for tokens in unit_tokens]
        autocast = torch.autocast(clock.device.type, torch.bfloat16, enabled=self.bf16)
        with clock.part("codec"), autocast:
            wave = self.codec.decode(Units.of_rows(rows, self.codec.codebooks, clock.device))
            samples = [
                row[:length].float().cpu() if length else None
                for row, length in zip(wave.samples, wave.lengths.tolist())
            ]
        return rows, samples


class TTSPipeline:
    """Text to speech by a T2C model and its codec."""

    def __init__(
        self,
        model: T2CModel,
        backbone: Backbone,
        codec: Codec,
        *,
        bf16: bool | None = None,
        engine: DecodeEngine | None = None,
    ) -> None:
        """Keep the models, which lie on one device.

        Args:
            model: the T2C model.
            backbone: the language model, whose tokens the T2C model reads.
            codec: of the model's unit tokens.
            bf16: run under bfloat16 autocast; None where that is fast.
            engine: a decode engine of this model to share; None builds one when first needed.
        """
        self.model = model
        self.backbone = backbone
        self.codec = codec
        self.device = next(model.parameters()).device
        self.bf16 = multiplies_bf16_fast(self.device) if bf16 is None else bf16
        self.synthesizer = UnitSynthesizer(codec, self.bf16)
        self._engine = engine

    @property
    def unit_engine(self) -> DecodeEngine:
        """The decode engine of all texts."""
        # Built when first needed, for it copies the decoder's weights.
        if self._engine is None:
            self._engine = unit_engine_of(self.model, self.bf16)
        return self._engine

    @torch.no_grad()
    def synthesize(self, texts: Sequence[str]) -> list[Answer]:
        """Synthesize texts in one batch.

        Args:
            texts: typed texts; an empty one gives an answer without samples.

        Returns:
            an answer for each text, with samples [T] at the codec's rate.

        Raises:
            SignalError: a text is too long for the unit decoder.
        """
        if not texts:
            return []
        clock = Clock(self.device)
        ids = [tuple(self.backbone.tokenize(text)) for text in texts]
        unit_tokens = self._generate_unit_tokens(ids, clock)
        units, samples = self.synthesizer.synthesize(unit_tokens, clock)
        return [
            Answer(
                text,
                token_ids=row_ids,
                units=row_units,
                codebooks=self.codec.codebooks,
                samples=row_samples,
                rate_hz=self.codec.rate_hz,
                timings_s=clock.seconds,
                batch=len(texts),
                cut=cut_of(False, tokens.is_cut),
            )
            for text, row_ids, tokens, row_units, row_samples in zip(
                texts, ids, unit_tokens, units, samples
            )
        ]

    @torch.no_grad()
    def stream(self, text: str) -> Iterator[Tensor]:
        """Synthesize a text chunk by chunk, in segments that end where a voice pauses.

        Args:
            text: of any length.

        Yields:
            samples [T] at the codec's rate, float32 on the CPU.

        Raises:
            SignalError: the unit decoder's scores are NaN or infinite.
        """
        engine, codec = self.unit_engine, self.codec
        parts = SpeechParts(self.model, engine, codec, self.bf16, codec.streams)
        speech, rows = SpeechStream(parts, Milestones()), self._segments(text)
        try:
            while not speech.is_complete:
                # The next segment beside one that speaks already: the first chunk waits for none.
                if speech.open_segments < (2 if speech.samples else 1):
                    self._add_next(speech, rows)
                for _ in range(UNIT_STEPS):
                    engine.advance()
                if (samples := speech.next_samples()) is not None:
                    yield samples
        finally:
            speech.cancel()

    def _segments(self, text: str) -> Iterator[list[int]]:
        """The token ids of each segment of a text, found as they are asked for."""
        ids = self.backbone.tokenize(text)
        nothing = torch.zeros(len(ids), 0)  # of hidden states, which a pause needs none of
        cutting = PauseCutting(PauseRule())
        for segment in segments_of(cutting, ids, nothing, self._text_of):
            yield ids[segment.start : segment.end]

    def _text_of(self, ids: Sequence[int]) -> str:
        return self.backbone.detokenize(list(ids))

    def _add_next(self, speech: SpeechStream, rows: Iterator[list[int]]) -> None:
        """Begin the next segment of a text, if there is one."""
        row = next(rows, None)
        if row is None:
            speech.finish()
            return
        ids = torch.tensor([row], device=self.device)
        lengths = torch.tensor([len(row)], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            requests = self.model.requests(ids, lengths, MAX_STEPS, self.unit_engine.steps)
        for request in requests.values():
            speech.add(request)

    def _generate_unit_tokens(self, ids: list[tuple[int, ...]], clock: Clock) -> list[UnitTokens]:
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with clock.part("units"), autocast:
            padded_ids = padded(ids, 0).to(self.device)
            lengths = torch.tensor([len(row) for row in ids], device=self.device)
            return self.model.speak(padded_ids, lengths, MAX_STEPS, self.unit_engine)


def unit_engine_of(model: T2CModel, bf16: bool) -> DecodeEngine:
    """Build a T2C model's decode engine, in bfloat16 where the models run in it."""
    # An engine takes its precision from autocast as it is when the engine is built.
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bf16):
        return unit_decode_engine(model.decoder)
