"""A worked example of a codec: loudness levels of mel bands, which need no training.

    echox-train recipe=echo_tiny codec=dmel

Each mel band of a frame is rounded to one of a few levels of loudness, and is a codebook of its
own. Decoding spreads the bands over the spectrum again and finds phases by Griffin-Lim.

Source: Bai et al. 2024, dMel: Speech Tokenization made Simple, arXiv:2407.15835; Griffin and Lim
1984, Signal estimation from modified short-time Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import griffinlim, melscale_fbanks

from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.errors import ConfigError, SignalError
from echox.core.signals import Units, Waveform, valid_mask

RATE_HZ = 16_000
FFT_SAMPLES = 1024
HOP_SAMPLES = 320
# Logarithms of a band's mean magnitude: the levels lie between the two. Speech at full scale has
# about 100 in its loudest bands; 0.01 is 80 dB below.
QUIETEST, LOUDEST = -2.0, 2.0
SILENT_FRAMES = 2  # after the last frame, since the library needs more than half a window


@dataclass(kw_only=True, slots=True)
class DmelConfig(CodecConfig):
    """Mel bands at 50 frames per second, each rounded to a level of loudness."""

    bands: int = 32
    """Mel bands, each a codebook."""
    levels: int = 16
    """Levels of loudness, the units of each codebook; the lowest is silence."""
    iterations: int = 32
    """Iterations of Griffin-Lim; more sound less hollow and take longer."""

    def __post_init__(self) -> None:
        # With more bands than these, the narrowest would hold no frequency of the spectrum.
        if not 2 <= self.bands <= 64:
            raise ConfigError(f"bands must lie in 2..64, and is {self.bands}")
        if self.levels < 2 or self.iterations < 1:
            raise ConfigError(
                "levels and iterations must be at least 2 and 1, "
                f"not {self.levels} and {self.iterations}"
            )


@CODECS.register("dmel", DmelConfig)
class DmelCodec(Codec):
    """Loudness levels of mel bands: samples [B, T] -> units [B, bands, U], and back."""

    merges = False
    bands: Tensor  # [N, K]
    window: Tensor  # [FFT_SAMPLES]

    def __init__(self, config: DmelConfig) -> None:
        super().__init__()
        self.config = config
        self.rate_hz, self.unit_rate_hz = RATE_HZ, RATE_HZ / HOP_SAMPLES
        self.vocab_size, self.codebooks = config.levels, config.bands
        # [N, K] triangles over N frequencies, which sum to 1 at each between the outer centres.
        bands = melscale_fbanks(FFT_SAMPLES // 2 + 1, 0.0, RATE_HZ / 2, config.bands, RATE_HZ)
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES), persistent=False)

    @classmethod
    def expected_codebooks(cls, config: DmelConfig) -> int:
        return config.bands

    def encode(self, wave: Waveform) -> Units:
        """Round the loudness of each band: samples [B, T] at 16 kHz -> ids [B, K, U].

        Raises:
            SignalError: the sample rate is not 16 kHz.
        """
        if wave.rate_hz != RATE_HZ:
            raise SignalError(
                f"the dmel codec takes {RATE_HZ} Hz, got {wave.rate_hz} Hz; resample first"
            )
        # Padding may hold anything, even NaN.
        samples = wave.samples.where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
        # Frame u is centred on sample u * HOP_SAMPLES.
        padded = F.pad(samples, (FFT_SAMPLES // 2, FFT_SAMPLES // 2 + HOP_SAMPLES))
        spectrum = torch.stft(
            padded, FFT_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
        )
        means = spectrum.abs().mT @ self.bands / self.bands.sum(0)  # [B, U, K]
        place = (means.clamp(min=1e-9).log10() - QUIETEST) / (LOUDEST - QUIETEST)
        ids = (place.clamp(0, 1) * (self.config.levels - 1)).round().long().mT  # [B, K, U]
        lengths = -(-wave.lengths // HOP_SAMPLES)
        return Units(ids[..., : int(lengths.max())], lengths, self.unit_rate_hz)

    def decode(self, units: Units) -> Waveform:
        """Find a sound with these bands: ids [B, K, U] -> samples [B, T], T = 320 U."""
        lengths = units.lengths * HOP_SAMPLES
        samples = torch.zeros(len(lengths), int(lengths.max()), device=units.ids.device)
        # Row by row: Griffin-Lim hears everything at once, the padding of a batch included.
        for row, count in enumerate(units.lengths.tolist()):
            if count:
                sound = self._sound(units.ids[row, :, :count])
                samples[row, : len(sound)] = sound
        return Waveform(samples, lengths, RATE_HZ)

    def _sound(self, ids: Tensor) -> Tensor:
        """Decode one row: ids [K, U] -> samples [U * HOP_SAMPLES]."""
        place = ids / (self.config.levels - 1)
        means = 10 ** (QUIETEST + place * (LOUDEST - QUIETEST))
        # Between the centres of two bands the magnitude is interpolated; the lowest level is none.
        magnitude = self.bands @ means.where(ids > 0, 0)  # [N, U]
        sound = griffinlim(
            F.pad(magnitude, (0, SILENT_FRAMES)),
            self.window,
            FFT_SAMPLES,
            HOP_SAMPLES,
            FFT_SAMPLES,
            power=1.0,
            n_iter=self.config.iterations,
            momentum=0.99,
            # As many samples as have that many frames, the first and the last at the ends.
            length=(ids.shape[1] + SILENT_FRAMES - 1) * HOP_SAMPLES,
            # The same units always sound the same.
            rand_init=False,
        )
        return sound[: ids.shape[1] * HOP_SAMPLES].clamp(-1, 1)

    def fingerprint(self) -> str:
        return f"dmel-{self.config.bands}-{self.config.levels}-v1"
