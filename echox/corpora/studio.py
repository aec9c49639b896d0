"""Where a corpus is spoken: clips are asked for one by one, named by what they say and who says it, and recorded together."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path

from echox.config import to_plain
from echox.corpora.augmentation import AugmentConfig
from echox.corpora.synthesis import Job, Report, synthesise
from echox.corpora.voices import Role, available_voices
from echox.corpora.voices.programs import PROGRAMS
from echox.errors import ConfigError

CLIPS = "clips"
# Change it when voices or augmentation sound different, so that old clips are not taken for new ones.
REVISION = 2


class Studio:
    """The clips of one corpus. The same words by the same voice are the same file, in any build of the same seed."""

    def __init__(self, folder: Path, seed: int, augment: AugmentConfig) -> None:
        self.folder = folder
        self.seed = seed
        self.augment = augment
        self._jobs: dict[Path, Job] = {}

    def clip(self, text: str, voice: str, *, augmented: bool = False, take: int = 0) -> Path:
        """Ask for a text in a voice; the path is where it will be once recorded. Another `take` is another clip of the same."""
        change = to_plain(self.augment) if augmented else None
        name = digest([REVISION, self.seed, text, voice, change, take], digits=20)
        path = self.folder / CLIPS / name[:2] / f"{name}.flac"
        # Other digits of the name seed the voice and the augmentation.
        self._jobs[path] = Job(text, voice, int(name[:8], 16), int(name[8:16], 16) if augmented else None, path)
        return path

    def record(self, workers: int | None) -> Report:
        """Speak what was asked for and is not there yet, with a progress bar."""
        return synthesise(self._jobs.values(), workers=workers, augment=self.augment)

    def clear_leftovers(self) -> None:
        """Delete clips that an earlier build made and this one did not ask for."""
        for path in (self.folder / CLIPS).glob("??/*.flac"):
            if path not in self._jobs:
                path.unlink()


def voices_of(role: Role, programs: bool) -> tuple[str, ...]:
    """Voices of a role; of those that are programs on this machine, only if `programs` says so.

    Raises:
        ConfigError: there is none.
    """
    names = tuple(name for name in available_voices(role) if programs or not is_program(name))
    if not names:
        raise ConfigError(f"there is no voice for {role.value} clips on this machine; install hibari-tts")
    return names


def is_program(voice: str) -> bool:
    """Whether a voice belongs to a program that pip does not install."""
    return voice in PROGRAMS


def cast(text: str, voices: Sequence[str], clips: int, seed: int) -> list[str]:
    """Who speaks each clip of a text: synthesisers take turns, and all their voices are heard before one comes again.

    It depends on nothing but the text, so that more clips or other texts leave those that are recorded in use.
    """
    order = random.Random(f"{seed} {text}").sample(voices, len(voices))
    by_make: dict[str, list[str]] = {}
    for voice in order:
        by_make.setdefault(make_of(voice), []).append(voice)
    in_turn = [voice for turn in zip_longest(*by_make.values()) for voice in turn if voice is not None]
    return list(islice(cycle(in_turn), clips))


def make_of(voice: str) -> str:
    """The synthesiser a voice's name begins with."""
    return voice.partition("_")[0]


def digest(value: object, digits: int = 16) -> str:
    """Hex digits that stand for a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]
