"""Change the sampling rate, or the speed, of a clip by any ratio."""

import numpy as np


def resample(samples: np.ndarray, factor: float) -> np.ndarray:
    """Resample by cutting or lengthening the spectrum, free of aliases at any ratio.

    Args:
        samples: [T] float32.
        factor: new samples per old one; 2/3 takes 24 kHz to 16 kHz.
    Returns:
        samples [round(T * factor)] float32, at the same level.
    """
    T = len(samples)
    # Room around the clip, so that its ends do not meet; a power of two keeps the transform fast.
    padded = 1 << int(T + 512 - 1).bit_length()
    wanted = round(padded * factor)
    spectrum = np.fft.rfft(samples, padded)
    kept = np.zeros(wanted // 2 + 1, spectrum.dtype)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return (np.fft.irfft(kept, wanted)[: round(T * factor)] * (wanted / padded)).astype(np.float32)
