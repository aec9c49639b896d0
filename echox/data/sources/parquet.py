"""Hugging Face datasets: parquet files, and the arrow files that `save_to_disk` writes, with the clips' bytes in a column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echox.data.sources.base import Columns, Content, Fault, Found, Source
from echox.errors import ManifestError
from echox.packages import PYARROW

_ROWS = 64  # read at once: a minute of bytes, rather than a row group that may have a thousand clips
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff": ".mp3", b"FORM": ".aiff", b"caff": ".caf"}


class ParquetSource(Source):
    """Rows of a parquet or arrow file. The bytes of a column are compressed there, so clips are copied into shards."""

    packages = (PYARROW,)

    def entries(self) -> Iterator[Found | Fault]:
        return self.after(0)

    def after(self, count: int) -> Iterator[Found | Fault]:
        for number, row in self._rows(count):
            yield self._entry(f"{self.prefix}-{number}", row)

    def _rows(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and contents of the rows after the first `count`."""
        pyarrow = PYARROW.load()
        try:
            number, batches = self._batches(count)
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    if number > count:
                        yield number, row
        except pyarrow.ArrowException as error:
            raise ManifestError(f"{self.path} is no whole {self.path.suffix.removeprefix('.')} file ({error}); copy it again") from error

    def _batches(self, count: int) -> tuple[int, Iterator[Any]]:
        """Rows left out at the front, whole row groups of them, and batches of those that follow."""
        if self.path.suffix == ".arrow":
            stream = PYARROW.load("ipc").open_stream(PYARROW.load().OSFile(str(self.path)))
            return 0, (batch.slice(start, _ROWS) for batch in stream for start in range(0, batch.num_rows, _ROWS))
        file = PYARROW.load("parquet").ParquetFile(self.path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        skipped = sum(end <= count for end in ends)
        return (ends[skipped - 1] if skipped else 0), file.iter_batches(_ROWS, row_groups=list(range(skipped, len(sizes))))

    def _entry(self, name: str, row: dict[str, Any]) -> Found | Fault:
        columns = Columns(row, self.config.columns)
        audio = columns.get(row, "audio")
        if audio is None:
            return Fault(name, f"no audio in the columns {', '.join(row)}; set columns.audio=NAME")
        clip = self._clip(audio)
        if isinstance(clip, str) and not Path(clip).is_file():
            return Fault(name, f"has no bytes of its audio, and {clip} does not exist")
        text, seconds = columns.get(row, "text"), columns.get(row, "seconds")
        given, speaker = columns.get(row, "id"), columns.get(row, "speaker")
        return self.spoken(
            name if given is None else str(given), clip, text if isinstance(text, str) else "",
            seconds=seconds if isinstance(seconds, (int, float)) else None, units=columns.get(row, "units"),
            speaker=None if speaker is None else str(speaker), **columns.others(row),
        )  # fmt: skip

    def _clip(self, audio: Any) -> str | Content:
        data = audio.get("bytes") if isinstance(audio, dict) else audio if isinstance(audio, bytes) else None
        named = audio.get("path") if isinstance(audio, dict) else audio if isinstance(audio, str) else None
        if data:
            return Content(data, Path(named).suffix.lower() if named and Path(named).suffix else _ending_of(data))
        return str(self.path.parent / (named or "?"))


def _ending_of(data: bytes) -> str:
    return next((ending for magic, ending in _MAGIC.items() if data.startswith(magic)), ".audio")
