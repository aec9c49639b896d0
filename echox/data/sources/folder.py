"""A folder of clips with their words beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from echox.core.errors import ManifestError
from echox.data.sources.base import AUDIO_ENDINGS, LABEL_BYTES, Source, SourceFault, SourceRow

# Endings of a file of words beside a clip; the written-out form of LibriTTS precedes the original.
WORDS_BESIDE = (".normalized.txt", ".normalized", ".txt", ".lab")
# LibriSpeech has one file of words a chapter: an id and its words a line.
WORDS_OF_FOLDER = ".trans.txt"


class FolderSource(Source):
    """Clips below a folder, at any depth, with their words in files beside them.

    Words are read from NAME.normalized.txt, NAME.normalized, NAME.txt or NAME.lab, or from
    LibriSpeech's *.trans.txt.
    """

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        seen: set[tuple[int, int]] = set()
        errors: list[OSError] = []
        walk = os.walk(self.path, followlinks=True, onerror=errors.append)
        for folder, subfolders, names in walk:
            # A link to a folder above would otherwise be walked for ever.
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            # In place, which tells `os.walk` the order and what to leave out.
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from self._folder(Path(folder), sorted(names))
        for error in errors:
            reason = f"the folder cannot be read ({error.strerror})"
            yield SourceFault(str(error.filename), reason)

    def _folder(self, folder: Path, names: list[str]) -> Iterator[SourceRow | SourceFault]:
        clips = [
            name
            for name in names
            if name.lower().endswith(AUDIO_ENDINGS) and not name.startswith(".")
        ]
        if not clips:
            return
        try:
            words = _words_of_folder(folder, names)
        except (OSError, ManifestError) as error:
            yield SourceFault(str(folder), f"the words of its clips cannot be read ({error})")
            words = {}
        # Looked up in a set: asking the disk for each ending of each clip would be slow.
        present = set(names)
        for name in clips:
            yield self._clip(folder / name, words, present)

    def _clip(
        self, clip: Path, words: dict[str, str], present: set[str]
    ) -> SourceRow | SourceFault:
        relative = clip.relative_to(self.path).with_suffix("")
        name = "/".join(part for part in (self.prefix, relative.as_posix()) if part)
        try:
            text = words.get(clip.stem) or _words_beside(clip, present)
        except (OSError, UnicodeDecodeError, ManifestError) as error:
            return SourceFault(name, f"its words cannot be read ({error})")
        return self.clip_row(name, str(clip), text, extra={"speaker": self.speaker_of(relative)})


def _words_beside(clip: Path, present: set[str]) -> str:
    for ending in WORDS_BESIDE:
        name = clip.stem + ending
        if name in present:
            return " ".join(_label(clip.with_name(name)).decode("utf-8-sig").split())
    return ""


def _label(path: Path) -> bytes:
    """Bytes of a file of words.

    Raises:
        ManifestError: it is a pipe, a device or a folder, or too large to hold words of clips.
    """
    # Opening a pipe would wait for a process that writes to it, and a device may have no end.
    if not path.is_file():
        raise ManifestError(f"{path.name} is no regular file")
    if path.stat().st_size > LABEL_BYTES:
        raise ManifestError(f"{path.name} has more than {LABEL_BYTES >> 20} MiB")
    return path.read_bytes()


def _words_of_folder(folder: Path, names: list[str]) -> dict[str, str]:
    """Words by the clip's name without its ending, from LibriSpeech's files of a chapter."""
    words = {}
    for name in names:
        if name.endswith(WORDS_OF_FOLDER):
            # Bad bytes spoil their own line alone.
            text = _label(folder / name).decode("utf-8-sig", errors="replace")
            for line in text.split("\n"):
                key, _, line_words = line.strip().partition(" ")
                words[key] = line_words
    return words
