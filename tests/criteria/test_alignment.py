"""CTC losses: clips that cannot be aligned have none."""

import dataclasses

import torch
import torch.nn.functional as F

from echox.core.signals import Batch
from echox.criteria.alignment import AlignmentConfig, AlignmentCriterion, ctc_losses
from echox.criteria.base import AlignmentOutputs, SpelledOutputs


def outputs(logits, frames, targets, lengths):
    return AlignmentOutputs(
        logits, torch.tensor(frames), torch.tensor(targets), torch.tensor(lengths)
    )


def test_losses_equal_torch_s_for_each_clip_alone():
    torch.manual_seed(0)
    batch = outputs(
        torch.randn(3, 14, 8), [14, 9, 5], [[1, 1, 2, 5], [3, 2, 3, 0], [4, 0, 0, 0]], [4, 3, 1]
    )
    for row, loss in enumerate(ctc_losses(batch)):
        frames, tokens = int(batch.frame_lengths[row]), int(batch.target_lengths[row])
        log_probs = batch.ctc_logits[row, :frames].log_softmax(-1)
        assert torch.allclose(
            loss,
            F.ctc_loss(
                log_probs,
                batch.targets[row, :tokens],
                (frames,),
                (tokens,),
                blank=7,
                reduction="none",
            ),
            atol=1e-4,
        )


def test_clips_without_targets_or_too_short_for_them_have_no_loss():
    logits = torch.randn(3, 3, 6, requires_grad=True)
    losses = ctc_losses(outputs(logits, [3, 3, 2], [[0, 0, 0], [1, 2, 3], [1, 1, 0]], [0, 3, 2]))
    assert losses[0] == 0 and losses[1] > 0 and losses[2] == 0  # two equal tokens need three frames
    losses.sum().backward()
    assert (
        torch.isfinite(logits.grad).all()
        and logits.grad[0].eq(0).all()
        and logits.grad[2].eq(0).all()
    )


def test_silent_clips_are_trained_to_be_blank():
    logits = torch.randn(2, 4, 6, requires_grad=True)
    silent = dataclasses.replace(
        outputs(logits, [4, 3], [[1, 2], [0, 0]], [2, 0]), silent=torch.tensor([False, True])
    )
    losses = ctc_losses(silent)
    assert torch.allclose(losses[1], -logits[1, :3].log_softmax(-1)[:, 5].sum())
    assert AlignmentCriterion(AlignmentConfig())(silent, Batch(("a", "b"), 2)).total == losses.sum()
    losses[1].backward()
    assert logits.grad[1, :3, 5].lt(0).all() and logits.grad[1, 3].eq(0).all()


def test_the_loss_is_summed_over_tokens():
    loss = AlignmentCriterion(AlignmentConfig())(
        outputs(torch.randn(2, 6, 5), [6, 6], [[1, 2], [3, 0]], [2, 1]), Batch(("a", "b"), 3)
    )
    assert torch.allclose(loss.total, loss.parts["ctc"][0]) and loss.parts["ctc"][1] == 3


def test_the_spelling_is_weighted_and_can_be_left_out():
    tokens, spelling = (
        outputs(torch.randn(1, 6, 5), [6], [[1, 2]], [2]),
        outputs(torch.randn(1, 12, 9), [12], [[3, 4, 5]], [3]),
    )
    both = SpelledOutputs(
        tokens.ctc_logits, tokens.frame_lengths, tokens.targets, tokens.target_lengths, spelling
    )
    tokens_only, weighted = (
        AlignmentCriterion(AlignmentConfig(spelling_weight=weight))(both, Batch(("a",), 2))
        for weight in (0.0, 0.5)
    )
    assert torch.allclose(weighted.total - tokens_only.total, 0.5 * ctc_losses(spelling).sum())
    assert weighted.parts["spelling"][1] == 3 and "spelling" not in tokens_only.parts
