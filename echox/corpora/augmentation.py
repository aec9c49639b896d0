"""Augmentation of clean questions: speed, reverberation, telephone band, silence, noise and gain.

All random decisions come from one generator, so the same seed gives the same clip.
"""

from dataclasses import dataclass

import numpy as np

from echox.core.errors import ConfigError
from echox.corpora.voices.base import within_full_scale
from echox.data.acoustics import NOISES, SILENT, in_room
from echox.data.resampling import resample

# The pass band of a narrow-band telephone line.
TELEPHONE_HZ = (300.0, 3400.0)
# The highest peak after augmentation, as a share of full scale.
CEILING = 0.98

# Fields of `AugmentConfig` that are (low, high) pairs, and those that are shares from 0 to 1.
RANGES = ("speed", "gain_db", "snr_db", "rt60_s", "direct_db", "lead_s", "trail_s")
SHARES = ("noise_share", "room_share", "telephone_share")


# Names and values of the fields are part of the names of augmented clips (`recording.clip`):
# another field makes every corpus record all of its training questions again.
@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """How far questions are changed; every pair is a range drawn from uniformly.

    Raises:
        ConfigError: a range or a share is out of range; the sentence names all of them.
    """

    speed: tuple[float, float] = (0.92, 1.08)
    """Ratio of playing speed, which moves pitch and formants along with the pace."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """Decibels of gain; whatever would clip is turned down."""
    noise_share: float = 0.7
    """Share of clips, 0 to 1, that get noise, a third each white, pink and babble."""
    snr_db: tuple[float, float] = (10.0, 35.0)
    """Decibels of the speech's mean power over the noise's."""
    room_share: float = 0.5
    """Share of clips, 0 to 1, with the reverberation of a room."""
    rt60_s: tuple[float, float] = (0.1, 0.5)
    """Seconds in which the room's echo falls by 60 dB."""
    direct_db: tuple[float, float] = (0.0, 12.0)
    """Decibels of the direct sound's power over the echo's."""
    telephone_share: float = 0.1
    """Share of clips, 0 to 1, limited to 300 to 3,400 Hz."""
    lead_s: tuple[float, float] = (0.0, 0.4)
    """Seconds of silence before the speech (noise goes on through it)."""
    trail_s: tuple[float, float] = (0.0, 0.4)
    """Seconds of silence after the speech (noise goes on through it)."""

    def __post_init__(self) -> None:
        ranges = {name: getattr(self, name) for name in RANGES}
        shares = {name: getattr(self, name) for name in SHARES}
        faults = [f"{name}={pair}" for name, pair in ranges.items() if not _is_range(pair)]
        faults += [f"{name}={share}" for name, share in shares.items() if not 0 <= share <= 1]
        # Both are divisors.
        not_positive = [name for name in ("speed", "rt60_s") if min(ranges[name]) <= 0]
        faults += [f"{name} below or at 0" for name in not_positive]
        faults += [f"{name} below 0" for name in ("lead_s", "trail_s") if min(ranges[name]) < 0]
        if faults:
            raise ConfigError(
                "augmentation takes ranges as (low, high) and shares from 0 to 1; "
                f"mend {', '.join(faults)}"
            )


def _is_range(pair) -> bool:
    return len(pair) == 2 and pair[0] <= pair[1]


class Augment:
    """Random augmentation of one clip [T].

    The effects are applied in a fixed order: speed, reverberation, telephone band, silence
    around the speech, noise, gain.

    Args:
        config: ranges of the effects; None for the defaults.
    """

    def __init__(self, config: AugmentConfig | None = None) -> None:
        self.config = config or AugmentConfig()

    # Every draw below is part of the recorded corpora: another order of draws, or one draw more,
    # changes all clips of all seeds.
    def __call__(self, samples: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
        """Augment a clip.

        Args:
            samples: [T] float32 in [-1, 1].
            rate_hz: samples per second.
            rng: the only source of chance; the same state gives the same clip.

        Returns:
            samples [T'] float32 in [-1, 1] at the same rate.
        """
        config = self.config
        samples = resample(samples, 1 / rng.uniform(*config.speed))
        if rng.random() < config.room_share:
            rt60_s, direct_db = rng.uniform(*config.rt60_s), rng.uniform(*config.direct_db)
            samples = in_room(samples, rate_hz, rt60_s, direct_db, rng)
        if rng.random() < config.telephone_share:
            samples = band_limit(samples, rate_hz, *TELEPHONE_HZ)
        # Measured before the padding: the noise is set against the speech, not the silence.
        power = float(np.mean(np.square(samples)))
        lead = round(rng.uniform(*config.lead_s) * rate_hz)
        trail = round(rng.uniform(*config.trail_s) * rate_hz)
        samples = np.pad(samples, [lead, trail])
        # A silent clip has no level that a noise could be set against.
        if rng.random() < config.noise_share and power > SILENT**2:
            noise = NOISES[rng.integers(len(NOISES))](samples, rng)
            samples = samples + noise * np.sqrt(power / 10 ** (rng.uniform(*config.snr_db) / 10))
        samples = samples * 10 ** (rng.uniform(*config.gain_db) / 20)
        return within_full_scale(samples.astype(np.float32), CEILING)


def band_limit(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Keep one band of frequencies, with edges 15 % wide.

    Args:
        samples: [T] float.
        rate_hz: samples per second.
        low_hz: lowest frequency that passes at full level.
        high_hz: highest frequency that passes at full level.

    Returns:
        samples [T] float32.
    """
    # At least 512 zeros behind the clip, so that the filter does not wrap around to its start.
    size = 1 << (len(samples) + 511).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / rate_hz)
    rise = np.clip((hertz / low_hz - 0.85) / 0.15, 0, 1)
    fall = np.clip((1.15 - hertz / high_hz) / 0.15, 0, 1)
    filtered = np.fft.irfft(np.fft.rfft(samples, size) * rise * fall, size)
    return filtered[: len(samples)].astype(np.float32)
