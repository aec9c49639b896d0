"""Hugging Face datasets, parquet and arrow files, with the clips' bytes in a column.

Arrow files are those that `save_to_disk` writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echox.core.errors import ManifestError
from echox.core.packages import PYARROW
from echox.data.sources.base import AudioBytes, Columns, Source, SourceFault, SourceRow

# Rows read at once: a minute of bytes, rather than a row group that may have a thousand clips.
_ROWS = 64
# First bytes of audio files; b"\xff" begins the frames of an mp3 without tags.
_MAGIC = {
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff": ".mp3",
    b"FORM": ".aiff",
    b"caff": ".caf",
}


class ParquetSource(Source):
    """Rows of a parquet or arrow file.

    The bytes of a column are compressed there, so clips are copied into shards.
    """

    packages = (PYARROW,)

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        return self.after(0)

    def after(self, count: int) -> Iterator[SourceRow | SourceFault]:
        # Row groups that are done are not read again, as the base class would.
        for number, row in self._rows(count):
            yield self._entry(f"{self.prefix}-{number}", row)

    def _rows(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and contents of the rows after the first `count`."""
        # Loaded here, for it is an optional package.
        pyarrow = PYARROW.load()
        try:
            number, batches = self._batches(count)
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    if number > count:
                        yield number, row
        except pyarrow.ArrowException as error:
            kind = self.path.suffix.removeprefix(".")
            raise ManifestError(
                f"{self.path} is no whole {kind} file ({error}); copy it again"
            ) from error

    def _batches(self, count: int) -> tuple[int, Iterator[Any]]:
        """The number of rows skipped at the front, and batches of those that follow.

        Whole row groups are skipped, as far as all of their rows are among the first `count`.
        """
        if self.path.suffix == ".arrow":
            return 0, self._arrow_batches()
        file = PYARROW.load("parquet").ParquetFile(self.path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        skipped = sum(end <= count for end in ends)
        skipped_rows = ends[skipped - 1] if skipped else 0
        groups = list(range(skipped, len(sizes)))
        return skipped_rows, file.iter_batches(_ROWS, row_groups=groups)

    def _arrow_batches(self) -> Iterator[Any]:
        file = PYARROW.load().OSFile(str(self.path))
        stream = PYARROW.load("ipc").open_stream(file)
        # The batches of a file are as its writer made them, often of a thousand rows.
        return (
            batch.slice(start, _ROWS)
            for batch in stream
            for start in range(0, batch.num_rows, _ROWS)
        )

    def _entry(self, name: str, row: dict[str, Any]) -> SourceRow | SourceFault:
        columns = Columns(row, self.config.columns)
        audio = columns.get(row, "audio")
        if audio is None:
            reason = f"no audio in the columns {', '.join(row)}; set columns.audio=NAME"
            return SourceFault(name, reason)
        clip = self._clip(audio)
        if isinstance(clip, str) and not Path(clip).is_file():
            return SourceFault(name, f"has no bytes of its audio, and {clip} does not exist")
        text = columns.get(row, "text")
        row_id, speaker = columns.get(row, "id"), columns.get(row, "speaker")
        return self.clip_row(
            name if row_id is None else str(row_id),
            clip,
            text if isinstance(text, str) else "",
            seconds=columns.get(row, "seconds"),
            units=columns.get(row, "units"),
            speaker=None if speaker is None else str(speaker),
            **columns.others(row),
        )

    def _clip(self, audio: Any) -> str | AudioBytes:
        """The clip of a column: a struct of bytes and path, as HF datasets have it, or either."""
        data, path = None, None
        if isinstance(audio, dict):
            data, path = audio.get("bytes"), audio.get("path")
        elif isinstance(audio, bytes):
            data = audio
        elif isinstance(audio, str):
            path = audio
        if data:
            ending = Path(path).suffix.lower() if path else ""
            return AudioBytes(data, ending or _ending_of(data))
        # "?" is no file, which the caller names as a fault.
        return str(self.path.parent / (path or "?"))


def _ending_of(data: bytes) -> str:
    return next((ending for magic, ending in _MAGIC.items() if data.startswith(magic)), ".audio")
