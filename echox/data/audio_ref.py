"""Where a clip lies: a file, the bytes of one inside a larger file, or some seconds of either.

A manifest names bytes inside a larger file as fairseq does, `shards/a.tar:OFFSET:LENGTH`; they are those of a whole audio file. The
seconds are the item's `start_s` and `end_s`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from echox.errors import SignalError

_BYTES = re.compile(r"(?P<file>.+):(?P<offset>\d+):(?P<length>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AudioRef:
    """A clip that need not be a whole file."""

    file: Path
    offset_bytes: int | None = None  # of the clip's first byte in the file; None where the clip is the file
    length_bytes: int | None = None
    start_s: float = 0.0  # seconds into the recording
    end_s: float | None = None  # None is the recording's end

    def __str__(self) -> str:
        return f"{self.written(self.file)}{self._seconds}"

    @property
    def _seconds(self) -> str:
        if not self.is_part:
            return ""
        return f" from {self.start_s:g} s" + ("" if self.end_s is None else f" to {self.end_s:g} s")

    @property
    def name(self) -> str:
        """What tells the clip from its neighbours in the folder."""
        return f"{self.written(Path(self.file.name))}{self._seconds}"

    @property
    def is_part(self) -> bool:
        """Whether only some seconds are meant."""
        return self.start_s > 0 or self.end_s is not None

    def written(self, file: Path) -> str:
        """The clip as a manifest's `audio` names it, its file written as `file`."""
        return file.as_posix() if self.offset_bytes is None else f"{file.as_posix()}:{self.offset_bytes}:{self.length_bytes}"

    def between(self, start_s: float, end_s: float | None) -> AudioRef:
        """The seconds from `start_s` to `end_s` of this recording."""
        return dataclasses.replace(self, start_s=start_s, end_s=end_s)

    def simplest(self) -> Audio:
        """The plain path where it is a whole file, else this."""
        return self.file if self == AudioRef(self.file) else self

    def open(self) -> BinaryIO:
        """The bytes of the audio file.

        Raises:
            SignalError: there is no such file, it is none that can be read from any place (a folder, a pipe), or the bytes lie beyond its end.
        """
        try:
            about = os.stat(self.file)
            # A pipe would keep the reader waiting for ever.
            if not stat.S_ISREG(about.st_mode):
                raise SignalError(f"audio {self} {'is a folder' if stat.S_ISDIR(about.st_mode) else 'is no regular file'}; name a file")
            if self.offset_bytes is None:
                return open(self.file, "rb")
            if self.offset_bytes + self.length_bytes > about.st_size:
                raise SignalError(f"audio {self} lies beyond the end of its file, which has {about.st_size} bytes; write the manifest again")
            return io.BufferedReader(_Part(self.file, self.offset_bytes, self.length_bytes), 1 << 16)
        except FileNotFoundError as error:
            raise SignalError(f"audio {self} does not exist") from error
        except OSError as error:
            raise SignalError(f"audio {self} cannot be opened: {error.strerror or error}") from error
        except ValueError as error:  # a zero byte in its name
            raise SignalError(f"audio {str(self)!r} is no usable path ({error})") from error


Audio = Path | AudioRef


def audio_ref(audio: str | Path | AudioRef) -> AudioRef:
    """A path, or one with `:OFFSET:LENGTH`, as a reference; a file that is really called so is that file."""
    if isinstance(audio, AudioRef):
        return audio
    parts = _BYTES.fullmatch(str(audio))
    if parts is None or Path(audio).exists():
        return AudioRef(Path(audio))
    return AudioRef(Path(parts["file"]), int(parts["offset"]), int(parts["length"]))


def byte_range(named: str) -> tuple[str, int | None, int | None]:
    """`a.tar:OFFSET:LENGTH` -> file, offset and length in bytes; another name -> itself, None, None."""
    parts = _BYTES.fullmatch(named)
    return (named, None, None) if parts is None else (parts["file"], int(parts["offset"]), int(parts["length"]))


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._file = open(path, "rb", buffering=0)
        self._offset, self._length, self._at = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + position)
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
