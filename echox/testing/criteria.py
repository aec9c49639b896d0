"""The contract of a criterion; see `echox.criteria.base.Criterion`.

A criterion is tested on made-up outputs of the type that its `forward` is annotated with. Those of echox are in `EXAMPLES`; a criterion
that reads a type of its own says how one is made up:

    from echox.testing.criteria import EXAMPLES

    EXAMPLES[MyOutputs] = my_outputs  # (seed, rows) -> (MyOutputs, Batch)
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable

import torch
from torch import Tensor

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
    VoicedOutputs,
)
from echox.kernels.codec_head_loss import CodecHead
from echox.signals import Batch, Loss, Outputs
from echox.testing import survives_a_checkpoint
from echox.vocoders.discriminators import Discriminators, DiscriminatorSizes

TOLERANCE = 1e-4
# A bfloat16 has eight bits of mantissa.
BF16_TOLERANCE = 0.02

ROWS, FRAMES, WORDS, CHOICES, WIDTH, SAMPLES = 3, 9, 3, 7, 5, 2048

Example = Callable[[int, int], tuple[Outputs, Batch]]
"""(seed, rows) -> outputs of a forward pass over `rows` rows, and their batch; no row at all means no target."""


def alignment_example(seed: int, rows: int) -> tuple[AlignmentOutputs, Batch]:
    return AlignmentOutputs(**_alignment(_seeded(seed), rows)), _batch(rows, WORDS)


def speech_text_example(seed: int, rows: int) -> tuple[SpeechTextOutputs, Batch]:
    generator = _seeded(seed)
    return SpeechTextOutputs(**_alignment(generator, rows), **_labelled(generator, "text", rows)), _batch(rows, WORDS)


def unit_example(seed: int, rows: int) -> tuple[UnitOutputs, Batch]:
    return UnitOutputs(**_unit_states(_seeded(seed), rows)), _batch(rows, WORDS)


def echo_example(seed: int, rows: int) -> tuple[EchoOutputs, Batch]:
    generator = _seeded(seed)
    vectors = {name: torch.randn(rows * WORDS, WIDTH, generator=generator) for name in ("denoised", "text_vectors")}
    return EchoOutputs(**_unit_states(generator, rows), **vectors, **_labelled(generator, "text", rows)), _batch(rows, WORDS)


def voiced_example(seed: int, rows: int) -> tuple[VoicedOutputs, Batch]:
    generator = _seeded(seed)
    distances = torch.rand(rows, generator=generator)
    return VoicedOutputs(**_unit_states(generator, rows), distances=distances, **_labelled(generator, "text", rows)), _batch(rows, WORDS)


def joint_example(seed: int, rows: int) -> tuple[JointOutputs, Batch]:
    generator = _seeded(seed)
    voice = {**_unit_states(generator, rows), "distances": torch.rand(rows, generator=generator)}
    return JointOutputs(**_alignment(generator, rows), **_labelled(generator, "text", rows), **voice), _batch(rows, WORDS)


def vocoder_example(seed: int, rows: int) -> tuple[VocoderOutputs, Batch]:
    generator = _seeded(seed)
    real, made = (0.3 * torch.randn(rows, SAMPLES, generator=generator) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        judges = Discriminators(DiscriminatorSizes(periods=[3], period_channels=[4, 4], scales=1, scale_channels=[16] * 7))
    log_frames, frames = torch.randn(rows, WORDS, generator=generator), torch.randint(1, 5, (rows, WORDS), generator=generator)
    return VocoderOutputs(real, made, log_frames, frames, judges.requires_grad_(False).eval(), 16_000), _batch(rows, 1)


EXAMPLES: dict[type[Outputs], Example] = {
    AlignmentOutputs: alignment_example,
    SpeechTextOutputs: speech_text_example,
    UnitOutputs: unit_example,
    EchoOutputs: echo_example,
    VoicedOutputs: voiced_example,
    JointOutputs: joint_example,
    VocoderOutputs: vocoder_example,
}


def it_says_what_it_reads(config: CriterionConfig) -> None:
    assert _example_for(config) is not None, (
        f"{type(_build(config)).__name__}.forward must annotate `outputs` with the type it reads, and echox.testing.criteria.EXAMPLES "
        f"must hold a way to make one up; known are {', '.join(known.__name__ for known in EXAMPLES)}"
    )


def it_owns_no_weight(config: CriterionConfig) -> None:
    owned = [name for name, _ in _build(config).named_parameters()]
    assert not owned, f"a criterion owns no trained weight, for no optimiser or checkpoint would see {', '.join(owned)}"


def the_loss_is_a_sum_with_its_count(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    loss = _build(config)(outputs, batch)
    assert isinstance(loss, Loss), f"forward must return a Loss, not {type(loss).__name__}"
    assert loss.total.shape == () and loss.total.dtype == torch.float32, (
        f"total must be one float32, not {list(loss.total.shape)} {loss.total.dtype}"
    )
    assert bool(loss.total.isfinite()), f"the loss of finite outputs is {float(loss.total)}"
    assert loss.count == batch.count, f"count must be the batch's {batch.count}, not {loss.count}"


def twice_the_batch_is_twice_the_loss(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    once = criterion(outputs, batch)
    twice = criterion(_joined(outputs, outputs), Batch(batch.row_ids * 2, batch.count * 2))
    torch.testing.assert_close(
        twice.total,
        2 * once.total,
        atol=TOLERANCE,
        rtol=TOLERANCE,
        msg=lambda text: (
            f"total must be a sum over the batch's targets, so that micro-batches and ranks add up; a batch said twice gave {text}"
        ),
    )
    for name, (total, count) in once.parts.items():
        doubled, doubled_count = twice.parts[name]
        fits = abs(float(doubled) - 2 * float(total)) <= TOLERANCE * max(1.0, abs(float(doubled))) and float(doubled_count) == 2 * float(
            count
        )
        assert fits, (
            f"part {name!r} must be (sum, count); a batch said twice gave "
            f"{float(doubled)}/{float(doubled_count)} after {float(total)}/{float(count)}"
        )


def gradients_flow(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    floats = {field: value.requires_grad_() for field, value in _tensors(outputs).items() if value.is_floating_point()}
    _build(config)(outputs, batch).total.backward()
    reached = {field: value.grad for field, value in floats.items() if value.grad is not None}
    assert any(bool(grad.abs().sum() > 0) for grad in reached.values()), f"no gradient reaches any of {', '.join(floats)}"
    broken = [field for field, grad in reached.items() if not bool(grad.isfinite().all())]
    assert not broken, f"the gradient of {', '.join(broken)} is not finite"


def parts_are_for_reading(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    for value in _tensors(outputs).values():
        if value.is_floating_point():
            value.requires_grad_()
    for name, (total, count) in _build(config)(outputs, batch).parts.items():
        assert not total.requires_grad and not count.requires_grad, f"part {name!r} must be detached, or every step keeps its graph"
        assert float(count) > 0, f"part {name!r} has count {float(count)} on a batch with targets"


def the_same_batch_costs_the_same(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    before = {field: value.clone() for field, value in _tensors(outputs).items()}
    assert torch.equal(criterion(outputs, batch).total, criterion(outputs, batch).total), "the same batch gave two losses"
    changed = [field for field, value in _tensors(outputs).items() if not torch.equal(value, before[field])]
    assert not changed, f"the criterion wrote into {', '.join(changed)}"


def padding_costs_nothing(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    if not isinstance(outputs, AlignmentOutputs):
        return
    past = torch.arange(FRAMES)[None, :, None] >= outputs.frame_lengths[:, None, None]
    behind = torch.arange(WORDS)[None] >= outputs.target_lengths[:, None]
    other = dataclasses.replace(
        outputs,
        ctc_logits=torch.where(past, 50.0 * torch.randn(outputs.ctc_logits.shape, generator=_seeded(5)), outputs.ctc_logits),
        targets=torch.where(behind, CHOICES - 2, outputs.targets),
    )
    criterion = _build(config)
    torch.testing.assert_close(
        criterion(other, batch).total, criterion(outputs, batch).total, msg=lambda text: f"padding changed the loss: {text}"
    )


def half_precision_is_taken(config: CriterionConfig) -> None:
    outputs, batch = _example(config, ROWS)
    criterion = _build(config)
    halved = dataclasses.replace(
        outputs, **{field: value.bfloat16() for field, value in _tensors(outputs).items() if value.is_floating_point()}
    )
    full, half = criterion(outputs, batch).total, criterion(halved, batch).total
    assert half.dtype == torch.float32, f"the loss of bfloat16 outputs must be float32, not {half.dtype}"
    assert abs(float(half - full)) <= BF16_TOLERANCE * max(1.0, abs(float(full))), (
        f"bfloat16 outputs gave {float(half)}, float32 ones {float(full)}"
    )


def nothing_to_learn_costs_nothing(config: CriterionConfig) -> None:
    outputs, batch = _example(config, 0)
    floats = [value.requires_grad_() for value in _tensors(outputs).values() if value.is_floating_point()]
    loss = _build(config)(outputs, batch)
    cost = float(loss.total.detach())
    assert cost == 0.0, f"a batch without any target must cost 0, not {cost}"
    if loss.total.requires_grad:
        loss.total.backward()
        assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in floats), (
            "a batch without any target gave gradients that are not finite"
        )


def config_survives_a_checkpoint(config: CriterionConfig) -> None:
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
    half_precision_is_taken,
    nothing_to_learn_costs_nothing,
    config_survives_a_checkpoint,
)


def _build(config: CriterionConfig) -> Criterion:
    return CRITERIA.build(config)


def _example_for(config: CriterionConfig) -> Example | None:
    hints = typing.get_type_hints(CRITERIA.entry_of(config).implementation.forward)
    return EXAMPLES.get(hints.get("outputs"))


def _example(config: CriterionConfig, rows: int) -> tuple[Outputs, Batch]:
    example = _example_for(config)
    assert example is not None, "it reads outputs of an unknown type, see it_says_what_it_reads"
    return example(1, rows)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(rows: int, targets: int) -> Batch:
    return Batch(tuple(f"row-{number}" for number in range(rows)), max(1, rows * targets))


def _alignment(generator: torch.Generator, rows: int) -> dict[str, Tensor]:
    """Clips with words; for no rows, one clip of which nothing is known."""
    clips = max(1, rows)
    return {
        "ctc_logits": torch.randn(clips, FRAMES, CHOICES, generator=generator),
        "frame_lengths": torch.arange(FRAMES, FRAMES - clips, -1),
        "targets": torch.randint(0, CHOICES - 1, (clips, WORDS), generator=generator),
        "target_lengths": torch.tensor([WORDS - number % 2 for number in range(clips)]) * (rows > 0),
    }


def _labelled(generator: torch.Generator, name: str, rows: int) -> dict[str, Tensor]:
    return {
        f"{name}_logits": torch.randn(rows * WORDS, CHOICES, generator=generator),
        f"{name}_labels": torch.randint(0, CHOICES, (rows * WORDS,), generator=generator),
    }


def _unit_states(generator: torch.Generator, rows: int) -> dict[str, Tensor | CodecHead]:
    head = CodecHead(WIDTH, CHOICES).requires_grad_(False)
    head.weight.copy_(torch.randn(CHOICES, WIDTH, generator=_seeded(2)))
    return {
        "unit_states": torch.randn(rows * WORDS, WIDTH, generator=generator),
        "unit_labels": torch.randint(0, CHOICES, (rows * WORDS,), generator=generator),
        "unit_head": head,
    }


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    values = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _joined(first: Outputs, second: Outputs) -> Outputs:
    pairs = _tensors(second)
    return dataclasses.replace(first, **{name: torch.cat([value, pairs[name]]) for name, value in _tensors(first).items()})
