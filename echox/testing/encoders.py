"""The contract of an encoder; see `echox.encoders.base.Encoder`."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.signals import Features, Waveform
from echox.testing import has_a_stable_fingerprint, survives_a_checkpoint
from echox.testing.speech import EDGE_FRAMES, noise, refuses_other_rates

# Batching and padding change the order of float32 sums, no more.
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


def attributes_are_stated(config: EncoderConfig) -> None:
    encoder = _build(config)
    for name in ("rate_hz", "frame_rate_hz", "dim"):
        value = getattr(encoder, name, None)
        assert isinstance(value, (int, float)) and value > 0, f"{type(encoder).__name__}.{name} must be a positive number, not {value!r}"


def shapes_and_lengths_fit(config: EncoderConfig) -> None:
    encoder = _build(config)
    lengths = [encoder.rate_hz, encoder.rate_hz // 2, 1]
    features = _encode(encoder, noise(encoder.rate_hz, lengths))
    B, F, D = features.values.shape
    assert (B, D) == (3, encoder.dim), f"values must be [3, F, {encoder.dim}], not {list(features.values.shape)}"
    assert features.rate_hz == encoder.frame_rate_hz, (
        f"Features.rate_hz is {features.rate_hz}, the encoder's frame_rate_hz {encoder.frame_rate_hz}"
    )
    assert features.lengths.dtype == torch.int64 and features.lengths.shape == (3,), "lengths must be int64 [B]"
    assert int(features.lengths.max()) <= F, f"a row claims {int(features.lengths.max())} frames of {F}"
    for samples, frames in zip(lengths, features.lengths.tolist()):
        expected = samples / encoder.rate_hz * encoder.frame_rate_hz
        assert abs(frames - expected) <= EDGE_FRAMES, (
            f"{samples} samples gave {frames} frames; {encoder.frame_rate_hz} frames/s make about {expected:.1f}"
        )


def values_are_finite_floats(config: EncoderConfig) -> None:
    encoder = _build(config)
    features = _encode(encoder, noise(encoder.rate_hz, [encoder.rate_hz, encoder.rate_hz // 3]))
    assert features.values.is_floating_point(), f"values must be floats, not {features.values.dtype}"
    for row in _rows(features):
        assert bool(row.isfinite().all()), "a frame inside a row's length is not finite"


def padding_and_neighbours_do_not_matter(config: EncoderConfig) -> None:
    encoder = _build(config)
    wave = noise(encoder.rate_hz, [encoder.rate_hz // 2, encoder.rate_hz])
    together = _rows(_encode(encoder, wave))
    for index, samples in enumerate(wave.lengths.tolist()):
        row = Waveform(wave.samples[index : index + 1, :samples], wave.lengths[index : index + 1], wave.rate_hz)
        (alone,) = _rows(_encode(encoder, row))
        torch.testing.assert_close(
            together[index],
            alone,
            atol=ABSOLUTE_TOLERANCE,
            rtol=RELATIVE_TOLERANCE,
            msg=lambda text: f"a row changed with its neighbours or its padding: {text}",
        )


def silence_and_nothing_are_taken(config: EncoderConfig) -> None:
    encoder = _build(config)
    wave = Waveform(torch.zeros(2, encoder.rate_hz), torch.tensor([encoder.rate_hz, 0]), encoder.rate_hz)
    features = _encode(encoder, wave)
    assert int(features.lengths[1]) <= EDGE_FRAMES, f"a row without samples gave {int(features.lengths[1])} frames"
    assert all(bool(row.isfinite().all()) for row in _rows(features)), "silence gave values that are not finite"


def other_rates_are_refused(config: EncoderConfig) -> None:
    encoder = _build(config)
    refuses_other_rates(encoder, encoder.rate_hz)


def gradients_reach_or_it_is_frozen(config: EncoderConfig) -> None:
    encoder = _build(config).train()
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    features = encoder(noise(encoder.rate_hz, [encoder.rate_hz // 2]))
    assert features.values.requires_grad == bool(trained), "an encoder with trained parameters must pass gradients; a frozen one must not"
    if trained:
        features.values.square().sum().backward()
        missed = [name for name, parameter in trained.items() if parameter.grad is None]
        assert not missed, f"no gradient reaches {', '.join(missed)}"


def config_survives_a_checkpoint(config: EncoderConfig) -> None:
    survives_a_checkpoint(ENCODERS, config)


def fingerprint_is_stable(config: EncoderConfig) -> None:
    has_a_stable_fingerprint(lambda: _build(config))


CHECKS = (
    attributes_are_stated,
    shapes_and_lengths_fit,
    values_are_finite_floats,
    padding_and_neighbours_do_not_matter,
    silence_and_nothing_are_taken,
    other_rates_are_refused,
    gradients_reach_or_it_is_frozen,
    config_survives_a_checkpoint,
    fingerprint_is_stable,
)


def _build(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return ENCODERS.build(config).eval()


@torch.no_grad()
def _encode(encoder: Encoder, wave: Waveform) -> Features:
    return encoder(wave)


def _rows(features: Features) -> list[Tensor]:
    return [values[:length] for values, length in zip(features.values, features.lengths.tolist())]
