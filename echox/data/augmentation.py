"""Clips changed anew each time training meets them: pace, rooms, noise, and spans of their features hidden.

Every draw is a function of (seed, epoch, row, clip) alone, so a resumed run meets the same sounds, in whatever process they are made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echox.data.acoustics import NOISES, SILENT, convolved, in_room
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import Audio, audio_ref
from echox.data.resampling import resample
from echox.errors import ConfigError
from echox.signals import Features

# Of files in a folder of noises or rooms.
SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# An impulse response is cut here; what follows is inaudible in all but cathedrals.
LONGEST_ROOM_S = 2.0


@dataclass(kw_only=True, slots=True)
class AugmentationConfig:
    """How training clips are changed; every pair is a range drawn from uniformly. Pace, rooms and noise need the encoder at every step."""

    seed: int = 1
    """Seed of all draws."""
    speed_share: float = 0.0
    """Share of clips, 0 to 1, played at another speed."""
    speed: list[float] = field(default_factory=lambda: [0.9, 1.1])
    """Ratio of playing speed, which moves pitch and formants along with the pace."""
    room_share: float = 0.0
    """Share of clips, 0 to 1, heard in a room."""
    room_folder: str | None = None
    """Folder of recorded impulse responses, read at any depth; null draws rooms at random."""
    rt60_s: list[float] = field(default_factory=lambda: [0.1, 0.6])
    """Seconds in which a drawn room's echo falls by 60 dB."""
    direct_db: list[float] = field(default_factory=lambda: [0.0, 12.0])
    """Decibels of the direct sound's power over a drawn room's echo."""
    noise_share: float = 0.0
    """Share of clips, 0 to 1, that get noise."""
    noise_folder: str | None = None
    """Folder of recorded noises, read at any depth; null makes white, pink and babble, a third each."""
    snr_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    """Decibels of the speech's mean power over the noise's."""
    time_masks: int = 0
    """Spans of frames hidden in the features of each clip, as SpecAugment hides them."""
    time_mask_s: float = 0.3
    """Seconds of the longest span, which is a fifth of the clip at most."""
    channel_masks: int = 0
    """Bands of channels hidden in the features of each clip; of a mel encoder these are SpecAugment's frequencies."""
    channel_mask_share: float = 0.15
    """Share of the channels that the widest band covers."""

    def __post_init__(self) -> None:
        shares = ("speed_share", "room_share", "noise_share", "channel_mask_share")
        faults = [f"{name}={getattr(self, name)} is no share from 0 to 1" for name in shares if not 0 <= getattr(self, name) <= 1]
        for name in ("speed", "rt60_s", "direct_db", "snr_db"):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                faults.append(f"{name}={list(pair)} is no range [low, high]")
            elif name in ("speed", "rt60_s") and pair[0] <= 0:
                faults.append(f"{name}={list(pair)} must be above 0")
        faults += [f"{name}={getattr(self, name)} is below 0" for name in ("time_masks", "channel_masks", "time_mask_s") if getattr(self, name) < 0]
        if faults:
            raise ConfigError(f"augmentation cannot be: {'; '.join(faults)}")

    @property
    def changes_sound(self) -> bool:
        """Whether clips sound otherwise than they were recorded, so that features kept from before do not serve."""
        return max(self.speed_share, self.room_share, self.noise_share) > 0

    @property
    def hides_features(self) -> bool:
        """Whether spans of frames or channels are hidden."""
        return self.time_masks > 0 or self.channel_masks > 0


