"""Segments of an answer that can be synthesized before the text is complete.

Each token has a trigger score; peaks of the score and a length rule decide the cuts. Training and
streaming cut with the same `Segmenter` under the same `SegmentsConfig`, so that streaming decodes
segments like those of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox.backbones.base import Backbone
from echox.core.config import refuse_below
from echox.core.errors import ConfigError
from echox.core.signals import Spans


@dataclass(kw_only=True, slots=True)
class SegmentRule:
    """When a score cuts; by default the paper's rule: a peak above the threshold.

    Raises:
        ConfigError: a number is out of range.
    """

    window: int = 5
    """Tokens on either side over which a score must be the largest; a cut is therefore known this
    many tokens late."""
    threshold: float = 0.2
    """Score that a peak must exceed; 0.2 is drawn in the paper's figure, the release has 0.1."""
    least: int = 0
    """Tokens a segment must have before the peak's own, for a peak above the threshold to cut
    it."""
    patience: int | None = None
    """Tokens before the peak's own from which any peak cuts; None never cuts below the
    threshold."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "window", "least", "patience")


# Source: github.com/FreedomIntelligence/EchoX, inference/echox_stream.py.
RELEASE_RULE = SegmentRule(threshold=0.1, least=20, patience=50)


@dataclass(kw_only=True, slots=True)
class SegmentsConfig:
    """How answers are cut into segments, each decoded to units by itself."""

    trigger: str = "."
    """Text of the token whose row in the language model's head is the trigger feature; in EchoX the
    full stop."""
    rule: SegmentRule = field(default_factory=SegmentRule)
    """When the likeness of a state to the trigger cuts; the defaults are the paper's."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of an answer that are decoded to units together."""

    start: int
    end: int  # exclusive
    known: int  # tokens there were when the segment was complete


@dataclass(slots=True)
class Segmenter:
    """Cuts an answer as its tokens come: push a score per token, then flush.

    Source: github.com/FreedomIntelligence/EchoX, inference/echox_stream.py; the paper's section on
    streaming.
    """

    rule: SegmentRule = field(default_factory=lambda: RELEASE_RULE)
    _scores: list[float] = field(default_factory=list)
    _start: int = 0

    def push(self, score: float) -> Segment | None:
        """Add a token's score.

        Returns:
            the segment that it completes, if any; a score that equals its neighbours' largest is a
            peak too.
        """
        self._scores.append(score)
        # The newest token with a full window behind it is the one that can be a peak now.
        peak = len(self._scores) - 1 - self.rule.window
        window_start = max(0, peak - self.rule.window)
        if peak < 0 or self._scores[peak] != max(self._scores[window_start:]):
            return None
        before = peak - self._start
        strong = self._scores[peak] > self.rule.threshold and before >= self.rule.least
        overdue = self.rule.patience is not None and before >= self.rule.patience
        # Never an empty segment, whatever the rule: ties may put a second peak before the last cut.
        return self._cut(peak + 1) if before >= 0 and (strong or overdue) else None

    def flush(self) -> Segment | None:
        """The last segment, at the end of the answer; None if nothing is left."""
        return self._cut(len(self._scores)) if self._start < len(self._scores) else None

    def _cut(self, end: int) -> Segment:
        segment = Segment(self._start, end, len(self._scores))
        self._start = end
        return segment


def segments(scores: Iterable[float], rule: SegmentRule = RELEASE_RULE) -> Iterator[Segment]:
    """The segments of a complete answer, from one score per token."""
    segmenter = Segmenter(rule)
    for score in scores:
        if (segment := segmenter.push(score)) is not None:
            yield segment
    if (rest := segmenter.flush()) is not None:
        yield rest


class Cutter:
    """Cuts answers by the likeness of their hidden states to the head's row of the trigger token.

    Source: EchoX (arXiv:2509.09174), trigger feature.
    """

    def __init__(self, config: SegmentsConfig, backbone: Backbone) -> None:
        """Look the trigger up in the language model's vocabulary.

        Raises:
            ConfigError: the trigger is not one token of this language model.
        """
        ids = backbone.tokenize(config.trigger)
        if len(ids) != 1:
            raise ConfigError(
                f"segments.trigger {config.trigger!r} is {len(ids)} tokens of this language "
                "model; name a text that is one, such as '.'"
            )
        self.rule = config.rule
        self.backbone = backbone
        self.token = ids[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """Trigger scores of hidden states [..., H]: cosine similarities [...], float32."""
        # In float32: in bfloat16 neighbouring scores would often be equal, and ties are peaks.
        # Read at every call: the head may be trained, or moved to another device.
        trigger = self.backbone.head_rows()[self.token].detach().float()
        return torch.nn.functional.cosine_similarity(hidden.float(), trigger, dim=-1)

    @torch.no_grad()
    def spans(self, hidden: Tensor, lengths: Tensor) -> Spans:
        """The segments of complete answers: hidden states [B, S, H], lengths [B] in tokens."""
        rows = zip(self.scores(hidden).tolist(), lengths.tolist())
        triples = [
            (row, segment.start, segment.end)
            for row, (scores, length) in enumerate(rows)
            for segment in segments(scores[:length], self.rule)
        ]
        return spans_of(triples, hidden.device)


def whole(lengths: Tensor) -> Spans:
    """Each answer as a single segment: lengths [B] in tokens."""
    rows = torch.arange(len(lengths), device=lengths.device)
    return Spans(rows, torch.zeros_like(lengths), lengths)


def spans_of(triples: list[tuple[int, int, int]], device: torch.device | str = "cpu") -> Spans:
    """Spans from (row, start, end) triples."""
    # Reshaped, for a tensor of no triples has one dimension only.
    table = torch.tensor(triples, dtype=torch.int64, device=device).reshape(-1, 3)
    return Spans(*table.unbind(1))


def cut(values: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """Segments as rows of their own.

    Args:
        values: [B, S, C].
        spans: G segments of the rows of `values`.

    Returns:
        segments [G, L, C], right-padded with values of their rows, and lengths [G] in positions.
    """
    lengths = spans.ends - spans.starts
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    positions = spans.starts[:, None] + torch.arange(longest, device=values.device)  # [G, L]
    # Clamped: the padding of a segment near the end would lie outside its row.
    positions = positions.clamp(max=values.shape[1] - 1)
    return values[spans.rows[:, None], positions], lengths
