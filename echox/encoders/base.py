"""The encoder interface: waveform -> features."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from echox.core.config import left_out
from echox.core.errors import ConfigError, SignalError
from echox.core.meta_device import built_on_meta
from echox.core.packages import OptionalPackage
from echox.core.registry import Registry
from echox.core.signals import EDGE_FRAMES, Features, Waveform, valid_mask
from echox.core.sources import code_of

AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Base class of every encoder's config."""

    train: bool = left_out(False)
    """Train the encoder too, in the stages that train what stands behind it (align and s2t). Its
    features are then computed at each step and not cached; later stages take it as it was
    trained."""
    lr_scale: float = left_out(0.1)
    """Learning rate of a trained encoder as a multiple of the stage's: it comes pretrained, and
    the adapter behind it does not."""


class Encoder(nn.Module, ABC):
    """Audio -> frame features [B, F, D]; the constructor sets the attributes below.

    Where `config.train` is true, `build_encoder` trains all parameters that require gradients; an
    encoder that can be trained leaves `requires_grad` to those alone that have an effect. It draws
    no dropout, so that its features in training are those of inference.

    Needed: `rate_hz`, `frame_rate_hz`, `dim`, `forward`, `fingerprint`.

    Optional: `window_s`, `trainable`, `trained`, `outline`, `missing`, `packages`.
    """

    rate_hz: int  # input sample rate, Hz
    frame_rate_hz: float  # output frames per second
    dim: int  # feature channels D
    window_s: float | None = None  # seconds that are encoded together; None: a clip as a whole
    trainable: bool = False  # whether it can be trained; False: `encoder.train` is refused
    trained: tuple[str, ...] = ()  # names of its trained parameters, set by `build_encoder`

    @classmethod
    def outline(cls: type[AnyEncoder], config: Any) -> AnyEncoder:
        """Build the encoder with its true shapes on the meta device, without reading weights.

        Args:
            config: the encoder's config.

        Returns:
            a module that has shapes and dtypes, but cannot compute.

        Raises:
            AssetError: the shape of the configured model is not known on this machine.
        """
        return built_on_meta(lambda: cls(config))

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """List the files the encoder needs that echox can neither find, make nor fetch."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """List the optional packages the constructor imports; a run checks them first."""
        return ()

    @abstractmethod
    def forward(self, wave: Waveform) -> Features:
        """Encode a batch.

        Args:
            wave: samples [B, T] float32 in [-1, 1] at `self.rate_hz`.

        Returns:
            values [B, F, D] with F about T / rate_hz * frame_rate_hz. The values of a row depend
            on its own samples only, never on the padding or on other rows.

        Raises:
            SignalError: `wave.rate_hz` is not the encoder's.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the weights and settings that decide the features, without spaces and slashes.

        The code need not be in it: feature caches are named by the hash and by the encoder's code.
        """


ENCODERS: Registry[Encoder] = Registry("encoder", EncoderConfig)


def build_encoder(config: EncoderConfig, *, meta: bool = False) -> Encoder:
    """Build an encoder for a stage: trained, where its config says so, or else frozen.

    Args:
        config: of a registered encoder.
        meta: build its outline, which has shapes and no weights.

    Raises:
        AssetError: its weights are not on this machine.
        ConfigError: it is to be trained and cannot be.
    """
    implementation = ENCODERS.entry_of(config).implementation
    if reason := cannot_train_reason(config):
        raise ConfigError(reason)
    encoder = implementation.outline(config) if meta else implementation(config)
    if not config.train:
        return encoder.requires_grad_(False)
    named = encoder.named_parameters()
    encoder.trained = tuple(name for name, parameter in named if parameter.requires_grad)
    return encoder


def cannot_train_reason(config: EncoderConfig) -> str | None:
    """Return why an encoder whose config says `train` cannot be trained, as a sentence, or None."""
    if not config.train:
        return None
    # Not `<= 0`, which is false for NaN.
    if not config.lr_scale > 0:
        return f"encoder.lr_scale is {config.lr_scale}; use a factor above 0"
    if ENCODERS.entry_of(config).implementation.trainable:
        return None
    able = [name for name, entry in ENCODERS.items() if entry.implementation.trainable]
    return (
        f"encoder.train is true, but encoder {ENCODERS.name_of(config)!r} has nothing to train; "
        f"set encoder.train=false, or use one of {', '.join(sorted(able))}"
    )


def trained_tensors(encoder: Encoder) -> dict[str, Tensor]:
    """Return the weights that echox trained, in this stage or in one before, by their names."""
    named = dict(encoder.named_parameters())
    return {name: named[name] for name in encoder.trained}


def trains(encoder: Encoder) -> bool:
    """Return whether the encoder is trained in this stage, so that its features change."""
    return any(weight.requires_grad for weight in trained_tensors(encoder).values())


def weights_fingerprint(encoder: Encoder) -> str:
    """Hash everything that decides the features but the code, with the weights echox trained."""
    if not encoder.trained:
        return encoder.fingerprint()
    digest = hashlib.sha256(encoder.fingerprint().encode())
    for name, weight in trained_tensors(encoder).items():
        digest.update(name.encode())
        # Whole tensors: an encoder's own fingerprint may look at a part of them, or at none.
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def features_fingerprint(encoder: Encoder) -> str:
    """Name everything that decides the features: weights, settings and the encoder's code."""
    return f"{weights_fingerprint(encoder)}-{code_of(encoder).digest}"


