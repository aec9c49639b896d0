"""Change the sampling rate, or the speed, of a clip by any ratio."""

import numpy as np

# Silence after the clip, in samples at least, so that its end does not wrap around into its start.
_GUARD_SAMPLES = 512


def resample(samples: np.ndarray, factor: float) -> np.ndarray:
    """Resample by cutting or lengthening the spectrum, free of aliases at any ratio.

    Args:
        samples: clip [T] float32.
        factor: new samples per old sample; 2/3 resamples 24 kHz to 16 kHz.

    Returns:
        samples [round(T * factor)] float32, at the same level.
    """
    T = len(samples)
    # A power of two keeps the transform fast.
    padded = 1 << int(T + _GUARD_SAMPLES - 1).bit_length()
    resampled = round(padded * factor)
    spectrum = np.fft.rfft(samples, padded)
    target = np.zeros(resampled // 2 + 1, spectrum.dtype)
    shared = min(len(target), len(spectrum))
    target[:shared] = spectrum[:shared]
    wave = np.fft.irfft(target, resampled)[: round(T * factor)]
    # The inverse transform divides by the new length, the spectrum belongs to the old one.
    return (wave * (resampled / padded)).astype(np.float32)
