"""Where speech may be cut while text goes on: a trigger score for each token, its peaks, and how long a segment has to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


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
