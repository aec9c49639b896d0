"""Recording of a corpus: clips are requested one by one and synthesized together.

A clip's file name is a digest of its text, voice and augmentation, so clips of an earlier build are
used again wherever they still fit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path

from echox.core.config import to_plain
from echox.core.errors import ConfigError
from echox.core.files import json_hash
from echox.corpora.augmentation import AugmentConfig
from echox.corpora.synthesis import Job, Report, synthesize
from echox.corpora.voices import Role, available_voices
from echox.corpora.voices.programs import PROGRAMS

CLIPS = "clips"
# Raised when voices or augmentation sound different, so that old clips are not taken for new ones.
REVISION = 2


class ClipRecorder:
    """The clips of one corpus.

    The same text by the same voice is the same file, in any build of the same seed.

    Args:
        folder: of the corpus; clips go to `clips` below it.
        seed: of voices and augmentation.
        augment: ranges of the augmentation.
    """

    def __init__(self, folder: Path, seed: int, augment: AugmentConfig) -> None:
        self.folder = folder
        self.seed = seed
        self.augment = augment
        self._jobs: dict[Path, Job] = {}

    def clip(self, text: str, voice: str, *, augmented: bool = False, take: int = 0) -> Path:
        """Request a clip.

        Args:
            text: English, which the voice can synthesize.
            voice: a name of `available_voices`.
            augmented: whether the clip is changed by `augment`.
            take: number of the rendition; other numbers are other clips of the same text.

        Returns:
            the path at which the clip will be once it is recorded.
        """
        augmentation = to_plain(self.augment) if augmented else None
        name = json_hash([REVISION, self.seed, text, voice, augmentation, take], digits=20)
        # 256 folders instead of one with tens of thousands of files.
        path = self.folder / CLIPS / name[:2] / f"{name}.flac"
        # Seeds of the clip's own, from digits of its name: a clip depends on no other clip.
        augment_seed = int(name[8:16], 16) if augmented else None
        self._jobs[path] = Job(text, voice, int(name[:8], 16), augment_seed, path)
        return path

    def record(self, workers: int | None) -> Report:
        """Synthesize the requested clips that do not exist yet, with a progress bar.

        Args:
            workers: processes; None for one per processor.

        Returns:
            counts, seconds of audio, and the clips that failed.

        Raises:
            OSError: the disk is full.
        """
        return synthesize(self._jobs.values(), workers=workers, augment=self.augment)

    def delete_unused(self) -> None:
        """Delete clips of earlier builds that were not requested from this recorder."""
        for path in (self.folder / CLIPS).glob("??/*.flac"):
            if path not in self._jobs:
                path.unlink()


def voices_of(role: Role, programs: bool) -> tuple[str, ...]:
    """Return the voices of a role on this machine.

    Args:
        role: what the voices may be used for.
        programs: include voices of programs that pip does not install.

    Raises:
        ConfigError: there is no such voice.
    """
    # In the order of `available_voices`, on which the draws of `assign_voices` depend.
    names = tuple(name for name in available_voices(role) if programs or not is_program(name))
    if not names:
        raise ConfigError(
            f"there is no voice for {role.value} clips on this machine; install hibari-tts"
        )
    return names


def is_program(voice: str) -> bool:
    """Return whether a voice belongs to a program that pip does not install."""
    return voice in PROGRAMS


def assign_voices(text: str, voices: Sequence[str], clips: int, seed: int) -> list[str]:
    """Choose the voice of each clip of a text.

    Synthesizers alternate, and each of their voices is used once before any is used again. The
    choice depends on nothing but the arguments, so with more clips or other texts the recorded ones
    stay in use.

    Args:
        text: of the clips.
        voices: names to choose from.
        clips: how many clips of the text there are.
        seed: of the corpus.

    Returns:
        names of voices [clips].
    """
    # A generator for each text: other texts do not change the voices of this one.
    order = random.Random(f"{seed} {text}").sample(voices, len(voices))
    by_synthesizer: dict[str, list[str]] = {}
    for voice in order:
        # Keys in the order of the shuffled voices: which synthesizer comes first is drawn too.
        by_synthesizer.setdefault(synthesizer_of(voice), []).append(voice)
    rounds = zip_longest(*by_synthesizer.values())
    # Synthesizers with fewer voices leave gaps in the later rounds.
    alternating = [voice for voices in rounds for voice in voices if voice is not None]
    return list(islice(cycle(alternating), clips))


def synthesizer_of(voice: str) -> str:
    """Return the synthesizer, with which the name of a voice begins."""
    return voice.partition("_")[0]
