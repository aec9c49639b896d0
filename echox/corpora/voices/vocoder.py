"""A harmonic-plus-noise vocoder that changes the speaker of a frame spectrum whose F0 is known.

It changes pitch, vocal tract, spectral tilt and breath. The spectrum is sampled at the harmonics of
the source F0 (the harmonic envelope) and halfway between them (the noise envelope), both curves are
stretched along frequency, and a new pulse train and new noise are shaped by them. Because the
envelopes are sampled only at the harmonics, no trace of the old pitch stays in them. The phase is
the minimum phase of the envelope.

Dimensions: K = 601 frequency bins of 20 Hz, F frames of 12.5 ms.

Source: Stylianou 2001, Applying the harmonic plus noise model in concatenative speech synthesis.
"""

from dataclasses import dataclass

import numpy as np

from echox.core.packages import HIBARI

# Below this the source counts as unvoiced; the same threshold as the pulse generator of hibari-tts
# 0.2.1.
VOICED_ABOVE_HZ = 40.0
# Unvoiced frames are smoothed as if they had this pitch, wide enough to even out single bins.
UNVOICED_SPACING_HZ = 200.0
# Pitch glides within the 50 ms window fill the gaps between high harmonics, which would be taken
# for noise and come out as too much breath.
BREATH_CORRECTION_DB = -3.0
TILT_REFERENCE_HZ = 500.0  # where the tilt's gain is 1
FLOOR = 1e-6  # of magnitudes, so that their logarithm is finite


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


def resynthesize(
    spectrum: np.ndarray, f0_hz: np.ndarray, speaker: Speaker, rng: np.random.Generator
) -> np.ndarray:
    """Synthesize a frame spectrum as another speaker.

    Args:
        spectrum: complex64 [K, F] of the recorded speaker.
        f0_hz: [F], below `VOICED_ABOVE_HZ` where unvoiced.
        speaker: differences from the recorded speaker.
        rng: source of the noise.

    Returns:
        samples [F * 300] float32 at 24 kHz.
    """
    dsp = HIBARI.load("dsp")
    K, F = spectrum.shape
    voiced = f0_hz > VOICED_ABOVE_HZ
    harmonic, noise_level = envelopes(np.abs(spectrum), f0_hz, voiced, speaker.formants, dsp.SR)
    tilt = tilt_gains(K, speaker.tilt_db, dsp.SR)  # [K]
    # A lower pitch packs more harmonics into each band: keep the power, not the amplitude of each.
    harmonic = harmonic * (tilt * np.sqrt(speaker.pitch))[:, None].astype(np.float32)
    breath = np.where(voiced, 10 ** ((BREATH_CORRECTION_DB + speaker.breath_db) / 20), 1.0)  # [F]
    noise_level = noise_level * (tilt[:, None] * breath).astype(np.float32)

    # The excitation as spectra [K, F]: pulses at the new pitch, and white noise.
    pulses = dsp.stft(dsp.pulses(new_f0(f0_hz, voiced, speaker)), F)
    noise = dsp.stft(rng.standard_normal(F * dsp.HOP, dtype=np.float32), F)
    # `dsp.stft` scales by WIN_SRC, under which unit white noise has this root mean square per bin.
    noise *= noise_level / np.sqrt(np.sum(dsp.WIN_SRC**2))
    pulses *= minimum_phase(harmonic, dsp.N_FFT)
    return dsp.ola(pulses + noise)


