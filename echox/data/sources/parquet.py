"""Hugging Face datasets, parquet and arrow files, with the clips' bytes in a column.

Arrow files are those that `save_to_disk` writes.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from echox.core.errors import ManifestError
from echox.core.packages import PYARROW
from echox.data.sources.base import AudioBytes, Columns, Source, SourceFault, SourceRow

# Rows read at once: a minute of bytes, rather than a row group that may have a thousand clips.
_ROWS = 64
# Bytes of a batch, as far as a row group tells.
_BATCH_BYTES = 256 << 20
# Bytes of a row group's column above which it must not expand much more than text does, and values
# of one at most: a file of kilobytes can state gigabytes.
_COLUMN_BYTES, _COLUMN_RATIO, _COLUMN_VALUES = 64 << 20, 200, 32 << 20
_WAY_OUT = "write the data set again in smaller row groups"
# Format/Message.fbs of Apache Arrow: kinds of messages, and the places of fields in their tables.
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER, _DICTIONARY_DATA, _COMPRESSION = 1, 2, 1, 3
_AUDIO_PARTS = ("bytes", "path")  # of Hugging Face's structs
_ENDING = re.compile(r"\.[a-z0-9]{1,8}")  # of a file's name
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
        for name, batch, fault in self._rows(count):
            yield SourceFault(name, fault) if fault else self._entry(name, batch)

    def _rows(self, count: int) -> Iterator[tuple[str, Any, str]]:
        """The rows after the first `count`: name, a batch of it alone, and why it cannot be read.

        One by one, because a value that a dictionary stores once is copied for each row.
        """
        # Loaded here, for it is an optional package.
        pyarrow = PYARROW.load()
        faults = (pyarrow.ArrowException, OSError, ValueError, OverflowError, RuntimeError)
        try:
            number, batches = self._batches(count)
            for batch in batches:
                is_sound = not _fault_of(batch)
                for position in range(max(0, count - number), batch.num_rows):
                    one = batch.slice(position, 1)
                    name = f"{self.prefix}-{number + position + 1}"
                    yield name, one, "" if is_sound else _fault_of(one)
                number += batch.num_rows
        # A damaged file fails in any of these, depending on the bytes that are damaged.
        except (*faults, MemoryError, struct.error) as error:
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
        leaves = self._leaves(file.schema_arrow)
        return skipped_rows, self._group_batches(file, range(skipped, len(sizes)), leaves)

    def _group_batches(self, file: Any, groups: Iterable[int], leaves: list[str]) -> Iterator[Any]:
        for group in groups:
            rows = self._rows_at_once(file.metadata.row_group(group), leaves)
            yield from file.iter_batches(rows, row_groups=[group], columns=leaves)

    def _rows_at_once(self, group: Any, leaves: list[str]) -> int:
        """Rows of a row group whose bytes fit into a batch.

        Raises:
            ManifestError: a column states more than a data set of speech has.
        """
        largest = 1
        for number in range(group.num_columns):
            column = group.column(number)
            # A list's leaf goes on behind its name, as `units.list.element`.
            if not f"{column.path_in_schema}.".startswith(tuple(f"{leaf}." for leaf in leaves)):
                continue
            size = column.total_uncompressed_size
            ratio = size / max(1, column.total_compressed_size)
            if size > _COLUMN_BYTES and ratio > _COLUMN_RATIO:
                raise ManifestError(
                    f"the column {column.path_in_schema} of {self.path} expands {ratio:,.0f} times "
                    f"to {size >> 20:,} MiB, which no speech does; {_WAY_OUT}"
                )
            if column.num_values > _COLUMN_VALUES:
                raise ManifestError(
                    f"the column {column.path_in_schema} of {self.path} has {column.num_values:,} "
                    f"values in a row group; {_COLUMN_VALUES:,} are read at most: {_WAY_OUT}"
                )
            # A dictionary may hold one value of that size, which all rows have.
            row_bytes = size if column.has_dictionary_page else size // max(1, group.num_rows)
            largest = max(largest, row_bytes)
        return max(1, min(_ROWS, _BATCH_BYTES // largest))

    def _leaves(self, schema: Any) -> list[str]:
        """The columns that are read: what is known by name, and plain values.

        Others, as of other media, are not in the manifest, so they need not be decoded.
        """
        types = PYARROW.load("types")
        names = self.columns_of(schema.names).names
        leaves = []
        for field in schema:
            if types.is_struct(field.type) and field.name == names["audio"]:
                inner = {part.name for part in field.type}
                leaves += [f"{field.name}.{part}" for part in _AUDIO_PARTS if part in inner]
            elif self._is_read(types, field.type, field.name, names):
                leaves.append(field.name)
        return leaves

    def _is_read(self, types: Any, kind: Any, name: str, names: Mapping[str, str | None]) -> bool:
        if name == names["units"] and (types.is_list(kind) or types.is_large_list(kind)):
            if not types.is_integer(kind.value_type):
                raise ManifestError(
                    f"the column {name} of {self.path} is {kind}; units are texts, or lists of "
                    "integers"
                )
            return True
        if types.is_dictionary(kind):
            kind = kind.value_type
        if name == names["audio"] and (types.is_binary(kind) or types.is_large_binary(kind)):
            return True
        is_text = types.is_string(kind) or types.is_large_string(kind)
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        return is_text or is_number

    def _arrow_batches(self) -> Iterator[Any]:
        pyarrow = PYARROW.load()
        ipc = PYARROW.load("ipc")
        # Mapped, so that no body is read and a length that a message states takes no memory.
        with pyarrow.memory_map(str(self.path)) as file:
            for message in ipc.MessageReader.open_stream(file):
                if _is_compressed(message.metadata.to_pybytes()):
                    raise ManifestError(
                        f"{self.path} is compressed, so that its batches may have any size; "
                        "write it again as save_to_disk does, without compression"
                    )
        with pyarrow.memory_map(str(self.path)) as file:
            stream = ipc.open_stream(file)
            self.columns_of(stream.schema.names)
            yield from stream

    def _entry(self, name: str, batch: Any) -> SourceRow | SourceFault:
        (row,) = batch.to_pylist()
        columns = Columns(row, self.config.columns)
        audio = columns.get(row, "audio")
        if audio is None:
            return SourceFault(name, "has no audio")
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
            extra={
                **columns.others(row),
                "speaker": None if speaker is None else str(speaker),
            },
        )

    def _clip(self, audio: Any) -> str | AudioBytes:
        """The clip of a column: a struct of bytes and path, as HF datasets have it, or either."""
        parts = audio if isinstance(audio, dict) else {"bytes": audio, "path": audio}
        data, path = parts.get("bytes"), parts.get("path")
        path = path if isinstance(path, str) else ""
        if isinstance(data, bytes) and data:
            ending = Path(path).suffix.lower()
            return AudioBytes(data, ending if _ENDING.fullmatch(ending) else _ending_of(data))
        # "?" is no file, which the caller names as a fault.
        return str(self.path.parent / (path or "?"))


def _ending_of(data: bytes) -> str:
    return next((ending for magic, ending in _MAGIC.items() if data.startswith(magic)), ".audio")


def _fault_of(batch: Any) -> str:
    """Why the values of a batch cannot be read, "" where they can.

    pyarrow checks neither offsets nor texts unless it is asked to, and damaged ones end the
    process.
    """
    try:
        batch.validate(full=True)
    except PYARROW.load().ArrowException as error:
        return f"is damaged ({str(error).partition(chr(10))[0]})"
    return ""


def _is_compressed(metadata: bytes) -> bool:
    """Whether the buffers of an Arrow message are compressed.

    pyarrow tells it nowhere, and decompresses a batch as a whole when it reads it.

    Args:
        metadata: flatbuffer of a `Message`, which pyarrow has verified.
    """
    message = _target(metadata, 0)
    kind = _field(metadata, message, _HEADER_TYPE)
    if not kind or metadata[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = _target(metadata, _field(metadata, message, _HEADER))
    if metadata[kind] == _DICTIONARY_BATCH:
        batch = _target(metadata, _field(metadata, batch, _DICTIONARY_DATA))
    return _field(metadata, batch, _COMPRESSION) > 0


def _target(buffer: bytes, position: int) -> int:
    """Where an offset of a flatbuffer leads to, which stands at a position."""
    return position + struct.unpack_from("<I", buffer, position)[0]


def _field(buffer: bytes, table: int, number: int) -> int:
    """Position of a field of a flatbuffer's table, 0 where the table lacks it."""
    places = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, places)
    # The table's own size and that of its places come first, two bytes each.
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", buffer, places + place)[0] if place < size else 0
    return table + offset if offset else 0
