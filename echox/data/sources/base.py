"""The base of sources of speech: each yields rows of a manifest, and names what it cannot read."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from echox.core.config import near
from echox.core.errors import ConfigError, ManifestError
from echox.core.packages import OptionalPackage
from echox.data.rows import LONGEST_S, as_number

# Bytes of a file of words or labels at most, for it is read whole.
LABEL_BYTES = 16 << 20
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
# Names of columns that an error lists.
_LISTED_COLUMNS = 30
# Names of columns in tables and JSON files; the first that is present is used.
KNOWN_COLUMNS = {
    "audio": ("audio", "path", "wav", "file", "audio_filepath", "audio_path", "file_name"),
    "text": (
        "text",
        "transcription",
        "transcript",
        "sentence",
        "normalized_text",
        "tgt_text",
        "words",
    ),
    "speaker": ("speaker", "speaker_id", "client_id", "spk"),
    "seconds": ("duration_s", "duration"),
    "id": ("id", "utt_id", "utt", "key"),
    "units": ("units", "unit", "tgt_audio"),
}


class Speaker(Enum):
    """The side of a conversation whose speech the clips of a source are."""

    user = "user"  # the words become the transcription
    assistant = "assistant"  # the words become the text of the answer


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """How a source is read."""

    speaker: Speaker = Speaker.user
    """Whose speech the clips are, where the source does not say: user for speech to be understood,
    assistant for speech to be learned."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns, where they are called otherwise: columns.text=sentence; of audio, text,
    speaker, seconds, id, units."""
    audio_root: str | None = None
    """Folder that paths in a table are relative to; null is the table's own."""
    speaker_level: int | None = None
    """Which folder names the speaker of a clip, below the source, counted from 1; 1 in
    LibriSpeech's train-clean-100."""
    untranscribed: bool = False
    """Keep clips without words too."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.columns if name not in KNOWN_COLUMNS]:
            raise ConfigError(
                f"columns.{unknown[0]} is unknown{near(unknown[0], KNOWN_COLUMNS)}; "
                f"columns are {', '.join(KNOWN_COLUMNS)}"
            )
        if self.speaker_level is not None and self.speaker_level < 1:
            raise ConfigError(f"speaker_level is {self.speaker_level}; folders are counted from 1")


@dataclass(frozen=True, slots=True)
class AudioBytes:
    """A clip whose bytes stand where no manifest can point to; they are copied into a shard."""

    data: bytes
    ending: str  # of a file's name, with the dot


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An entry of a source that is a row."""

    name: str  # the row's id, unless it states its own
    # As in a manifest, but audio is an absolute path (perhaps with `:OFFSET:LENGTH`) or
    # `AudioBytes`.
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SourceFault:
    """An entry of a source that is no row."""

    name: str
    reason: str


class Source(ABC):
    """A stream of entries from which rows are made, in an order that never changes.

    Args:
        path: the file or folder, absolute.
        prefix: begins the names of this source's rows, to tell them from other sources'.
        config: how the source is read.
    """

    packages: ClassVar[tuple[OptionalPackage, ...]] = ()
    """Optional packages that reading the source needs."""

    def __init__(self, path: Path, prefix: str, config: SourceConfig) -> None:
        self.path, self.prefix, self.config = path, prefix, config

    @abstractmethod
    def entries(self) -> Iterator[SourceRow | SourceFault]:
        """Yield all entries without opening clips.

        Raises:
            ManifestError: the source cannot be read at all.
        """

    def after(self, count: int) -> Iterator[SourceRow | SourceFault]:
        """Yield the entries after the first `count`, to resume from them."""
        # By reading the first ones again; a source that can skip them overrides this.
        return itertools.islice(self.entries(), count, None)

    def clip_row(
        self,
        name: str,
        audio: str | AudioBytes,
        text: str,
        *,
        seconds: Any = None,
        units: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SourceRow | SourceFault:
        """Make a row of a clip and its words.

        Args:
            name: id of the row.
            audio: absolute path of the clip, or its bytes.
            text: words of the clip; "" is a fault, unless the config keeps clips without words.
            seconds: seconds of the clip, where the source states them; what is no usable number is
                left out.
            units: units of the clip, for an answer alone.
            extra: other keys of the row; None and "" are left out.
        """
        text = text.strip()
        if not text and not self.config.untranscribed:
            reason = "has no words; put them beside it, or set untranscribed=true"
            return SourceFault(name, reason)
        stated_s = as_number(seconds) or 0.0
        clip: dict[str, Any] = {"audio": audio}
        if 0 < stated_s <= LONGEST_S:
            clip["duration_s"] = round(stated_s, 3)
        if self.config.speaker is Speaker.assistant:
            turns = [{"from": "assistant", "value": text, **clip}]
            turns[0] |= {"units": units} if units else {}
        else:
            turns = [{"from": "user", "value": "", **clip}]
            # A user's words stand as the transcription in the turn that follows.
            if text:
                turns.append({"from": "assistant", "value": "", "transcription": text})
        # Tables have empty fields where a row has no value.
        stated = {key: value for key, value in (extra or {}).items() if value not in (None, "")}
        return SourceRow(name, {**stated, "conversations": turns})

    def speaker_of(self, relative: Path) -> str | None:
        """Return the folder that names a clip's speaker, None where the config names no level.

        Args:
            relative: path of the clip below the source.
        """
        level = self.config.speaker_level
        # The last part of the path is the clip itself.
        if level is None or level >= len(relative.parts):
            return None
        return relative.parts[level - 1]

    def columns_of(self, present: list[str]) -> Columns:
        """Return the columns of a table by what they hold.

        Args:
            present: names of all its columns.

        Raises:
            ManifestError: none of them is known to name audio, or one that the config names is
                missing.
        """
        more = len(present) - _LISTED_COLUMNS
        listed = ", ".join(present[:_LISTED_COLUMNS]) or "none"
        listed += f" and {more:,} more" if more > 0 else ""
        columns = Columns(present, self.config.columns)
        if columns.names["audio"] is None:
            raise ManifestError(
                f"{self.path} has the columns {listed}, "
                "none of which is known to name audio; set columns.audio=NAME"
            )
        missing = [
            f"{name} (columns.{what})"
            for what, name in self.config.columns.items()
            if name not in present
        ]
        if missing:
            raise ManifestError(
                f"{self.path} has the columns {listed}, and not {', '.join(missing)}"
            )
        return columns

    @property
    def root(self) -> Path:
        """Folder that the source's paths are relative to."""
        root = self.config.audio_root
        return Path(root).absolute() if root else self.path.parent


class Columns:
    """The columns of a table by what they hold.

    Args:
        present: names of the table's columns, or a row whose keys are the names.
        named: what -> the column that the config names for it.
    """

    def __init__(self, present: Mapping[str, Any] | list[str], named: Mapping[str, str]) -> None:
        candidates = {
            what: (named[what],) if what in named else names
            for what, names in KNOWN_COLUMNS.items()
        }
        # What the config names goes before the usual names, even where it is missing.
        self.names = {
            what: next((name for name in names if name in present), None)
            for what, names in candidates.items()
        }

    def get(self, row: Mapping[str, Any], what: str) -> Any:
        """Return a row's value of what a column holds, None where there is no such column."""
        name = self.names[what]
        return None if name is None else row.get(name)

    def others(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the strings, numbers and booleans of a row that are in no known column."""
        # Arrays and structs, as of other media, do not belong into a manifest.
        return {
            key: value
            for key, value in row.items()
            if key not in self.names.values() and isinstance(value, (str, int, float, bool))
        }
