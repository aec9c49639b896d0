"""Settings of a fit of the k-means codec."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.codecs.kmeans.acoustic_model import AcousticModelSizes
from echox.codecs.quantization.language import LanguageConfig
from echox.core.config import neutral, refuse_below
from echox.core.errors import ConfigError
from echox.encoders.base import EncoderConfig
from echox.encoders.whisper import WhisperConfig


def _whisper_base_layer_4() -> EncoderConfig:
    return WhisperConfig(weights="whisper_base", layers=4)


@dataclass(kw_only=True, slots=True)
class CodecFitConfig:
    """Settings of `echox-prepare codec` for the k-means codec.

    Raises:
        ConfigError: a count is below 1, or `held_out` is no share.
    """

    folder: str = neutral("codec")
    """Where the codec is written; an interrupted fit goes on from what is there."""
    encoder: EncoderConfig = field(default_factory=_whisper_base_layer_4)
    """The encoder whose features become units."""
    vocoder: str = "hifigan_16k"
    """Catalogue name or folder of HiFi-GAN weights; "griffin_lim" needs no weights, "random" is
    for tests."""
    units: int = 512
    """Number of clusters, the size of the unit vocabulary."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The unit language."""
    sizes: AcousticModelSizes = field(default_factory=AcousticModelSizes)
    """Sizes of the networks."""
    seed: int = 0
    """Of the clustering, the initial weights and the batches."""
    batch_s: float = neutral(60.0)
    """Audio encoded at once, seconds with padding."""
    held_out: float = 0.02
    """Share of the clips kept for the final measurements; 0 fits to all of them and measures on
    them."""
    prosody_steps: int = 300
    """Training steps of the durations, and of the pitch."""
    mel_steps: int = 2_000
    """Training steps of the mel network at most."""
    mel_limit_s: float = 240.0
    """Seconds after which the training of the mel network ends, however many steps that was."""
    batch: int = 16
    """Clips or crops in a training step."""
    crop_frames: int = 64
    """Encoder frames of a crop that the mel network is trained on."""
    # Recipes know the settings of the discriminator by these names.
    judge_from: float = 0.4
    """Share of the mel training after which the discriminator joins; 1 leaves it out and the mels
    smooth."""
    judge_weight: float = 0.2
    """Weight of the discriminator beside the absolute error."""
    judge_channels: int = 24
    """Width of the discriminator."""

    def __post_init__(self) -> None:
        # Units must stay what they are, so that a codec's encoder is never trained.
        if self.encoder.train:
            raise ConfigError("a codec's encoder is not trained; leave fit.encoder.train false")
        refuse_below(self, 0, "batch_s", "mel_limit_s", above=True)
        refuse_below(self, 0, "judge_from", "judge_weight")
        refuse_below(self, 1, "judge_channels")
        counts = ("units", "batch", "crop_frames", "prosody_steps", "mel_steps")
        if wrong := [name for name in counts if getattr(self, name) < 1]:
            raise ConfigError(f"codec fitting needs {', '.join(wrong)} of 1 or more")
        if not 0 <= self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}; use a share from 0 up to 1, such as 0.02"
            )
