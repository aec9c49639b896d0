"""The speech of one answer or text, chunk by chunk, while its segments are decoded to units."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from echox.codecs.base import Codec, DecodeState
from echox.core.errors import SignalError
from echox.core.signals import Units
from echox.decoding import DecodeEngine, Request
from echox.inference.milestones import Milestones
from echox.models.echo import NOT_FINITE
from echox.models.unit_generation import UnitTokens

# Seconds of a chunk that the codec decodes: few until there is something to hear, so that speech
# begins early; then each is twice as long as the one before, because its context is decoded every
# time.
FIRST_S = 0.3
DOUBLINGS = 3
# Steps of the unit decoder for one of the language model, which is many times as large.
UNIT_STEPS = 16
EXPAND_EVERY = 8  # steps of a segment after which its units are looked at again


class UnitModel(Protocol):
    """What generates the unit tokens."""

    def unit_tokens_in(self, tokens: Tensor, *, ended: bool) -> UnitTokens:
        """Return the unit tokens that decoded tokens [T, K] stand for."""


@dataclass(frozen=True, slots=True)
class SpeechParts:
    """What the streams of one pipeline share."""

    model: UnitModel
    engine: DecodeEngine  # of that model
    codec: Codec
    bf16: bool  # the codec runs in it
    joins_segments: bool  # the codec decodes the units of all segments as one stream

    @property
    def first_chunk(self) -> int:
        """Units of the first chunk, frame after frame with several codebooks."""
        return max(1, round(FIRST_S * self.codec.unit_rate_hz)) * self.codec.codebooks


@dataclass(slots=True)
class _SegmentUnits:
    """The units of one segment, as far as they are decoded."""

    ticket: int
    tokens: list[Tensor] = field(default_factory=list)  # each [K]
    given: int = 0  # units that were passed on
    expand_from: int = 1  # tokens from which units are looked for again
    is_cut: bool = False  # whether their end is not there


class SpeechStream:
    """Turns the segments of one answer into samples.

    Attributes:
        has_begun: whether there was a segment.
        units: of all segments so far.
        samples: how many were given.
        is_cut: whether the limit cut a segment.
        is_complete: whether no samples follow.
    """

    def __init__(self, parts: SpeechParts, milestones: Milestones) -> None:
        """Begin without segments.

        Args:
            parts: that decode.
            milestones: take note of the first unit and the first samples.
        """
        self.units: list[int] = []
        self.samples = 0
        self.has_begun = self.is_cut = self.is_complete = False
        self._parts, self._milestones = parts, milestones
        self._segments: deque[_SegmentUnits] = deque()  # not finished, in order
        self._pending: list[int] = []  # units that the codec has not seen
        self._borders: deque[int] = deque()  # units before which the codec begins anew
        self._state: DecodeState | None = None
        self._chunks = 0  # from the first audible one on
        self._has_all = False  # no segment follows

    @property
    def open_segments(self) -> int:
        """How many segments are being decoded to units."""
        return len(self._segments)

    def add(self, request: Request) -> None:
        """Begin to decode the next segment.

        Raises:
            SignalError: it is too long for the unit decoder.
        """
        self.has_begun = True
        self._milestones.mark("first_segment")
        self._segments.append(_SegmentUnits(self._parts.engine.add(request)))

    def finish(self) -> None:
        """Take note that no segment follows."""
        self._has_all = True

    def cancel(self) -> None:
        """Free what the segments hold."""
        self._parts.engine.cancel([segment.ticket for segment in self._segments])
        self._segments.clear()

    def next_samples(self) -> Tensor | None:
        """Take what the engine has decoded, and decode a chunk of it.

        Returns:
            samples [T], float32 on the CPU; None if there are none yet.

        Raises:
            SignalError: the unit decoder's scores are NaN or infinite, or the codec refuses units.
        """
        self._take_units()
        # One chunk a call, so that it is played while the next one is made.
        chunk = self._next_chunk()
        if chunk is None or not len(samples := self._decode(*chunk)):
            return None
        self.samples += len(samples)
        self._milestones.play(samples, self._parts.codec.rate_hz)
        self._chunks += self._milestones.is_audible
        return samples

    def _take_units(self) -> None:
        """Take the units of the first segment that is not finished, and of those behind it."""
        while self._segments:
            segment = self._segments[0]
            progress = self._parts.engine.progress(segment.ticket, len(segment.tokens))
            segment.tokens += list(progress.tokens)
            if progress.failed:
                raise SignalError(NOT_FINITE.format("of this answer"))
            # Expanded only where a chunk may be complete: every expansion begins at the front.
            if progress.ended or len(segment.tokens) >= segment.expand_from:
                tokens = torch.stack(segment.tokens) if segment.tokens else progress.tokens
                self._expand(segment, tokens, progress.ended)
            if not progress.ended:
                return
            self.is_cut |= segment.is_cut
            self._segments.popleft()
            if not self._parts.joins_segments:
                self._borders.append(len(self.units))

    def _expand(self, segment: _SegmentUnits, tokens: Tensor, ended: bool) -> None:
        """Take the units that are new in the tokens [T, K] of a segment."""
        unit_tokens = self._parts.model.unit_tokens_in(tokens, ended=ended)
        segment.is_cut = unit_tokens.is_cut
        units = self._parts.codec.units_of(unit_tokens)
        self._pending += units[segment.given :]
        self.units += units[segment.given :]
        segment.given = len(units)
        segment.expand_from = len(segment.tokens) + EXPAND_EVERY
        if self.units:
            self._milestones.mark("first_unit")

    def _next_chunk(self) -> tuple[list[int], bool] | None:
        """Return the units that the codec decodes next, and whether its stream ends with them."""
        if self._borders:
            seen = len(self.units) - len(self._pending)
            return self._taken(self._borders.popleft() - seen), True
        size = self._parts.first_chunk * 2 ** min(self._chunks, DOUBLINGS)
        if not self._has_all or self._segments:
            return (self._taken(size), False) if len(self._pending) >= size else None
        if len(self._pending) > size:
            return self._taken(size), False
        self.is_complete = True
        # Also with nothing pending: the codec may hold samples back.
        is_open = bool(self._pending) or self._state is not None
        return (self._taken(size), True) if is_open else None

    def _taken(self, size: int) -> list[int]:
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    def _decode(self, units: list[int], last: bool) -> Tensor:
        """Decode a chunk of units to samples [T], float32 on the CPU."""
        codec, device = self._parts.codec, self._parts.engine.device
        rows = Units.of_rows([units], codec.codebooks, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._parts.bf16):
            wave, state = codec.decode_chunk(rows, self._state, last=last)
        self._state = None if last else state
        return wave.samples[0, : int(wave.lengths[0])].float().cpu()
