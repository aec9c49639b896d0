"""Segments of answers: each a row of its own, in order, together the complete answer."""

import torch

from echox.models.segmenting import SegmentRule, cut, segments, spans_of, whole


def test_segments_become_rows_of_their_own():
    values = torch.arange(12.0).reshape(2, 6, 1)
    pieces, lengths = cut(values, spans_of([(0, 0, 2), (0, 2, 6), (1, 5, 6)]))
    assert lengths.tolist() == [2, 4, 1]
    assert [piece[:length, 0].tolist() for piece, length in zip(pieces, lengths)] == [
        [0, 1],
        [2, 3, 4, 5],
        [11],
    ]


def test_a_complete_answer_can_be_one_segment():
    values, lengths = torch.randn(3, 5, 2), torch.tensor([5, 0, 2])
    pieces, sizes = cut(values, whole(lengths))
    assert torch.equal(sizes, lengths) and torch.equal(pieces, values)
    pieces, sizes = cut(values, spans_of([]))
    assert pieces.shape[0] == len(sizes) == 0


def test_the_paper_cuts_at_a_peak_above_its_threshold():
    scores = [0.1] * 6 + [0.3] + [0.1] * 6 + [0.19] + [0.0] * 6
    cuts = [(each.start, each.end, each.known) for each in segments(scores, SegmentRule())]
    assert cuts == [(0, 7, 12), (7, 20, 20)]
