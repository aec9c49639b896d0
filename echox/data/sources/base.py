"""What a source of speech gives: rows of a manifest, and by name what it could not read."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from echox.config import near
from echox.errors import ConfigError
from echox.packages import OptionalPackage

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
# What tables and JSON files call the same things; the first that is there is taken.
KNOWN_COLUMNS = {
    "audio": ("audio", "path", "wav", "file", "audio_filepath", "audio_path", "file_name"),
    "text": ("text", "transcription", "transcript", "sentence", "normalized_text", "tgt_text", "words"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk"),
    "seconds": ("duration_s", "duration"),
    "id": ("id", "utt_id", "utt", "key"),
    "units": ("units", "unit", "tgt_audio"),
}


class Speaker(Enum):
    """Whose speech the clips of a source are."""

    user = "user"  # heard: the words become the transcription
    assistant = "assistant"  # spoken: the words are what is said


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """How a source is read."""

    speaker: Speaker = Speaker.user
    """Whose speech the clips are, where the source does not say: user for speech to be understood, assistant for speech to be learned."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns, where they are called otherwise: columns.text=sentence; of audio, text, speaker, seconds, id, units."""
    audio_root: str | None = None
    """Folder that paths in a table are relative to; null is the table's own."""
    speaker_level: int | None = None
    """Which folder names the speaker of a clip, below the source, counted from 1; 1 in LibriSpeech's train-clean-100."""
    untranscribed: bool = False
    """Keep clips without words too."""

    def __post_init__(self) -> None:
        if unknown := [what for what in self.columns if what not in KNOWN_COLUMNS]:
            raise ConfigError(f"columns.{unknown[0]} is unknown{near(unknown[0], KNOWN_COLUMNS)}; columns are {', '.join(KNOWN_COLUMNS)}")
        if self.speaker_level is not None and self.speaker_level < 1:
            raise ConfigError(f"speaker_level is {self.speaker_level}; folders are counted from 1")


@dataclass(frozen=True, slots=True)
class Content:
    """A clip whose bytes lie where no manifest can point to; they are copied into a shard."""

    data: bytes
    ending: str  # of a file's name, with the dot


@dataclass(frozen=True, slots=True)
class Found:
    """One row."""

    name: str  # the row's id, unless it brings its own
    record: dict[str, Any]  # as in a manifest, but audio is an absolute path (with `:OFFSET:LENGTH`, maybe) or a `Content`


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry that is no row."""

    name: str
    reason: str


class Source(ABC):
    """Something that rows are made from, as a stream in an order that never changes.

    Args:
        path: the file or folder, absolute.
        prefix: what tells this source's rows from another's.
    """

    packages: ClassVar[tuple[OptionalPackage, ...]] = ()
    """What reading it needs beside echox."""

    def __init__(self, path: Path, prefix: str, config: SourceConfig) -> None:
        self.path, self.prefix, self.config = path, prefix, config

    @abstractmethod
    def entries(self) -> Iterator[Found | Fault]:
        """All entries, cheaply: clips are not opened."""

    def after(self, count: int) -> Iterator[Found | Fault]:
        """The entries after the first `count`."""
        return itertools.islice(self.entries(), count, None)

    def spoken(self, name: str, audio: str | Content, text: str, *, seconds: Any = None, units: Any = None, **extra: Any) -> Found | Fault:
        """A clip and its words as a row."""
        text = text.strip()
        if not text and not self.config.untranscribed:
            return Fault(name, "has no words; put them beside it, or set untranscribed=true")
        clip = {"audio": audio} | ({"duration_s": round(float(seconds), 3)} if seconds else {})
        if self.config.speaker is Speaker.assistant:
            turns = [{"from": "assistant", "value": text, **clip}]
            turns[0] |= {"units": units} if units else {}
        else:
            turns = [{"from": "user", "value": "", **clip}, *([{"from": "assistant", "value": "", "transcription": text}] if text else [])]
        return Found(name, {**{key: value for key, value in extra.items() if value not in (None, "")}, "conversations": turns})

    def speaker_of(self, relative: Path) -> str | None:
        """The folder that names a clip's speaker."""
        level = self.config.speaker_level
        return relative.parts[level - 1] if level is not None and level < len(relative.parts) else None


class Columns:
    """Which column of a table holds what."""

    def __init__(self, present: Mapping[str, Any] | list[str], named: Mapping[str, str]) -> None:
        known = {what: (named[what],) if what in named else names for what, names in KNOWN_COLUMNS.items()}
        self.names = {what: next((name for name in names if name in present), None) for what, names in known.items()}

    def get(self, row: Mapping[str, Any], what: str) -> Any:
        """A row's value, None where there is no such column."""
        name = self.names[what]
        return None if name is None else row.get(name)

    def others(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a row holds beside the known columns, as far as it is plain."""
        return {key: value for key, value in row.items() if key not in self.names.values() and isinstance(value, (str, int, float, bool))}
