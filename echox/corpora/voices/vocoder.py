"""Change who is speaking: pitch, vocal tract, tilt and breath, on a frame spectrum whose F0 is known.

The spectrum is read at the harmonics of the source F0 (what the voice sings) and halfway between them (what it breathes), both
curves are stretched along frequency, and a new pulse train and new noise are shaped by them. Because the envelopes are sampled only
at the harmonics, no trace of the old pitch stays in them. The method is that of harmonic-plus-noise vocoders (Stylianou 2001,
"Applying the harmonic plus noise model in concatenative speech synthesis"), the phase is the minimum phase of the envelope.
Legend: K = 601 frequency bins of 20 Hz, F frames of 12.5 ms.
"""

from dataclasses import dataclass

import numpy as np

from echox.packages import HIBARI

# Below this the source counts as unvoiced; the same threshold as the pulse generator of hibari-tts 0.2.1.
VOICED_ABOVE_HZ = 40.0
# Unvoiced frames are smoothed as if they had this pitch, wide enough to even out single bins.
UNVOICED_SPACING_HZ = 200.0
# Pitch glides within the 50 ms window fill the gaps between high harmonics, which reads as too much breath.
BREATH_CORRECTION_DB = -3.0
TILT_REFERENCE_HZ = 500.0
FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """How one speaker differs from the recorded one."""

    pitch: float = 1.0
    """Ratio of the median F0 to the recorded one; 0.5 is an octave lower."""
    formants: float = 1.0
    """Ratio of the formant frequencies to the recorded ones; below 1 is a longer vocal tract."""
    speed: float = 1.0
    """Ratio of speaking rate to the recorded one."""
    intonation: float = 1.0
    """Exponent on F0 around its median; 0 is a monotone, above 1 is lively."""
    tilt_db: float = 0.0
    """Decibels per octave added above 500 Hz and taken away below; negative is a duller voice."""
    breath_db: float = 0.0
    """Decibels added to the noise of voiced frames."""


