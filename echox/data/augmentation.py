"""Augmentation of training clips: speed, reverberation, noise, and masked spans of their features.

Every draw is a function of (seed, epoch, row, clip) alone, so a resumed run trains on the same
sounds, whichever process makes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.core.signals import Features
from echox.data.acoustics import NOISES, SILENT, convolve, in_room
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import Audio, audio_ref
from echox.data.resampling import resample

# Endings of the files that are read from a folder of noises or impulse responses.
SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# Seconds at which an impulse response is cut; what follows is inaudible in all but cathedrals.
LONGEST_ROOM_S = 2.0

_SHARES = ("speed_share", "room_share", "noise_share", "channel_mask_share")
_RANGES = ("speed", "rt60_s", "direct_db", "snr_db")
# A speed or a reverberation time of zero would divide by zero; decibels may have either sign.
_POSITIVE_RANGES = ("speed", "rt60_s")


@dataclass(kw_only=True, slots=True)
class AugmentationConfig:
    """How training clips are changed; every pair is a range that is drawn from uniformly.

    Speed, rooms and noise need the encoder at every step.
    """

    seed: int = 1
    """Seed of all draws."""
    speed_share: float = 0.0
    """Share of clips, 0 to 1, played at another speed."""
    speed: list[float] = field(default_factory=lambda: [0.9, 1.1])
    """Ratio of playing speed, which moves pitch and formants along with the pace."""
    room_share: float = 0.0
    """Share of clips, 0 to 1, recorded as if in a room."""
    room_folder: str | None = None
    """Folder of recorded impulse responses, read at any depth; null draws rooms at random."""
    rt60_s: list[float] = field(default_factory=lambda: [0.1, 0.6])
    """Seconds in which a drawn room's echo falls by 60 dB."""
    direct_db: list[float] = field(default_factory=lambda: [0.0, 12.0])
    """Decibels of the direct sound's power over a drawn room's echo."""
    noise_share: float = 0.0
    """Share of clips, 0 to 1, that get noise."""
    noise_folder: str | None = None
    """Folder of recorded noises, read at any depth; null makes white, pink and babble, a third
    each."""
    snr_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    """Decibels of the speech's mean power over the noise's."""
    time_masks: int = 0
    """Spans of frames hidden in the features of each clip, as SpecAugment hides them."""
    time_mask_s: float = 0.3
    """Seconds of the longest span, which is a fifth of the clip at most."""
    channel_masks: int = 0
    """Bands of channels hidden in the features of each clip; of a mel encoder these are
    SpecAugment's frequencies."""
    channel_mask_share: float = 0.15
    """Share of the channels that the widest band covers."""

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise ConfigError(f"augmentation cannot be: {'; '.join(faults)}")

    def _faults(self) -> Iterator[str]:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}={getattr(self, name)} is no share from 0 to 1"
        for name in _RANGES:
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                yield f"{name}={list(pair)} is no range [low, high]"
            elif name in _POSITIVE_RANGES and pair[0] <= 0:
                yield f"{name}={list(pair)} must be above 0"
        for name in ("time_masks", "channel_masks", "time_mask_s"):
            if not getattr(self, name) >= 0:
                yield f"{name}={getattr(self, name)} is below 0"

    @property
    def changes_sound(self) -> bool:
        """Whether waveforms change, so that features cached from the recordings do not serve."""
        return max(self.speed_share, self.room_share, self.noise_share) > 0

    @property
    def hides_features(self) -> bool:
        """Whether spans of frames or channels are masked."""
        return self.time_masks > 0 or self.channel_masks > 0


