"""A folder of clips with their words beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from echox.data.sources.base import AUDIO_ENDINGS, Fault, Found, Source

# Endings of a file of words beside a clip; the written-out form of LibriTTS goes before the original.
WORDS_BESIDE = (".normalized.txt", ".normalized", ".txt", ".lab")
# LibriSpeech has one file of words a chapter: an id and its words a line.
WORDS_OF_FOLDER = ".trans.txt"


class FolderSource(Source):
    """Clips below a folder; words in NAME.normalized.txt, NAME.txt or NAME.lab beside them, or in LibriSpeech's *.trans.txt."""

    def entries(self) -> Iterator[Found | Fault]:
        seen: set[tuple[int, int]] = set()
        unread: list[OSError] = []
        for folder, below, names in os.walk(self.path, followlinks=True, onerror=unread.append):
            # A link to a folder above would otherwise be walked for ever.
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                below.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield from self._folder(Path(folder), sorted(names))
        yield from (Fault(str(error.filename), f"the folder cannot be read ({error.strerror})") for error in unread)

    def _folder(self, folder: Path, names: list[str]) -> Iterator[Found | Fault]:
        clips = [name for name in names if name.lower().endswith(AUDIO_ENDINGS) and not name.startswith(".")]
        if not clips:
            return
        words = _words_of_folder(folder, names)
        present = set(names)
        for name in clips:
            yield self._clip(folder / name, words, present)

    def _clip(self, clip: Path, words: dict[str, str], present: set[str]) -> Found | Fault:
        relative = clip.relative_to(self.path).with_suffix("")
        name = "/".join(part for part in (self.prefix, relative.as_posix()) if part)
        try:
            text = words.get(clip.stem) or _words_beside(clip, present)
        except (OSError, UnicodeDecodeError) as error:
            return Fault(name, f"its words cannot be read ({error})")
        return self.spoken(name, str(clip), text, speaker=self.speaker_of(relative))


def _words_beside(clip: Path, present: set[str]) -> str:
    for ending in WORDS_BESIDE:
        if clip.stem + ending in present:
            return " ".join(clip.with_name(clip.stem + ending).read_text(encoding="utf-8-sig").split())
    return ""


def _words_of_folder(folder: Path, names: list[str]) -> dict[str, str]:
    words = {}
    for name in names:
        if name.endswith(WORDS_OF_FOLDER):
            for line in (folder / name).read_text(encoding="utf-8-sig", errors="replace").splitlines():
                key, _, text = line.strip().partition(" ")
                words[key] = text
    return words
