"""Make clean questions sound like questions asked in rooms, over telephones and in company, the same way for the same seed."""

from dataclasses import dataclass

import numpy as np

from echox.corpora.resampling import resample
from echox.corpora.voices.base import within_full_scale
from echox.errors import ConfigError

TELEPHONE_HZ = (300.0, 3400.0)
EARLY_REFLECTIONS = 6
EARLY_S = (0.004, 0.040)
BABBLERS = 6
# The highest peak after augmentation, and the level below which a clip counts as silent.
CEILING, SILENT = 0.98, 1e-6


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


def in_room(samples: np.ndarray, rate_hz: int, rt60_s: float, direct_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add a room's early reflections and its decaying echo.

    Args:
        samples: [T].
        rate_hz: samples per second.
        rt60_s: seconds in which the echo falls by 60 dB.
        direct_db: power of the direct sound over that of everything after it.
        rng: draws the room.
    Returns:
        samples [T + rt60_s * rate_hz] float32, the direct sound in its place and at its level.
    """
    echo = room_response(rate_hz, rt60_s, rng)
    echo *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(np.square(echo)))
    echo[0] = 1.0
    T = len(samples) + len(echo) - 1
    size = 1 << (T - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echo, size), size)
    return wet[:T].astype(np.float32)


def room_response(rate_hz: int, rt60_s: float, rng: np.random.Generator) -> np.ndarray:
    """What follows the direct sound: a few early reflections, then noise that decays; 0 at the first sample."""
    T = max(round(rt60_s * rate_hz), round(EARLY_S[1] * rate_hz) + 1)
    decay = 10 ** (-3 * np.arange(T) / (rt60_s * rate_hz))
    response = rng.standard_normal(T) * decay
    # The dense echo sets in once the first walls have answered.
    response[: round(EARLY_S[1] / 2 * rate_hz)] = 0.0
    early = rng.integers(round(EARLY_S[0] * rate_hz), round(EARLY_S[1] * rate_hz), EARLY_REFLECTIONS)
    response[early] += rng.choice([-1.0, 1.0], EARLY_REFLECTIONS) * decay[early] * np.sqrt(rate_hz) / 20
    return response


def band_limit(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Keep the frequencies from `low_hz` to `high_hz` of samples [T], with edges 15 % wide."""
    size = 1 << (len(samples) + 511).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / rate_hz)
    rise = np.clip((hertz / low_hz - 0.85) / 0.15, 0, 1)
    fall = np.clip((1.15 - hertz / high_hz) / 0.15, 0, 1)
    return np.fft.irfft(np.fft.rfft(samples, size) * rise * fall, size)[: len(samples)].astype(np.float32)


def white(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise [T] of unit power, as long as the clip."""
    return rng.standard_normal(len(samples))


def pink(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise [T] of unit power that falls by 3 dB per octave, as long as the clip."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return of_unit_power(np.fft.irfft(spectrum, len(samples)))


def babble(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crowd [T] of unit power: the clip itself backwards, several times, each at its own pace and start."""
    crowd = np.zeros(len(samples))
    for pace in rng.uniform(0.8, 1.2, BABBLERS):
        talker = np.resize(resample(samples[::-1], pace), len(samples))
        crowd += np.roll(talker, rng.integers(len(samples)))
    return of_unit_power(crowd)


NOISES = (white, pink, babble)


def of_unit_power(samples: np.ndarray) -> np.ndarray:
    """Scale samples [T] to a mean power of 1; silence stays silent."""
    return samples / max(float(np.sqrt(np.mean(np.square(samples)))), SILENT)
