"""A worked example: log-mel features as an encoder, 100 frames per second, nothing pretrained."""
from dataclasses import dataclass
import torch
from torchaudio.transforms import MelSpectrogram
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.errors import SignalError
from echox.signals import Features, Waveform, valid_mask

@dataclass(kw_only=True, slots=True)
class MelConfig(EncoderConfig):
    """Log-mel spectrogram at 16 kHz."""
    bins: int = 80
    """Mel bins, the feature channels."""

@ENCODERS.register("mel", MelConfig)
class MelEncoder(Encoder):
    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.rate_hz, self.frame_rate_hz, self.dim = 16_000, 100.0, config.bins
        self.mel = MelSpectrogram(self.rate_hz, n_fft=400, hop_length=160, center=False, n_mels=config.bins)

    def forward(self, wave: Waveform) -> Features:
        if wave.rate_hz != self.rate_hz:
            raise SignalError(f"the mel encoder takes {self.rate_hz} Hz, got {wave.rate_hz} Hz; resample first")
        samples = wave.samples.where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)  # padding may hold anything
        mel = self.mel(torch.nn.functional.pad(samples, (0, 400))).clamp(min=1e-5).log()  # [B, D, F or F + 1]
        return Features(mel.mT[:, : -(-samples.shape[1] // 160)], -(-wave.lengths // 160), self.frame_rate_hz)

    def fingerprint(self) -> str:
        return f"mel-{self.dim}"