def respeak(spectrum: np.ndarray, f0_hz: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Synthesise a frame spectrum anew as another speaker.

    Args:
        spectrum: complex64 [K, F] of the recorded speaker.
        f0_hz: [F], below `VOICED_ABOVE_HZ` where unvoiced.
        speaker: the changes wanted.
        rng: source of the noise.
    Returns:
        samples [F * 300] float32 at 24 kHz.
    """
    dsp = HIBARI.load("dsp")
    K, F = spectrum.shape
    voiced = f0_hz > VOICED_ABOVE_HZ
    sung, breathed = envelopes(np.abs(spectrum), f0_hz, voiced, speaker.formants, dsp.SR)
    tilt = tilt_gains(K, speaker.tilt_db, dsp.SR)
    # A lower pitch packs more harmonics into each band: keep the power, not the amplitude of each.
    sung = sung * (tilt * np.sqrt(speaker.pitch))[:, None].astype(np.float32)
    breath = np.where(voiced, 10 ** ((BREATH_CORRECTION_DB + speaker.breath_db) / 20), 1.0)
    breathed = breathed * (tilt[:, None] * breath).astype(np.float32)

    pulses = dsp.stft(dsp.pulses(new_f0(f0_hz, voiced, speaker)), F)
    noise = dsp.stft(rng.standard_normal(F * dsp.HOP, dtype=np.float32), F)
    # `dsp.stft` scales by WIN_SRC, under which unit white noise has this root mean square per bin.
    noise *= breathed / np.sqrt(np.sum(dsp.WIN_SRC**2))
    pulses *= minimum_phase(sung, dsp.N_FFT)
    return dsp.ola(pulses + noise)


def envelopes(
    magnitude: np.ndarray, f0_hz: np.ndarray, voiced: np.ndarray, formants: float, rate_hz: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read the harmonic and the noise envelope of each frame, stretched along frequency by `formants`.

    Args:
        magnitude: [K, F] >= 0.
        f0_hz: [F].
        voiced: [F] bool.
        formants: ratio of new to old formant frequencies.
        rate_hz: samples per second.
    Returns:
        (sung, breathed), each [K, F] float32; unvoiced frames have breath alone.
    """
    K, F = magnitude.shape
    bin_hz = rate_hz / 2 / (K - 1)
    spacing = np.where(voiced, f0_hz, UNVOICED_SPACING_HZ) / bin_hz  # bins between harmonics, [F]
    position = np.arange(K)[:, None] / (formants * spacing[None, :])  # where to read, in harmonic numbers
    breathed = between_harmonics(np.square(magnitude), position, spacing, voiced)
    at = np.log(np.maximum(magnitude, FLOOR))
    low = np.maximum(np.floor(position), 1.0)
    share = np.clip(position - low, 0.0, 1.0).astype(np.float32)
    sung = np.exp((1 - share) * read(at, low * spacing) + share * read(at, (low + 1) * spacing))
    sung[:, ~voiced] = 0.0
    return sung, breathed


def between_harmonics(power: np.ndarray, position: np.ndarray, spacing: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """The noise envelope [K, F]: levels halfway between harmonics where voiced, the mean power nearby where not."""
    level = np.log(np.maximum(power, FLOOR**2)) * np.float32(0.5)
    low = np.maximum(np.floor(position - 0.5), 0.0)
    share = np.clip(position - 0.5 - low, 0.0, 1.0).astype(np.float32)
    result = np.exp((1 - share) * read(level, (low + 0.5) * spacing) + share * read(level, (low + 1.5) * spacing))
    quiet = np.flatnonzero(~voiced)
    result[:, quiet] = np.sqrt(local_mean(power[:, quiet], position[:, quiet] * spacing[quiet], spacing[quiet] / 2))
    return result


def local_mean(power: np.ndarray, centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Mean of `power` [K, F] over `width` [F] bins around each `centre` [K, F], read from one cumulative sum."""
    K, F = power.shape
    total = np.concatenate([np.zeros((1, F)), np.cumsum(power, axis=0, dtype=np.float64)])
    below = np.clip(centre - width / 2 + 0.5, 0, K - 1)
    above = np.clip(below + width, 1, K)
    return np.maximum((read(total, above) - read(total, below)) / (above - below), FLOOR**2).astype(np.float32)


def read(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Read `values` [K, F] at fractional rows [K', F], linearly between neighbours, the last row beyond the end."""
    K, F = values.shape
    rows = np.clip(rows, 0, K - 1)
    low = np.minimum(rows.astype(np.intp), K - 2)
    share = (rows - low).astype(values.dtype)
    flat, index = values.reshape(-1), low * F + np.arange(F)
    return flat[index] * (1 - share) + flat[index + F] * share


def new_f0(f0_hz: np.ndarray, voiced: np.ndarray, speaker: Speaker) -> np.ndarray:
    """The new speaker's F0 [F] in Hz: moved by `pitch`, its swings raised to `intonation`, 0 where unvoiced."""
    if not voiced.any():
        return np.zeros_like(f0_hz)
    median = np.median(f0_hz[voiced])
    swing = (np.maximum(f0_hz, VOICED_ABOVE_HZ) / median) ** speaker.intonation
    return np.where(voiced, median * speaker.pitch * swing, 0.0).astype(np.float32)


def tilt_gains(bins: int, tilt_db: float, rate_hz: int) -> np.ndarray:
    """Gain per bin [K] that rises by `tilt_db` each octave, 1 at 500 Hz, held level below 125 Hz and above 8 kHz."""
    hertz = np.clip(np.linspace(0, rate_hz / 2, bins), 125.0, 8000.0)
    return 10 ** (tilt_db * np.log2(hertz / TILT_REFERENCE_HZ) / 20)


def minimum_phase(magnitude: np.ndarray, n_fft: int) -> np.ndarray:
    """The minimum-phase spectrum of a magnitude envelope, by folding its cepstrum.

    Args:
        magnitude: [K, F] with K = n_fft // 2 + 1.
        n_fft: length of the transform.
    Returns:
        complex64 [K, F] of the same magnitude.
    Source: Oppenheim and Schafer, Discrete-Time Signal Processing, the chapter on the cepstrum.
    """
    cepstrum = np.fft.irfft(np.log(np.maximum(magnitude, FLOOR)).astype(np.float32).T, n_fft, axis=1)
    cepstrum[:, 1 : n_fft // 2] *= 2
    cepstrum[:, n_fft // 2 + 1 :] = 0
    logarithm = np.fft.rfft(cepstrum, n_fft, axis=1).T
    return polar(np.exp(logarithm.real), logarithm.imag)


def polar(magnitude: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Complex64 numbers of a magnitude and an angle in radians; several times faster than the exponential of complex numbers."""
    result = np.empty(np.broadcast_shapes(magnitude.shape, angle.shape), np.complex64)
    np.multiply(magnitude, np.cos(angle), out=result.real, casting="unsafe")
    np.multiply(magnitude, np.sin(angle), out=result.imag, casting="unsafe")
    return result
