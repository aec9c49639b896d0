"""Splicing clips into prompts, against a loop over rows and tokens."""

import torch

from echox.models.speech_llm import AUDIO, PAD, splice


def spliced_by_loop(ids, embedded, vectors, lengths):
    clips, rows, starts = iter(range(len(lengths))), [], []
    for row_ids, row_vectors in zip(ids.tolist(), embedded):
        pieces, row_starts = [], []
        for token, vector in zip(row_ids, row_vectors):
            row_starts.append(sum(map(len, pieces)))
            if token == AUDIO:
                clip = next(clips)
                pieces.append(vectors[clip, : lengths[clip]])
            elif token != PAD:
                pieces.append(vector[None])
        rows.append(torch.cat(pieces))
        starts.append(row_starts)
    return rows, torch.tensor(starts)


def test_equals_the_loop_with_several_and_no_clips():
    torch.manual_seed(0)
    ids = torch.tensor([[1, AUDIO, 2, AUDIO, 3], [4, 5, PAD, PAD, PAD], [AUDIO, 6, 7, PAD, PAD]])
    embedded, vectors, lengths = torch.randn(3, 5, 8), torch.randn(3, 4, 8), torch.tensor([4, 1, 0])
    result = splice(ids, embedded, vectors, lengths, torch.tensor([0, 0, 2]))
    rows, starts = spliced_by_loop(ids, embedded, vectors, lengths)
    for row, expected in enumerate(rows):
        assert torch.equal(result.embeddings[row, : len(expected)], expected)
        assert result.mask[row].tolist() == [True] * len(expected) + [False] * (
            result.mask.shape[1] - len(expected)
        )
    assert torch.equal(result.positions[ids > 0], starts[ids > 0])


def test_gradients_reach_the_clips():
    vectors = torch.randn(1, 3, 4, requires_grad=True)
    splice(
        torch.tensor([[1, AUDIO]]),
        torch.randn(1, 2, 4),
        vectors,
        torch.tensor([2]),
        torch.tensor([0]),
    ).embeddings.sum().backward()
    assert vectors.grad[0, :2].eq(1).all() and vectors.grad[0, 2].eq(0).all()