def check_features(encoder: Encoder, wave: Waveform, features: Features) -> None:
    """Check what an encoder returned before anything learns from it or stores it.

    Args:
        encoder: which returned it.
        wave: the samples [B, T] that it was given.
        features: what it returned.

    Raises:
        SignalError: the shape, a length or a rate is not what the encoder states, or a value is
            not finite; the text names the encoder.
    """
    fault = _shape_fault(encoder, wave, features) or _length_fault(encoder, wave, features)
    if not fault:
        real = valid_mask(features.lengths, features.values.shape[1])
        # Padding may hold anything, even NaN.
        if not bool(features.values[real.to(features.values.device)].isfinite().all()):
            fault = "values that are not finite (NaN or infinite)"
    if fault:
        raise SignalError(
            f"{_described(encoder)} returned {fault}; mend it, and check it by "
            "echox.testing.encoders"
        )


def _shape_fault(encoder: Encoder, wave: Waveform, features: Features) -> str:
    if not isinstance(features, Features):
        return f"a {type(features).__name__} where Features are needed"
    values, lengths, B = features.values, features.lengths, len(wave.lengths)
    shape = list(values.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (B, encoder.dim):
        return f"values {shape} where its dim asks for [{B}, frames, {encoder.dim}]"
    if not values.is_floating_point():
        return f"values of {values.dtype}, which are no floats"
    if lengths.shape != (B,) or lengths.is_floating_point():
        return f"lengths {list(lengths.shape)} of {lengths.dtype} where [{B}] integers are needed"
    if features.rate_hz != encoder.frame_rate_hz:
        return (
            f"features at {features.rate_hz} Hz where its frame_rate_hz is {encoder.frame_rate_hz}"
        )
    return ""


def _length_fault(encoder: Encoder, wave: Waveform, features: Features) -> str:
    most = features.values.shape[1]
    for samples, frames in zip(wave.lengths.tolist(), features.lengths.tolist()):
        duration_s = samples / wave.rate_hz
        # Each window of a long clip has an edge of its own.
        windows = max(1, math.ceil(duration_s / (encoder.window_s or math.inf)))
        expected = duration_s * encoder.frame_rate_hz
        if not 0 <= frames <= most or abs(frames - expected) > EDGE_FRAMES * windows:
            return (
                f"{frames} of {most} frames for {duration_s:.3f} s of audio, where "
                f"{encoder.frame_rate_hz:g} frames per second make {expected:.1f}"
            )
    return ""


def _described(encoder: Encoder) -> str:
    for name, entry in ENCODERS.items():
        if entry.implementation is type(encoder):
            return f"encoder {name!r} ({entry.origin})"
    return f"encoder {type(encoder).__name__}"