@dataclass(frozen=True, slots=True)
class DrawnClip:
    """A clip as training meets it once."""

    audio: Audio
    draw: str  # what every random choice about it follows from

    def random(self, purpose: str) -> np.random.Generator:
        """The source of chance for one purpose."""
        digest = hashlib.sha256(f"{self.draw} {purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class Augmentation:
    """Changes clips by a config.

    Raises:
        ConfigError: a folder of noises or rooms is missing or holds no sound.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        self.noises = _sounds("noise_folder", config.noise_folder)
        self.rooms = _sounds("room_folder", config.room_folder)

    def drawn(self, row_id: str, clips: Sequence[Audio], epoch: int) -> tuple[DrawnClip, ...]:
        """A row's clips as they are met in an epoch."""
        return tuple(DrawnClip(clip, f"{self.config.seed} {epoch} {number} {row_id}") for number, clip in enumerate(clips))

    def load(self, clip: DrawnClip, rate_hz: int) -> Tensor:
        """Read a clip and change its sound.

        Returns:
            samples [T'] float32 in [-1, 1] at `rate_hz`, turned down where they would clip.
        Raises:
            SignalError: the clip, a noise or a room cannot be read.
        """
        samples = load_audio(clip.audio, rate_hz)
        if not self.config.changes_sound:
            return samples
        changed = self._noisy(self._in_room(self._paced(samples.numpy(), clip), rate_hz, clip), rate_hz, clip)
        peak = float(np.abs(changed).max(initial=0.0))
        return torch.from_numpy(np.ascontiguousarray(changed / max(1.0, peak), dtype=np.float32))

    def _paced(self, samples: np.ndarray, clip: DrawnClip) -> np.ndarray:
        random = clip.random("speed")
        return resample(samples, 1 / random.uniform(*self.config.speed)) if random.random() < self.config.speed_share else samples

    def _in_room(self, samples: np.ndarray, rate_hz: int, clip: DrawnClip) -> np.ndarray:
        """The clip in a room, cut to its own length: what rings on after it is silence of the recording."""
        random, T = clip.random("room"), len(samples)
        if random.random() >= self.config.room_share:
            return samples
        if self.rooms is None:
            return in_room(samples, rate_hz, random.uniform(*self.config.rt60_s), random.uniform(*self.config.direct_db), random)[:T]
        response = load_audio(self.rooms[random.integers(len(self.rooms))], rate_hz).numpy()
        direct = int(np.abs(response).argmax())
        response = response[direct : direct + round(LONGEST_ROOM_S * rate_hz)]
        # The direct sound keeps its level and its place.
        return convolved(samples, response / (response[0] or 1.0))[:T]

    def _noisy(self, samples: np.ndarray, rate_hz: int, clip: DrawnClip) -> np.ndarray:
        random = clip.random("noise")
        power = float(np.mean(np.square(samples)))
        if random.random() >= self.config.noise_share or power <= SILENT**2:
            return samples
        noise = self._noise(samples, rate_hz, random)
        loudness = float(np.mean(np.square(noise)))
        wanted = power / 10 ** (random.uniform(*self.config.snr_db) / 10)
        return samples + noise * math.sqrt(wanted / max(loudness, SILENT**2))

    def _noise(self, samples: np.ndarray, rate_hz: int, random: np.random.Generator) -> np.ndarray:
        if self.noises is None:
            return NOISES[random.integers(len(NOISES))](samples, random)
        path = self.noises[random.integers(len(self.noises))]
        found_s, wanted_s = audio_header(path).duration_s, len(samples) / rate_hz
        # Of a long noise only the seconds that are heard are decoded.
        start_s = random.uniform(0, max(0.0, found_s - wanted_s))
        noise = load_audio(audio_ref(path).between(start_s, min(found_s, start_s + wanted_s)), rate_hz).numpy()
        return np.resize(noise, len(samples))

    def hidden(self, features: Features, clips: Sequence[DrawnClip]) -> Features:
        """Features [B, F, D] of clips with spans of frames and bands of channels set to the clip's mean, which tells nothing.

        Source: SpecAugment, Park et al. 2019, arXiv:1904.08779, section 2, without the warping of time.
        """
        if not self.config.hides_features:
            return features
        values = features.values.clone()
        for row, (clip, length) in enumerate(zip(clips, features.lengths.tolist())):
            random, heard = clip.random("masks"), values[row, :length]
            longest = min(self.config.time_mask_s * features.rate_hz, length / 5)
            frames = [_span(random, length, longest) for _ in range(self.config.time_masks)]
            channels = [_span(random, heard.shape[1], self.config.channel_mask_share * heard.shape[1]) for _ in range(self.config.channel_masks)]
            mean = heard.mean(dim=0)
            for start, end in frames:
                heard[start:end] = mean
            for start, end in channels:
                heard[:, start:end] = mean[start:end]
        return Features(values, features.lengths, features.rate_hz)


def _span(random: np.random.Generator, whole: int, longest: float) -> tuple[int, int]:
    """A span of 0 to `longest` places somewhere in `whole`."""
    size = min(whole, int(random.uniform(0, longest + 1)))
    start = int(random.integers(whole - size + 1))
    return start, start + size


def _sounds(field_name: str, folder: str | None) -> list[Path] | None:
    if folder is None:
        return None
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SOUND_ENDINGS)
    if not found:
        raise ConfigError(f"augmentation.{field_name} is {folder!r}, which holds no {', '.join(SOUND_ENDINGS)}; name a folder with recordings, or null")
    return found
