"""The contract of a criterion; see `echox.criteria.base.Criterion`.

A criterion is tested on random outputs of the type that its `forward` is annotated with. Those of
echox are in `EXAMPLES`; another type has a class method that returns an example:

    class MyOutputs(Outputs):
        @classmethod
        def example(cls, seed: int, rows: int) -> tuple[MyOutputs, Batch]: ...
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from echox.core.signals import Batch, Loss, Outputs
from echox.criteria.base import (
    CRITERIA,
    AlignmentOutputs,
    Criterion,
    CriterionConfig,
    EchoOutputs,
    JointOutputs,
    SpeechTextOutputs,
    UnitOutputs,
    VocoderOutputs,
)
from echox.kernels.codec_head_loss import CodecHead
from echox.testing.rules import differing, survives_a_checkpoint
from echox.vocoders.discriminators import Discriminators, DiscriminatorSizes

TOLERANCE = 1e-4
# A bfloat16 has a precision of eight bits, so values are rounded by up to 0.4 %.
BF16_TOLERANCE = 0.02

ROWS, FRAMES, WORDS, CHOICES, WIDTH, SAMPLES = 3, 9, 3, 7, 5, 2048
CODEBOOKS, NO_TARGET = 2, -100

Example = Callable[[int, int], tuple[Outputs, Batch]]
"""(seed, rows) -> outputs of a forward pass over `rows` rows, and their batch; 0 is no target."""


def alignment_example(seed: int, rows: int) -> tuple[AlignmentOutputs, Batch]:
    """Return CTC logits [B, F, V] and targets [B, S] of random clips, and their batch."""
    return AlignmentOutputs(**_alignment(_seeded(seed), rows)), _batch(rows, WORDS)


def speech_text_example(seed: int, rows: int) -> tuple[SpeechTextOutputs, Batch]:
    """Return CTC and text outputs, with text logits [N, V], and their batch."""
    generator = _seeded(seed)
    values = {**_alignment(generator, rows), **_labelled(generator, "text", rows)}
    return SpeechTextOutputs(**values), _batch(rows, WORDS)


def unit_example(seed: int, rows: int) -> tuple[UnitOutputs, Batch]:
    """Return unit states [N, H] with their labels and head, and their batch."""
    return UnitOutputs(**_unit_states(_seeded(seed), rows)), _batch(rows, WORDS)


def echo_example(seed: int, rows: int) -> tuple[EchoOutputs, Batch]:
    """Return unit and text outputs with denoised vectors [N, H], and their batch."""
    generator = _seeded(seed)
    values = {**_unit_states(generator, rows), **_denoised(generator, rows)}
    return EchoOutputs(**values, **_labelled(generator, "text", rows)), _batch(rows, WORDS)


def joint_example(seed: int, rows: int) -> tuple[JointOutputs, Batch]:
    """Return the outputs of joint training on CTC, text and units, and their batch."""
    generator = _seeded(seed)
    values = {**_unit_states(generator, rows), **_denoised(generator, rows)}
    values |= {**_alignment(generator, rows), **_labelled(generator, "text", rows)}
    return JointOutputs(**values, sample_lengths=torch.full((rows,), WORDS)), _batch(rows, WORDS)


def vocoder_example(seed: int, rows: int) -> tuple[VocoderOutputs, Batch]:
    """Return real and synthesized samples [B, T] at 16 kHz, and their batch."""
    generator = _seeded(seed)
    real, synthesized = (0.3 * torch.randn(rows, SAMPLES, generator=generator) for _ in range(2))
    discriminators = _small_discriminators()
    log_frames = torch.randn(rows, WORDS, generator=generator)  # predicted durations [B, U]
    frames = torch.randint(1, 5, (rows, WORDS), generator=generator)  # [B, U]
    outputs = VocoderOutputs(real, synthesized, log_frames, frames, discriminators, 16_000)
    return outputs, _batch(rows, 1)


def _small_discriminators() -> Discriminators:
    sizes = DiscriminatorSizes(
        periods=[3], period_channels=[4, 4], scales=1, scale_channels=[16] * 7
    )
    # Equal in every example, and without an effect on the random state of the test.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        discriminators = Discriminators(sizes)
    return discriminators.requires_grad_(False).eval()


EXAMPLES: dict[type[Outputs], Example] = {
    AlignmentOutputs: alignment_example,
    SpeechTextOutputs: speech_text_example,
    UnitOutputs: unit_example,
    EchoOutputs: echo_example,
    JointOutputs: joint_example,
    VocoderOutputs: vocoder_example,
}


def it_says_what_it_reads(config: CriterionConfig) -> None:
    """Check that `forward` annotates `outputs` with a type that has an example.

    Raises:
        AssertionError: it does not.
    """
    assert _example_for(config) is not None, (
        f"{type(_build(config)).__name__}.forward must annotate `outputs` with the type it reads: "
        f"one of {', '.join(outputs.__name__ for outputs in EXAMPLES)}, "
        "or one with a class method `example` that makes one up"
    )


def it_owns_no_weight(config: CriterionConfig) -> None:
    """Check that the criterion has no trained weight.

    Raises:
        AssertionError: it has parameters.
    """
    names = [name for name, _ in _build(config).named_parameters()]
    assert not names, (
        "a criterion owns no trained weight, "
        f"for no optimiser or checkpoint would see {', '.join(names)}"
    )


def the_loss_is_a_sum_with_its_count(config: CriterionConfig) -> None:
    """Check that the loss is one float32 with the batch's count of targets.

    Raises:
        AssertionError: it is of another type, shape or dtype, not finite, or has another count.
    """
    outputs, batch = _example(config, ROWS)
    # float32, since the sum over a batch of targets exceeds what bfloat16 can count.
    loss = _build(config)(outputs, batch)
    assert isinstance(loss, Loss), f"forward must return a Loss, not {type(loss).__name__}"
    assert loss.total.shape == () and loss.total.dtype == torch.float32, (
        f"total must be one float32, not {list(loss.total.shape)} {loss.total.dtype}"
    )
    assert bool(loss.total.isfinite()), f"the loss of finite outputs is {float(loss.total)}"
    assert loss.count == batch.count, f"count must be the batch's {batch.count}, not {loss.count}"


def twice_the_batch_is_twice_the_loss(config: CriterionConfig) -> None:
    """Check that losses of micro-batches and of ranks add up.

    Raises:
        AssertionError: a batch joined with itself has not twice the loss, or a part has not twice
            its sum and its count.
    """
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    once = criterion(outputs, batch)
    # A loss that is averaged by itself would stay as it is.
    twice = criterion(_joined(outputs, outputs), Batch(batch.row_ids * 2, batch.count * 2))
    torch.testing.assert_close(
        twice.total,
        2 * once.total,
        atol=TOLERANCE,
        rtol=TOLERANCE,
        msg=lambda text: (
            "total must be a sum over the batch's targets, so that micro-batches and ranks add up; "
            f"a batch given twice gave {text}"
        ),
    )
    for name, (total, count) in once.parts.items():
        double, double_count = map(float, twice.parts[name])
        is_close = abs(double - 2 * float(total)) <= TOLERANCE * max(1.0, abs(double))
        assert is_close and double_count == 2 * float(count), (
            f"part {name!r} must be (sum, count); a batch given twice gave "
            f"{double}/{double_count} after {float(total)}/{float(count)}"
        )


def gradients_flow(config: CriterionConfig) -> None:
    """Check that a gradient reaches the outputs.

    Raises:
        AssertionError: there is none, or it is not finite.
    """
    outputs, batch = _example(config, ROWS)
    floats = {name: value.requires_grad_() for name, value in _floats(outputs).items()}
    _build(config)(outputs, batch).total.backward()
    # A criterion may leave some of its outputs out.
    gradients = {name: value.grad for name, value in floats.items() if value.grad is not None}
    assert any(bool(grad.abs().sum() > 0) for grad in gradients.values()), (
        f"no gradient reaches any of {', '.join(floats)}"
    )
    broken = [name for name, grad in gradients.items() if not bool(grad.isfinite().all())]
    assert not broken, f"the gradient of {', '.join(broken)} is not finite"


def parts_are_for_reading(config: CriterionConfig) -> None:
    """Check that the parts of a loss are detached and have targets.

    Raises:
        AssertionError: a part keeps the graph, or has a count of 0.
    """
    outputs, batch = _example(config, ROWS)
    for value in _floats(outputs).values():
        value.requires_grad_()
    for name, (total, count) in _build(config)(outputs, batch).parts.items():
        assert not total.requires_grad and not count.requires_grad, (
            f"part {name!r} must be detached, or every step keeps its graph"
        )
        # Means are computed as sum / count.
        assert float(count) > 0, f"part {name!r} has count {float(count)} on a batch with targets"


def the_same_batch_costs_the_same(config: CriterionConfig) -> None:
    """Check that the loss depends on its arguments alone, and leaves them as they are.

    Raises:
        AssertionError: a second loss differs, or an output was changed in place.
    """
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    before = {name: value.clone() for name, value in _tensors(outputs).items()}
    assert torch.equal(criterion(outputs, batch).total, criterion(outputs, batch).total), (
        "the same batch gave two losses"
    )
    changed = differing(_tensors(outputs), before)
    assert not changed, f"the criterion wrote into {', '.join(changed)}"


def padding_costs_nothing(config: CriterionConfig) -> None:
    """Check that neither padded frames nor padded targets change a CTC loss.

    Raises:
        AssertionError: the loss differs.
    """
    outputs, batch = _example(config, ROWS)
    # All other outputs hold real positions alone.
    if not isinstance(outputs, AlignmentOutputs):
        return
    # [B, F, 1] and [B, S], True in the padding
    no_frame = torch.arange(FRAMES)[None, :, None] >= outputs.frame_lengths[:, None, None]
    no_target = torch.arange(WORDS)[None] >= outputs.target_lengths[:, None]
    # Large, so that a frame of the padding would win against any real one.
    noise = 50.0 * torch.randn(outputs.ctc_logits.shape, generator=_seeded(5))
    other = dataclasses.replace(
        outputs,
        ctc_logits=torch.where(no_frame, noise, outputs.ctc_logits),
        targets=torch.where(no_target, CHOICES - 2, outputs.targets),
    )
    criterion = _build(config)
    torch.testing.assert_close(
        criterion(other, batch).total,
        criterion(outputs, batch).total,
        msg=lambda text: f"padding changed the loss: {text}",
    )


def every_codebook_counts(config: CriterionConfig) -> None:
    """Check that units of several codebooks [N, K] are all learned, where there is a target.

    Raises:
        AssertionError: a codebook has no effect, or a position without targets has a gradient.
    """
    outputs, batch = _example(config, ROWS)
    # All other outputs have no units, or one codebook.
    if not isinstance(outputs, UnitOutputs | EchoOutputs):
        return
    criterion, outputs = _build(config), _with_codebooks(outputs)
    states = outputs.unit_states.requires_grad_()
    total = criterion(outputs, batch).total
    total.backward()
    assert bool(total.isfinite()) and states.grad is not None, (
        f"the loss of {CODEBOOKS} codebooks is {float(total)}, or has no gradient"
    )
    learned = states.grad.abs().sum(1) > 0  # [N]
    assert not bool(learned[0]), "a position without a target in any codebook has a gradient"
    assert bool(learned[1:].all()), "a position with targets has no gradient"
    for codebook in range(CODEBOOKS):
        labels = outputs.unit_labels.clone()
        labels[1:, codebook] = (labels[1:, codebook] + 1) % CHOICES
        other = criterion(dataclasses.replace(outputs, unit_labels=labels), batch).total
        assert not torch.equal(other, total), (
            f"other targets of codebook {codebook + 1} of {CODEBOOKS} have the same loss"
        )


def half_precision_is_taken(config: CriterionConfig) -> None:
    """Check that bfloat16 outputs give a float32 loss.

    Raises:
        AssertionError: the loss is of another dtype, or differs by more than `BF16_TOLERANCE`.
    """
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    rounded = {name: value.bfloat16() for name, value in _floats(outputs).items()}
    full = criterion(outputs, batch).total
    half = criterion(dataclasses.replace(outputs, **rounded), batch).total
    assert half.dtype == torch.float32, (
        f"the loss of bfloat16 outputs must be float32, not {half.dtype}"
    )
    assert abs(float(half - full)) <= BF16_TOLERANCE * max(1.0, abs(float(full))), (
        f"bfloat16 outputs gave {float(half)}, float32 ones {float(full)}"
    )


def nothing_to_learn_costs_nothing(config: CriterionConfig) -> None:
    """Check that a batch without targets costs 0 and gives finite gradients.

    Raises:
        AssertionError: the loss is not 0, or a gradient is not finite.
    """
    outputs, batch = _example(config, 0)
    floats = [value.requires_grad_() for value in _floats(outputs).values()]
    loss = _build(config)(outputs, batch)
    cost = float(loss.total.detach())
    # A mean over no target would be NaN, and NaN gradients end a run.
    assert cost == 0.0, f"a batch without any target must cost 0, not {cost}"
    if loss.total.requires_grad:
        loss.total.backward()
        assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in floats), (
            "a batch without any target gave gradients that are not finite"
        )


def config_survives_a_checkpoint(config: CriterionConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(CRITERIA, config)


CHECKS = (
    it_says_what_it_reads,
    it_owns_no_weight,
    the_loss_is_a_sum_with_its_count,
    twice_the_batch_is_twice_the_loss,
    gradients_flow,
    parts_are_for_reading,
    the_same_batch_costs_the_same,
    padding_costs_nothing,
    every_codebook_counts,
    half_precision_is_taken,
    nothing_to_learn_costs_nothing,
    config_survives_a_checkpoint,
)


def _build(config: CriterionConfig) -> Criterion:
    return CRITERIA.build(config)


def _example_for(config: CriterionConfig) -> Example | None:
    """Return the function that makes an example of the outputs that a criterion reads, or None."""
    hints = typing.get_type_hints(CRITERIA.entry_of(config).implementation.forward)
    # By annotation, because the rule must know the type before it can call `forward`.
    outputs = hints.get("outputs")
    known = None if outputs is None else EXAMPLES.get(outputs)
    return known or getattr(outputs, "example", None)


def _example(config: CriterionConfig, rows: int) -> tuple[Outputs, Batch]:
    example = _example_for(config)
    assert example is not None, "it reads outputs of an unknown type, see it_says_what_it_reads"
    return example(1, rows)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(rows: int, targets: int) -> Batch:
    # At least 1, as `Batch.count` is a divisor.
    return Batch(tuple(f"row-{number}" for number in range(rows)), max(1, rows * targets))


def _alignment(generator: torch.Generator, rows: int) -> dict[str, Any]:
    """Return clips with CTC targets; for no rows, one clip without targets."""
    clips = max(1, rows)
    lengths = torch.tensor([WORDS - number % 2 for number in range(clips)])
    return {
        "ctc_logits": torch.randn(clips, FRAMES, CHOICES, generator=generator),
        # Of different length, so that there is padding to ignore.
        "frame_lengths": torch.arange(FRAMES, FRAMES - clips, -1),
        # Without the last id, which is the blank.
        "targets": torch.randint(0, CHOICES - 1, (clips, WORDS), generator=generator),
        "target_lengths": lengths * (rows > 0),
    }


def _labelled(generator: torch.Generator, name: str, rows: int) -> dict[str, Any]:
    return {
        f"{name}_logits": torch.randn(rows * WORDS, CHOICES, generator=generator),
        f"{name}_labels": torch.randint(0, CHOICES, (rows * WORDS,), generator=generator),
    }


def _unit_states(generator: torch.Generator, rows: int) -> dict[str, Any]:
    head = CodecHead(WIDTH, CHOICES).requires_grad_(False)
    # One head for all examples, because `_joined` keeps that of the first.
    head.weight.copy_(torch.randn(CHOICES, WIDTH, generator=_seeded(2)))
    return {
        "unit_states": torch.randn(rows * WORDS, WIDTH, generator=generator),
        "unit_labels": torch.randint(0, CHOICES, (rows * WORDS,), generator=generator),
        "unit_head": head,
    }


def _with_codebooks(outputs: UnitOutputs | EchoOutputs) -> UnitOutputs | EchoOutputs:
    """Return outputs with units of several codebooks, none at the first position."""
    N, generator = len(outputs.unit_states), _seeded(3)
    head = CodecHead(WIDTH, [CHOICES] * CODEBOOKS).requires_grad_(False)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    labels = torch.randint(0, CHOICES, (N, CODEBOOKS), generator=generator)
    labels[0] = NO_TARGET
    return dataclasses.replace(outputs, unit_labels=labels, unit_head=head)


def _denoised(generator: torch.Generator, rows: int) -> dict[str, Any]:
    return {
        name: torch.randn(rows * WORDS, WIDTH, generator=generator)
        for name in ("denoised", "text_vectors")
    }


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    values = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _floats(outputs: Outputs) -> dict[str, Tensor]:
    tensors = _tensors(outputs)
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


def _joined(first: Outputs, second: Outputs) -> Outputs:
    """Concatenate the tensors of two outputs along their first dimension."""
    others = _tensors(second)
    joined = {name: torch.cat([value, others[name]]) for name, value in _tensors(first).items()}
    return dataclasses.replace(first, **joined)
