"""Make clean questions sound like questions asked in rooms, over telephones and in company, the same way for the same seed."""

from dataclasses import dataclass

import numpy as np

from echox.corpora.voices.base import within_full_scale
from echox.data.acoustics import NOISES, SILENT, in_room
from echox.data.resampling import resample
from echox.errors import ConfigError

TELEPHONE_HZ = (300.0, 3400.0)
# The highest peak after augmentation.
CEILING = 0.98


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """How far questions are changed; every pair is a range drawn from uniformly."""

    speed: tuple[float, float] = (0.92, 1.08)
    """Ratio of playing speed, which moves pitch and formants along with the pace."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """Decibels of gain; whatever would clip is turned down."""
    noise_share: float = 0.7
    """Share of clips, 0 to 1, that get noise, a third each white, pink and babble."""
    snr_db: tuple[float, float] = (10.0, 35.0)
    """Decibels of the speech's mean power over the noise's."""
    room_share: float = 0.5
    """Share of clips, 0 to 1, heard in a room."""
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
        faults = [f"{name}={getattr(self, name)}" for name in RANGES if not _is_range(getattr(self, name))]
        faults += [f"{name}={getattr(self, name)}" for name in SHARES if not 0 <= getattr(self, name) <= 1]
        faults += [f"{name} below or at 0" for name in ("speed", "rt60_s") if min(getattr(self, name)) <= 0]
        faults += [f"{name} below 0" for name in ("lead_s", "trail_s") if min(getattr(self, name)) < 0]
        if faults:
            raise ConfigError(f"augmentation takes ranges as (low, high) and shares from 0 to 1; mend {', '.join(faults)}")


RANGES = ("speed", "gain_db", "snr_db", "rt60_s", "direct_db", "lead_s", "trail_s")
SHARES = ("noise_share", "room_share", "telephone_share")


def _is_range(pair) -> bool:
    return len(pair) == 2 and pair[0] <= pair[1]


class Augment:
    """Change one clip at random: speed, room, telephone, silence, noise and gain, in that order."""

    def __init__(self, config: AugmentConfig | None = None) -> None:
        self.config = config or AugmentConfig()

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
            samples = in_room(samples, rate_hz, rng.uniform(*config.rt60_s), rng.uniform(*config.direct_db), rng)
        if rng.random() < config.telephone_share:
            samples = band_limit(samples, rate_hz, *TELEPHONE_HZ)
        power = float(np.mean(np.square(samples)))
        around = [round(rng.uniform(*seconds) * rate_hz) for seconds in (config.lead_s, config.trail_s)]
        samples = np.pad(samples, around)
        if rng.random() < config.noise_share and power > SILENT**2:
            noise = NOISES[rng.integers(len(NOISES))](samples, rng)
            samples = samples + noise * np.sqrt(power / 10 ** (rng.uniform(*config.snr_db) / 10))
        loud = samples * 10 ** (rng.uniform(*config.gain_db) / 20)
        return within_full_scale(loud.astype(np.float32), CEILING)


def band_limit(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Keep the frequencies from `low_hz` to `high_hz` of samples [T], with edges 15 % wide."""
    size = 1 << (len(samples) + 511).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / rate_hz)
    rise = np.clip((hertz / low_hz - 0.85) / 0.15, 0, 1)
    fall = np.clip((1.15 - hertz / high_hz) / 0.15, 0, 1)
    return np.fft.irfft(np.fft.rfft(samples, size) * rise * fall, size)[: len(samples)].astype(np.float32)