@dataclass(frozen=True, slots=True)
class DrawnClip:
    """A clip with the seed of its random changes in one epoch."""

    audio: Audio
    draw: str  # seed, epoch, number and row, from which every random choice follows

    def random(self, purpose: str) -> np.random.Generator:
        """Return the random generator of one purpose.

        Purposes have generators of their own, so that switching one kind of change on or off leaves
        the draws of the others as they were.
        """
        # Not `hash`, which differs between processes.
        digest = hashlib.sha256(f"{self.draw} {purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class Augmentation:
    """Changes clips and their features as a config says.

    Raises:
        ConfigError: a folder of noises or rooms is missing or holds no sound.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.noises = _sound_files("noise_folder", config.noise_folder)
        self.rooms = _sound_files("room_folder", config.room_folder)

    def drawn(self, row_id: str, clips: Sequence[Audio], epoch: int) -> tuple[DrawnClip, ...]:
        """Return the clips [N] of a row with the seeds of their changes in an epoch."""
        return tuple(
            DrawnClip(clip, f"{self.config.seed} {epoch} {number} {row_id}")
            for number, clip in enumerate(clips)
        )

    def load(self, clip: DrawnClip, rate_hz: int) -> Tensor:
        """Read a clip and change its sound.

        Returns:
            samples [T'] float32 in [-1, 1] at `rate_hz`, scaled down where they would clip.

        Raises:
            SignalError: the clip, a noise or an impulse response cannot be read.
        """
        samples = load_audio(clip.audio, rate_hz)
        if not self.config.changes_sound:
            return samples
        # In the order of a recording: the talker, the room, the noise at the microphone.
        changed = self._change_speed(samples.numpy(), clip)
        changed = self._add_room(changed, rate_hz, clip)
        changed = self._add_noise(changed, rate_hz, clip)
        peak = float(np.abs(changed).max(initial=0.0))
        return torch.from_numpy(np.ascontiguousarray(changed / max(1.0, peak), dtype=np.float32))

    def _change_speed(self, samples: np.ndarray, clip: DrawnClip) -> np.ndarray:
        rng = clip.random("speed")
        if rng.random() >= self.config.speed_share:
            return samples
        return resample(samples, 1 / _between(rng, self.config.speed))

    def _add_room(self, samples: np.ndarray, rate_hz: int, clip: DrawnClip) -> np.ndarray:
        """Put the clip [T] in a room, cut to [T]: reverberation after its end is not kept."""
        rng, T = clip.random("room"), len(samples)
        if rng.random() >= self.config.room_share:
            return samples
        if self.rooms is None:
            rt60_s = _between(rng, self.config.rt60_s)
            direct_db = _between(rng, self.config.direct_db)
            return in_room(samples, rate_hz, rt60_s, direct_db, rng)[:T]
        response = load_audio(self.rooms[rng.integers(len(self.rooms))], rate_hz).numpy()
        # A recorded response begins with the delay from loudspeaker to microphone.
        direct = int(np.abs(response).argmax())
        response = response[direct : direct + round(LONGEST_ROOM_S * rate_hz)]
        # Divided by its first sample, so that the direct sound keeps its level.
        return convolve(samples, response / (response[0] or 1.0))[:T]

    def _add_noise(self, samples: np.ndarray, rate_hz: int, clip: DrawnClip) -> np.ndarray:
        rng = clip.random("noise")
        power = float(np.mean(np.square(samples)))
        # Of a silent clip no ratio of speech to noise can be kept.
        if rng.random() >= self.config.noise_share or power <= SILENT**2:
            return samples
        noise = self._draw_noise(samples, rate_hz, rng)
        noise_power = float(np.mean(np.square(noise)))
        target_power = power / 10 ** (_between(rng, self.config.snr_db) / 10)
        return samples + noise * math.sqrt(target_power / max(noise_power, SILENT**2))

    def _draw_noise(
        self, samples: np.ndarray, rate_hz: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Noise [T] for the clip [T]; a recording shorter than the clip is repeated."""
        if self.noises is None:
            return NOISES[rng.integers(len(NOISES))](samples, rng)
        path = self.noises[rng.integers(len(self.noises))]
        noise_s, clip_s = audio_header(path).duration_s, len(samples) / rate_hz
        # Of a long noise only the seconds that are used are decoded.
        start_s = rng.uniform(0, max(0.0, noise_s - clip_s))
        part = audio_ref(path).between(start_s, min(noise_s, start_s + clip_s))
        return np.resize(load_audio(part, rate_hz).numpy(), len(samples))

    def hidden(self, features: Features, clips: Sequence[DrawnClip]) -> Features:
        """Mask spans of frames and bands of channels of features [B, F, D].

        Masked values become the clip's mean over time [D], which carries no content.

        Args:
            features: features of the clips, in their order; they are left as they are.
            clips: clips [B] whose seeds draw the masks.

        Returns:
            features [B, F, D]; frames beyond a clip's length are not touched.

        Source:
            SpecAugment, Park et al. 2019, arXiv:1904.08779, section 2, without time warping.
        """
        if not self.config.hides_features:
            return features
        # The caller's features stay as they are.
        values = features.values.clone()
        for index, (clip, length) in enumerate(zip(clips, features.lengths.tolist())):
            self._mask(values[index, :length], features.rate_hz, clip)
        return Features(values, features.lengths, features.rate_hz)

    def _mask(self, values: Tensor, rate_hz: float, clip: DrawnClip) -> None:
        """Mask the features [F, D] of one clip in place."""
        rng = clip.random("masks")
        F, D = values.shape
        # At most a fifth of a clip, or short ones would be hidden altogether.
        longest = min(self.config.time_mask_s * rate_hz, F / 5)
        widest = self.config.channel_mask_share * D
        frames = [_draw_span(rng, F, longest) for _ in range(self.config.time_masks)]
        channels = [_draw_span(rng, D, widest) for _ in range(self.config.channel_masks)]
        # Before any masking, or masks would be filled with means of one another.
        mean = values.mean(dim=0)  # [D]
        for start, end in frames:
            values[start:end] = mean
        for start, end in channels:
            values[:, start:end] = mean[start:end]


def _between(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    low, high = bounds
    return rng.uniform(low, high)


def _draw_span(rng: np.random.Generator, length: int, longest: float) -> tuple[int, int]:
    """Draw start and end of a span of 0 to `longest` positions within `length`."""
    # `int` rounds down; without `+ 1` the longest span would hardly ever be drawn.
    size = min(length, int(rng.uniform(0, longest + 1)))
    start = int(rng.integers(length - size + 1))
    return start, start + size


def _sound_files(field_name: str, folder: str | None) -> list[Path] | None:
    if folder is None:
        return None
    # Sorted, so that a draw means the same file on every machine.
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SOUND_ENDINGS)
    if not files:
        raise ConfigError(
            f"augmentation.{field_name} is {folder!r}, which holds no {', '.join(SOUND_ENDINGS)}; "
            "name a folder with recordings, or null"
        )
    return files
