"""Settings of a fit of HuBERT units."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.codecs.quantization.language import LanguageConfig
from echox.core.errors import ConfigError
from echox.encoders.base import EncoderConfig
from echox.encoders.ssl import SslConfig

NAME = "hubert_units"
"""The name of the codec in its registry and in its folder."""


def _hubert_layer_11() -> EncoderConfig:
    return SslConfig(layer=11)  # EchoX's layer, of another HuBERT


def _eight_thousand_words() -> LanguageConfig:
    return LanguageConfig(words=8_000)  # EchoX's published files have room for 7,000 to 8,400


@dataclass(kw_only=True, slots=True)
class UnitFitConfig:
    """Settings of the clustering of encoder frames to units, and of the words over units.

    Raises:
        ConfigError: a number is not above 0, or `held_out` is no share.
    """

    encoder: EncoderConfig = field(default_factory=_hubert_layer_11)
    """The encoder whose frames become units: any that is registered."""
    centres: str = ""
    """File of published centres, as fairseq's km.bin or a .npy; empty fits `units` of them."""
    units: int = 1_000
    """Number of clusters to fit; published centres say theirs."""
    frames: int = 500_000
    """Frames that are clustered at most, of recordings drawn at random."""
    hours: float = 20.0
    """Hours of recordings used at most, drawn at random: the words are learned from all of them."""
    language: LanguageConfig = field(default_factory=_eight_thousand_words)
    """The unit language."""
    seed: int = 0
    """Of the choice of recordings and the clustering."""
    batch_s: float = 120.0
    """Audio encoded at once, seconds with padding."""
    held_out: float = 0.02
    """Share of the recordings that are left out of the fit, on which the compression is
    measured."""

    def __post_init__(self) -> None:
        # Units must stay what they are, so that a codec's encoder is never trained.
        if self.encoder.train:
            raise ConfigError("a codec's encoder is not trained; leave fit.encoder.train false")
        positive = ("units", "frames", "hours", "batch_s")
        if wrong := [name for name in positive if not getattr(self, name) > 0]:
            raise ConfigError(f"fitting units needs {', '.join(wrong)} above 0")
        if not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}; use a share between 0 and 1, such as 0.02"
            )