def envelopes(
    magnitude: np.ndarray, f0_hz: np.ndarray, voiced: np.ndarray, formants: float, rate_hz: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the harmonic and the noise envelope of each frame, stretched along frequency.

    Args:
        magnitude: [K, F] >= 0.
        f0_hz: [F].
        voiced: [F] bool.
        formants: ratio of new to old formant frequencies.
        rate_hz: samples per second.

    Returns:
        harmonic: [K, F] float32, 0 in unvoiced frames.
        noise: [K, F] float32.
    """
    K, F = magnitude.shape
    bin_hz = rate_hz / 2 / (K - 1)
    spacing = np.where(voiced, f0_hz, UNVOICED_SPACING_HZ) / bin_hz  # bins between harmonics, [F]
    # Where each bin of the stretched envelope is sampled, in harmonic numbers [K, F].
    position = np.arange(K)[:, None] / (formants * spacing[None, :])
    noise = between_harmonics(np.square(magnitude), position, spacing, voiced)
    # Interpolated between neighbouring harmonics in the log domain; below the first it is level.
    level = np.log(np.maximum(magnitude, FLOOR))
    low = np.maximum(np.floor(position), 1.0)
    share = np.clip(position - low, 0.0, 1.0).astype(np.float32)
    below, above = interpolated(level, low * spacing), interpolated(level, (low + 1) * spacing)
    harmonic = np.exp((1 - share) * below + share * above)
    harmonic[:, ~voiced] = 0.0
    return harmonic, noise


def between_harmonics(
    power: np.ndarray, position: np.ndarray, spacing: np.ndarray, voiced: np.ndarray
) -> np.ndarray:
    """Estimate the noise envelope.

    Voiced frames take the levels halfway between harmonics, unvoiced ones the mean power nearby.

    Args:
        power: [K, F] >= 0.
        position: [K, F] in harmonic numbers, where each bin is sampled.
        spacing: [F] bins between harmonics.
        voiced: [F] bool.

    Returns:
        [K, F] float32.
    """
    # Half the logarithm of a power is the logarithm of the magnitude.
    level = np.log(np.maximum(power, FLOOR**2)) * np.float32(0.5)
    low = np.maximum(np.floor(position - 0.5), 0.0)
    share = np.clip(position - 0.5 - low, 0.0, 1.0).astype(np.float32)
    below = interpolated(level, (low + 0.5) * spacing)
    above = interpolated(level, (low + 1.5) * spacing)
    envelope = np.exp((1 - share) * below + share * above)
    # Without harmonics there is no gap to sample: single bins of noise are averaged instead.
    unvoiced = np.flatnonzero(~voiced)
    centre = position[:, unvoiced] * spacing[unvoiced]  # in bins
    envelope[:, unvoiced] = np.sqrt(local_mean(power[:, unvoiced], centre, spacing[unvoiced] / 2))
    return envelope


def local_mean(power: np.ndarray, centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Average over neighbouring bins.

    Args:
        power: [K, F] >= 0.
        centre: [K', F] in bins, the middle of each average.
        width: [F] bins averaged over.

    Returns:
        [K', F] float32, at least `FLOOR` squared.
    """
    K, F = power.shape
    # One cumulative sum serves all widths; float64, because differences of large sums are taken.
    total = np.concatenate([np.zeros((1, F)), np.cumsum(power, axis=0, dtype=np.float64)])
    below = np.clip(centre - width / 2 + 0.5, 0, K - 1)
    above = np.clip(below + width, 1, K)
    mean = (interpolated(total, above) - interpolated(total, below)) / (above - below)
    return np.maximum(mean, FLOOR**2).astype(np.float32)


def interpolated(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Interpolate linearly along the first axis, each column by itself.

    Args:
        values: [K, F].
        rows: [K', F], fractional rows; beyond the ends the first or the last row is taken.

    Returns:
        [K', F].
    """
    K, F = values.shape
    rows = np.clip(rows, 0, K - 1)
    low = np.minimum(rows.astype(np.intp), K - 2)
    share = (rows - low).astype(values.dtype)
    # One flat index for both neighbours, which are F entries apart.
    flat, index = values.reshape(-1), low * F + np.arange(F)
    return flat[index] * (1 - share) + flat[index + F] * share


def new_f0(f0_hz: np.ndarray, voiced: np.ndarray, speaker: Speaker) -> np.ndarray:
    """Return the F0 of another speaker.

    Args:
        f0_hz: [F] of the recorded speaker.
        voiced: [F] bool.
        speaker: `pitch` scales the F0, `intonation` is the exponent of its swings.

    Returns:
        [F] float32 in Hz, 0 where unvoiced.
    """
    # The median of no frame would be NaN.
    if not voiced.any():
        return np.zeros_like(f0_hz)
    median = np.median(f0_hz[voiced])
    swing = (np.maximum(f0_hz, VOICED_ABOVE_HZ) / median) ** speaker.intonation
    return np.where(voiced, median * speaker.pitch * swing, 0.0).astype(np.float32)


def tilt_gains(bins: int, tilt_db: float, rate_hz: int) -> np.ndarray:
    """Return the gains of a spectral tilt.

    Args:
        bins: K, from 0 Hz to half the sampling rate.
        tilt_db: decibels per octave.
        rate_hz: samples per second.

    Returns:
        gains [K], 1 at 500 Hz, level below 125 Hz and above 8 kHz.
    """
    hertz = np.clip(np.linspace(0, rate_hz / 2, bins), 125.0, 8000.0)
    return 10 ** (tilt_db * np.log2(hertz / TILT_REFERENCE_HZ) / 20)


def minimum_phase(magnitude: np.ndarray, n_fft: int) -> np.ndarray:
    """Return the minimum-phase spectrum of a magnitude envelope, by folding its cepstrum.

    Args:
        magnitude: [K, F] with K = n_fft // 2 + 1.
        n_fft: length of the transform.

    Returns:
        complex64 [K, F] of the same magnitude.

    Source: Oppenheim and Schafer, Discrete-Time Signal Processing, the chapter on the cepstrum.
    """
    log_magnitude = np.log(np.maximum(magnitude, FLOOR)).astype(np.float32)
    cepstrum = np.fft.irfft(log_magnitude.T, n_fft, axis=1)  # [F, n_fft]
    # Folded: the anticausal half is added onto the causal one.
    cepstrum[:, 1 : n_fft // 2] *= 2
    cepstrum[:, n_fft // 2 + 1 :] = 0
    logarithm = np.fft.rfft(cepstrum, n_fft, axis=1).T
    return polar(np.exp(logarithm.real), logarithm.imag)


def polar(magnitude: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return complex64 numbers of a magnitude [K, F] and an angle [K, F] in radians."""
    # Several times faster than the exponential of complex numbers.
    result = np.empty(np.broadcast_shapes(magnitude.shape, angle.shape), np.complex64)
    np.multiply(magnitude, np.cos(angle), out=result.real, casting="unsafe")
    np.multiply(magnitude, np.sin(angle), out=result.imag, casting="unsafe")
    return result
