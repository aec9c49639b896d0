"""Where speech may be cut while text goes on: a trigger score for each token, its peaks, and how long a segment has to be.

Training and streaming cut with the same `Segmenter` under the same `SegmentsConfig`, so that streaming speaks what training has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox.backbones.base import Backbone
from echox.errors import ConfigError
from echox.signals import Spans


@dataclass(kw_only=True, slots=True)
class SegmentRule:
    """The defaults are the paper's: a peak above the threshold cuts."""

    window: int = 5
    """Tokens on either side over which a score must be the largest; a cut is therefore known this many tokens late."""
    threshold: float = 0.2
    """Score that a peak must exceed; 0.2 is drawn in the paper's figure, the release has 0.1."""
    least: int = 0
    """Tokens a segment must have before the peak's own, for a peak above the threshold to cut it."""
    patience: int | None = None
    """Tokens before the peak's own from which any peak cuts; None never cuts below the threshold."""


PAPER_RULE = SegmentRule()
RELEASE_RULE = SegmentRule(threshold=0.1, least=20, patience=50)


@dataclass(kw_only=True, slots=True)
class SegmentsConfig:
    """Answers cut into segments, each spoken by itself."""

    trigger: str = "."
    """Text of the token whose row in the language model's head is the trigger feature; in EchoX the full stop."""
    rule: SegmentRule = field(default_factory=SegmentRule)
    """When the likeness of a state to the trigger cuts; the defaults are the paper's."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that are spoken together."""

    start: int
    end: int  # exclusive
    known: int  # tokens there were when the segment was sent off


@dataclass(slots=True)
class Segmenter:
    """Cuts an answer as it comes: push a score per token, then flush.

    Source: github.com/FreedomIntelligence/EchoX, inference/echox_stream.py; the paper's section on streaming.
    """

    rule: SegmentRule = field(default_factory=lambda: RELEASE_RULE)
    _scores: list[float] = field(default_factory=list)
    _start: int = 0

    def push(self, score: float) -> Segment | None:
        """The segment that this token's score completes, if any. A score that equals its neighbours' largest is a peak too."""
        self._scores.append(score)
        at = len(self._scores) - 1 - self.rule.window
        if at < 0 or self._scores[at] != max(self._scores[max(0, at - self.rule.window) :]):
            return None
        before = at - self._start
        strong = self._scores[at] > self.rule.threshold and before >= self.rule.least
        overdue = self.rule.patience is not None and before >= self.rule.patience
        # A segment is never empty, whatever the rule: ties may put a second peak before the last cut.
        return self._cut(at + 1) if before >= 0 and (strong or overdue) else None

    def flush(self) -> Segment | None:
        """What is left at the end of the answer, if anything."""
        return self._cut(len(self._scores)) if self._start < len(self._scores) else None

    def _cut(self, end: int) -> Segment:
        segment = Segment(self._start, end, len(self._scores))
        self._start = end
        return segment


def segments(scores: Iterable[float], rule: SegmentRule = RELEASE_RULE) -> Iterator[Segment]:
    """The segments of a whole answer, from one score per token."""
    segmenter = Segmenter(rule)
    for score in scores:
        if (segment := segmenter.push(score)) is not None:
            yield segment
    if (rest := segmenter.flush()) is not None:
        yield rest


class Cutter:
    """Cuts answers by the likeness of their hidden states to the head's row of a token.

    Raises:
        ConfigError: the trigger is not one token of this language model.
    Source: EchoX (arXiv:2509.09174), trigger feature.
    """

    def __init__(self, config: SegmentsConfig, backbone: Backbone) -> None:
        ids = backbone.tokenize(config.trigger)
        if len(ids) != 1:
            raise ConfigError(f"segments.trigger {config.trigger!r} is {len(ids)} tokens of this language model; name a text that is one, such as '.'")
        self.rule = config.rule
        self.backbone = backbone
        self.token = ids[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """Likeness of hidden states [..., H] to the trigger, in [-1, 1]: [...] float32."""
        return torch.nn.functional.cosine_similarity(hidden.float(), self.backbone.head_rows()[self.token].detach().float(), dim=-1)

    @torch.no_grad()
    def spans(self, hidden: Tensor, lengths: Tensor) -> Spans:
        """The segments of whole answers: hidden [B, S, H], lengths [B]."""
        rows = [list(segments(row[:length], self.rule)) for row, length in zip(self.scores(hidden).tolist(), lengths.tolist())]
        found = [(row, cut.start, cut.end) for row, cuts in enumerate(rows) for cut in cuts]
        return spans_of(found, hidden.device)


def whole(lengths: Tensor) -> Spans:
    """Every answer as one segment: lengths [B]."""
    return Spans(torch.arange(len(lengths), device=lengths.device), torch.zeros_like(lengths), lengths)


def spans_of(found: list[tuple[int, int, int]], device: torch.device | str = "cpu") -> Spans:
    """Spans from (row, start, end) triples."""
    return Spans(*torch.tensor(found, dtype=torch.int64, device=device).reshape(-1, 3).unbind(1))


def cut(values: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """Segments as rows of their own: values [B, S, C] -> [G, L, C] right-padded, lengths [G]."""
    lengths = spans.ends - spans.starts
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    at = (spans.starts[:, None] + torch.arange(longest, device=values.device)).clamp(max=values.shape[1] - 1)
    return values[spans.rows[:, None], at], lengths
