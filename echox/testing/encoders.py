"""The contract of an encoder; see `echox.encoders.base.Encoder`."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.signals import EDGE_FRAMES, Features, Waveform
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.testing.rules import (
    has_a_stable_fingerprint,
    outline_has_the_shapes,
    survives_a_checkpoint,
)
from echox.testing.speech import noise, only_row, refuses_other_rates

# Batching and padding change the order of float32 sums, no more.
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


def attributes_are_stated(config: EncoderConfig) -> None:
    """Check that the encoder states its rates and its channels.

    Raises:
        AssertionError: an attribute is missing or not positive.
    """
    encoder = _build(config)
    for name in ("rate_hz", "frame_rate_hz", "dim"):
        value = getattr(encoder, name, None)
        assert isinstance(value, (int, float)) and value > 0, (
            f"{type(encoder).__name__}.{name} must be a positive number, not {value!r}"
        )


def shapes_and_lengths_fit(config: EncoderConfig) -> None:
    """Check that features are [B, F, D], with as many frames as the frame rate says.

    Raises:
        AssertionError: a shape, a rate or a dtype is wrong, or a length is off by more than
            `EDGE_FRAMES` frames.
    """
    encoder = _build(config)
    # One sample too, which is shorter than any window.
    lengths = [encoder.rate_hz, encoder.rate_hz // 2, 1]
    features = _encode(encoder, noise(encoder.rate_hz, lengths))
    B, F, D = features.values.shape
    assert (B, D) == (3, encoder.dim), (
        f"values must be [3, F, {encoder.dim}], not {list(features.values.shape)}"
    )
    assert features.rate_hz == encoder.frame_rate_hz, (
        f"Features.rate_hz is {features.rate_hz}, "
        f"the encoder's frame_rate_hz {encoder.frame_rate_hz}"
    )
    assert features.lengths.dtype == torch.int64 and features.lengths.shape == (3,), (
        "lengths must be int64 [B]"
    )
    assert int(features.lengths.max()) <= F, (
        f"a row claims {int(features.lengths.max())} frames of {F}"
    )
    # By rate and not by hop: not every encoder has one hop of whole samples.
    for samples, frames in zip(lengths, features.lengths.tolist()):
        expected = samples / encoder.rate_hz * encoder.frame_rate_hz
        assert abs(frames - expected) <= EDGE_FRAMES, (
            f"{samples} samples gave {frames} frames; "
            f"{encoder.frame_rate_hz} frames/s make about {expected:.1f}"
        )


def values_are_finite_floats(config: EncoderConfig) -> None:
    """Check that the features inside each row are finite floats.

    Raises:
        AssertionError: they are of another dtype, NaN or infinite.
    """
    encoder = _build(config)
    features = _encode(encoder, noise(encoder.rate_hz, [encoder.rate_hz, encoder.rate_hz // 3]))
    assert features.values.is_floating_point(), (
        f"values must be floats, not {features.values.dtype}"
    )
    for row in _rows(features):
        assert bool(row.isfinite().all()), "a frame inside a row's length is not finite"


def padding_and_neighbours_do_not_matter(config: EncoderConfig) -> None:
    """Check that a row has the same features alone and in a batch.

    Raises:
        AssertionError: they differ by more than the tolerances.
    """
    encoder = _build(config)
    wave = noise(encoder.rate_hz, [encoder.rate_hz // 2, encoder.rate_hz])
    together = _rows(_encode(encoder, wave))
    # The padding of the batch is NaN, and a row alone has none.
    for index in range(len(together)):
        (alone,) = _rows(_encode(encoder, only_row(wave, index)))
        torch.testing.assert_close(
            together[index],
            alone,
            atol=ABSOLUTE_TOLERANCE,
            rtol=RELATIVE_TOLERANCE,
            msg=lambda text: f"a row changed with its neighbours or its padding: {text}",
        )


def silence_and_nothing_are_taken(config: EncoderConfig) -> None:
    """Check that silence and a row without samples can be encoded.

    Raises:
        AssertionError: a value is not finite, or the empty row has frames.
    """
    encoder = _build(config)
    lengths = torch.tensor([encoder.rate_hz, 0])
    wave = Waveform(torch.zeros(2, encoder.rate_hz), lengths, encoder.rate_hz)
    features = _encode(encoder, wave)
    # A partly filled window at the edge may be counted.
    assert int(features.lengths[1]) <= EDGE_FRAMES, (
        f"a row without samples gave {int(features.lengths[1])} frames"
    )
    assert all(bool(row.isfinite().all()) for row in _rows(features)), (
        "silence gave values that are not finite"
    )


def other_rates_are_refused(config: EncoderConfig) -> None:
    """Check that audio of another rate is refused.

    Raises:
        AssertionError: it is encoded.
    """
    encoder = _build(config)
    refuses_other_rates(encoder, encoder.rate_hz)


def gradients_reach_or_it_is_frozen(config: EncoderConfig) -> None:
    """Check that gradients reach every trained parameter, and no frozen encoder.

    Raises:
        AssertionError: a trained parameter has no gradient, or a frozen encoder keeps a graph.
    """
    encoder = _build(config).train()
    named = encoder.named_parameters()
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    # Without `no_grad`: a frozen encoder must not keep its activations by itself.
    features = encoder(noise(encoder.rate_hz, [encoder.rate_hz // 2]))
    assert features.values.requires_grad == bool(trained), (
        "an encoder with trained parameters must pass gradients; a frozen one must not"
    )
    if trained:
        features.values.square().sum().backward()
        missed = [name for name, parameter in trained.items() if parameter.grad is None]
        assert not missed, f"no gradient reaches {', '.join(missed)}"


def the_outline_has_its_shapes(config: EncoderConfig) -> None:
    """Check that the encoder can be built on the meta device, as dry runs do, with its shapes.

    Raises:
        AssertionError: it cannot, has values there, or has other shapes.
    """
    outline_has_the_shapes(ENCODERS, config, ("rate_hz", "frame_rate_hz", "dim", "window_s"))


def config_survives_a_checkpoint(config: EncoderConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(ENCODERS, config)


def fingerprint_is_stable(config: EncoderConfig) -> None:
    """Check that two builds have one fingerprint.

    Raises:
        AssertionError: the fingerprint is no text, or differs.
    """
    has_a_stable_fingerprint(lambda: _build(config))


CHECKS = (
    attributes_are_stated,
    shapes_and_lengths_fit,
    values_are_finite_floats,
    padding_and_neighbours_do_not_matter,
    silence_and_nothing_are_taken,
    other_rates_are_refused,
    gradients_reach_or_it_is_frozen,
    the_outline_has_its_shapes,
    config_survives_a_checkpoint,
    fingerprint_is_stable,
)


def _build(config: EncoderConfig) -> Encoder:
    # Random weights must be equal between the builds of one rule.
    torch.manual_seed(0)
    return ENCODERS.build(config).eval()


@torch.no_grad()
def _encode(encoder: Encoder, wave: Waveform) -> Features:
    return encoder(wave)


def _rows(features: Features) -> list[Tensor]:
    """Return the frames [F, D] of each row, without padding."""
    return [values[:length] for values, length in zip(features.values, features.lengths.tolist())]
