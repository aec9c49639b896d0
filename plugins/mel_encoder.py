"""A worked example: log-mel features as an encoder, 100 frames per second, nothing pretrained."""

from dataclasses import dataclass

import torch
from torchaudio.transforms import MelSpectrogram

from echox.core.config import refuse_below
from echox.core.errors import SignalError
from echox.core.signals import Features, Waveform, valid_mask
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig


@dataclass(kw_only=True, slots=True)
class MelConfig(EncoderConfig):
    """Log-mel spectrogram at 16 kHz.

    Raises:
        ConfigError: a number is out of range.
    """

    bins: int = 80
    """Mel bins, the feature channels."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "bins")


@ENCODERS.register("mel", MelConfig)
class MelEncoder(Encoder):
    """Log-mel frames, 100 per second: samples [B, T] -> values [B, F, bins]."""

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.rate_hz, self.frame_rate_hz, self.dim = 16_000, 100.0, config.bins
        self.mel = MelSpectrogram(
            self.rate_hz, n_fft=400, hop_length=160, center=False, n_mels=config.bins
        )

    def forward(self, wave: Waveform) -> Features:
        if wave.rate_hz != self.rate_hz:
            raise SignalError(
                f"the mel encoder takes {self.rate_hz} Hz, got {wave.rate_hz} Hz; resample first"
            )
        T = wave.samples.shape[1]
        # Padding may hold anything, even NaN.
        samples = wave.samples.where(valid_mask(wave.lengths, T), 0)
        # One window more, so that the last samples have a frame too.
        mel = self.mel(torch.nn.functional.pad(samples, (0, 400)))  # [B, D, F or F + 1]
        frames, lengths = -(-T // 160), -(-wave.lengths // 160)
        return Features(mel.clamp(min=1e-5).log().mT[:, :frames], lengths, self.frame_rate_hz)

    def fingerprint(self) -> str:
        return f"mel-{self.dim}"
