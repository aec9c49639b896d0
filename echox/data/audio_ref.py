"""Where a clip is stored: a file, the bytes of one inside a larger file, or some seconds of either.

A manifest names bytes inside a larger file as fairseq does, `shards/a.tar:OFFSET:LENGTH`; they are
those of a complete audio file. The seconds are the item's `start_s` and `end_s`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from echox.core.errors import SignalError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BYTE_RANGE = re.compile(r"(?P<file>.+):(?P<offset>\d+):(?P<length>\d+)", re.DOTALL)
_READ_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class AudioRef:
    """A reference to a clip that need not be a whole file."""

    file: Path
    # Bytes before the clip in the file, and its own; both None where the clip is the file.
    offset_bytes: int | None = None
    length_bytes: int | None = None
    start_s: float = 0.0  # seconds into the recording
    end_s: float | None = None  # None is the recording's end

    def __str__(self) -> str:
        return f"{self.manifest_path(self.file)}{self._seconds}"

    @property
    def _seconds(self) -> str:
        if not self.is_part:
            return ""
        return f" from {self.start_s:g} s" + ("" if self.end_s is None else f" to {self.end_s:g} s")

    @property
    def name(self) -> str:
        """Name of the clip that is unique within the folder of its file."""
        return f"{self.manifest_path(Path(self.file.name))}{self._seconds}"

    @property
    def is_part(self) -> bool:
        """Whether the clip is only some seconds of the recording."""
        return self.start_s > 0 or self.end_s is not None

    def manifest_path(self, file: Path) -> str:
        """Return the clip's path as a manifest's `audio` writes it, with `file` as the file's path.

        The seconds are not in it: a manifest states them beside `audio`.
        """
        if self.offset_bytes is None:
            return file.as_posix()
        return f"{file.as_posix()}:{self.offset_bytes}:{self.length_bytes}"

    def between(self, start_s: float, end_s: float | None) -> AudioRef:
        """Return a reference to the seconds from `start_s` to `end_s` of this recording."""
        return dataclasses.replace(self, start_s=start_s, end_s=end_s)

    def open(self) -> BinaryIO:
        """Open the bytes of the audio file for reading.

        Raises:
            SignalError: the file does not exist, cannot be read from any position (a folder, a
                pipe), or ends before the bytes that are named.
        """
        try:
            return self._open()
        except FileNotFoundError as error:
            raise SignalError(f"audio {self} does not exist") from error
        except OSError as error:
            reason = error.strerror or error
            raise SignalError(f"audio {self} cannot be opened: {reason}") from error
        except ValueError as error:  # a zero byte in its name
            raise SignalError(f"audio {str(self)!r} is no usable path ({error})") from error

    def _open(self) -> BinaryIO:
        status = os.stat(self.file)
        # Opening a pipe would block until some process writes to it.
        if not stat.S_ISREG(status.st_mode):
            kind = "is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file"
            raise SignalError(f"audio {self} {kind}; name a file")
        if self.offset_bytes is None or self.length_bytes is None:
            return open(self.file, "rb")
        if self.offset_bytes + self.length_bytes > status.st_size:
            raise SignalError(
                f"audio {self} lies beyond the end of its file, which has {status.st_size} bytes; "
                "write the manifest again"
            )
        member = _FileRange(self.file, self.offset_bytes, self.length_bytes)
        # Decoders read headers a few bytes at a time, each of which would be a system call.
        return io.BufferedReader(member, _READ_BUFFER_BYTES)


Audio = Path | AudioRef


def audio_ref(audio: str | Path | AudioRef) -> AudioRef:
    """Turn a path, or one with `:OFFSET:LENGTH`, into a reference.

    A file whose own name ends in `:OFFSET:LENGTH` is that whole file.
    """
    if isinstance(audio, AudioRef):
        return audio
    match = _BYTE_RANGE.fullmatch(str(audio))
    # A colon is a valid character of a file's name.
    if match is None or Path(audio).exists():
        return AudioRef(Path(audio))
    return AudioRef(Path(match["file"]), int(match["offset"]), int(match["length"]))


def byte_range(path: str) -> tuple[str, int | None, int | None]:
    """Split `a.tar:OFFSET:LENGTH` into file, offset and length in bytes.

    Any other path comes back as it is, with None, None.
    """
    match = _BYTE_RANGE.fullmatch(path)
    if match is None:
        return path, None, None
    return match["file"], int(match["offset"]), int(match["length"])


class _FileRange(io.RawIOBase):
    """A range of bytes of a file, as a file of its own."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        # Unbuffered: the reader around it has the one buffer that is needed.
        self._file = open(path, "rb", buffering=0)
        self._offset, self._length, self._position = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        # Beyond the end is allowed, as in a file; reading there yields nothing.
        self._position = max(0, base + position)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        # No further than the range, or the next member of a tar would be read as audio.
        view = memoryview(buffer)[: max(0, self._length - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
