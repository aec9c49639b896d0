"""The work of `echox-prepare manifest`, which may be killed and started again.

Everything is read as a stream, and every row is checked as a reader of the manifest would. What is
unfinished stands in hidden files beside the manifest, with a note of how far it is good; killed and
started again, the work resumes from that note and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from echox.core.config import to_plain
from echox.core.errors import ConfigError, ManifestError
from echox.core.files import atomic_write, json_hash
from echox.core.progress import Bar, print_message
from echox.data.id_hashes import duplicate_rows
from echox.data.manifest_index import index_path
from echox.data.row_reader import BrokenRow, Headers, RowReader, row_record
from echox.data.rows import Row
from echox.data.shards import ShardWriter, unpack
from echox.data.sources.base import AudioBytes, SourceConfig, SourceFault, SourceRow
from echox.data.sources.opening import COPIES, is_packed_file, open_source, source_prefixes

# Entries between two notes of how far the work is good: what a kill can lose.
SAVED_ENTRIES = 2048
# Faults printed; the rest are counted, and all are in the file of faults.
SHOWN_FAULTS = 20
# Ending of the file of faults, in place of .jsonl.
FAULTS = ".left_out.jsonl"


@dataclass(kw_only=True, slots=True)
class MakeManifestConfig(SourceConfig):
    """Make a manifest from folders of clips, tables, JSON, parquet, arrow, tar and tar.gz files.

    Tables are TSV and CSV; JSON is JSONL, a JSON list, or the published conversations.
    """

    sources: list[str] = field(default_factory=list)
    """Folders and files to read, in this order; * stands for any characters, and a folder of shards
    for its shards."""
    output: str | None = None
    """The manifest to write; null is manifest.jsonl in the one folder that is read, or NAME.jsonl
    beside the one file."""
    allow_outside: bool = False
    """Allow clips outside the manifest's folder; readers of the manifest must then allow them
    too."""
    check_audio: bool = True
    """Open every clip to read its header; off, clips whose seconds the source states are taken on
    trust."""
    shard_megabytes: int = 1024
    """Size at which a tar shard is closed, where clips have to be copied (from parquet and
    arrow)."""
    threads: int = 4
    """Headers read at once."""
    overwrite: bool = False
    """Make the manifest anew if it is there already."""

    def __post_init__(self) -> None:
        # By name: the class that `super()` refers to is replaced by the one with slots.
        SourceConfig.__post_init__(self)
        if self.shard_megabytes < 1 or self.threads < 1:
            raise ConfigError(
                f"shard_megabytes is {self.shard_megabytes} and threads {self.threads}; "
                "use 1 or more"
            )


@dataclass(slots=True)
class Progress:
    """How far the work is good; written as JSON after every SAVED_ENTRIES entries."""

    settings: str = ""  # fingerprint of the config: with another, the work begins anew
    source: int = 0  # sources that are done
    entries: int = 0  # of the source at hand that are done
    last: str = ""  # name of the last of them
    rows: int = 0
    rows_bytes: int = 0
    faults: int = 0
    faults_bytes: int = 0
    shard: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def path_beside(output: Path, ending: str) -> Path:
    """Return the path of a manifest with another ending in place of .jsonl."""
    return output.with_name(output.name.removesuffix(".jsonl") + ending)


class ManifestBuilder:
    """Builds one manifest.

    Args:
        config: how sources are read and clips are checked.
        paths: sources, as `source_paths` returns them.
        output: the manifest.
    """

    def __init__(self, config: MakeManifestConfig, paths: list[Path], output: Path) -> None:
        self.config, self.paths, self.output = config, paths, output
        hidden = output.with_name(f".{output.stem}")
        self.rows_path = Path(f"{hidden}.rows.part")
        self.faults_path = Path(f"{hidden}.faults.part")
        self.note_path = Path(f"{hidden}.note.json")
        # Shards keep their names, so that the paths in rows stay good; their folder is hidden until
        # all is done.
        self.shards, self.hidden_shards = path_beside(output, COPIES), Path(f"{hidden}.shards.part")
        headers = Headers.ALL if config.check_audio else Headers.UNSTATED
        self.reader = RowReader(output, config.allow_outside, headers)

    def build(self) -> Progress:
        """Read all sources and write the manifest, its shards and its file of faults.

        Raises:
            ManifestError: a source cannot be read at all, or no entry can be used.
            OSError: the disk is full or a file cannot be written; what is noted is kept.
        """
        self.progress = self._resume()
        number, size_bytes = self.progress.shard
        # A tuple again, for JSON has none.
        self.writer = ShardWriter(
            self.hidden_shards, self.config.shard_megabytes << 20, (number, size_bytes)
        )
        self._read_sources()
        self.writer.close()
        self._drop_repeated_ids()
        if not self.progress.rows:
            first = self.faults_path.read_text(encoding="utf-8").partition("\n")[0]
            # Once the entries are mended, there is nothing to resume from.
            self.note_path.unlink(missing_ok=True)
            raise ManifestError(
                f"no entry of {', '.join(map(str, self.paths[:3]))} can be used"
                + (f"; the first: {first}" if first else ": no clips are in it")
            )
        self._publish()
        return self.progress

    def _resume(self) -> Progress:
        """Progress of an earlier start with the same settings, or of none."""
        settings = self._settings_fingerprint()
        try:
            note = Progress(**json.loads(self.note_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # no note, or one of another release
            note = Progress()
        if note.settings == settings and self._can_resume(note):
            print(f"going on after {note.rows} rows")
            # A kill may have come after the shards were published and before the manifest was.
            if self.shards.exists() and not self.hidden_shards.exists():
                self.shards.rename(self.hidden_shards)
            return note
        shutil.rmtree(self.hidden_shards, ignore_errors=True)
        return Progress(settings=settings)

    def _settings_fingerprint(self) -> str:
        """Hash of the settings that decide the manifest, and of the state of its sources."""
        stamps = [
            [str(path), path.stat().st_mtime_ns, path.stat().st_size]
            for path in self.paths
            if path.is_file()
        ]
        plain = to_plain(self.config)
        deciding = {name: plain[name] for name in plain if name not in ("threads", "overwrite")}
        return json_hash([deciding, [str(path) for path in self.paths], stamps], 64)

    def _can_resume(self, note: Progress) -> bool:
        """Whether the work that a note tells of is there, and the source at hand is unchanged.

        A folder has no time of change that would tell, so its last entry must be the same again.
        """
        number, shard_bytes = note.shard
        shards = self.hidden_shards if self.hidden_shards.exists() else self.shards
        sizes = [(self.rows_path, note.rows_bytes), (self.faults_path, note.faults_bytes)]
        sizes += [(shards / f"{number:05d}.tar", shard_bytes)] if shard_bytes else []
        if not all(path.exists() and path.stat().st_size >= size for path, size in sizes):
            return False
        if not note.entries or is_packed_file(self.paths[note.source]):
            return True
        path, prefix = self.paths[note.source], source_prefixes(self.paths)[note.source]
        source = open_source(path, prefix, self.config)
        last = next(source.after(note.entries - 1), None)
        return last is not None and last.name == note.last

    def _read_sources(self) -> None:
        prefixes = source_prefixes(self.paths)
        label, rows = f"writing {self.output.name}", self.progress.rows
        with (
            self._open_partial(self.rows_path, self.progress.rows_bytes) as self.rows,
            self._open_partial(self.faults_path, self.progress.faults_bytes) as self.faults,
            ThreadPoolExecutor(self.config.threads) as self.pool,
            Bar(label, None, unit="row", initial=rows) as self.bar,
        ):
            for number in range(self.progress.source, len(self.paths)):
                self._read_source(self.paths[number], prefixes[number])

    def _open_partial(self, path: Path, size: int) -> BinaryIO:
        """Open a file of the unfinished work, cut to the bytes that are good."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # "w" would empty the file of an earlier start.
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _read_source(self, path: Path, prefix: str) -> None:
        if is_packed_file(path):
            path = unpack(path, self.hidden_shards / "unpacked" / f"{prefix}.tar")
        source = open_source(path, prefix, self.config)
        # Each is copied before the next is read, so that no more than one clip's bytes are held.
        entries = map(self._copy_clips, source.after(self.progress.entries))
        while batch := list(itertools.islice(entries, SAVED_ENTRIES)):
            self._write_batch(batch)
            self.progress.entries += len(batch)
            self.progress.last = batch[-1].name
            self._save_progress()
        self.progress.source, self.progress.entries = self.progress.source + 1, 0
        self._save_progress()

    def _write_batch(self, batch: list[SourceRow | SourceFault]) -> None:
        # Threads open the headers, most of whose time is waiting for the disk.
        for entry, outcome in zip(batch, self.pool.map(self._check_entry, batch)):
            if isinstance(outcome, SourceFault):
                self._write_fault(entry.name, outcome.reason)
            else:
                self._write_row(*outcome)
        self.bar.update(len(batch), f"{self.progress.faults} left out")

    def _copy_clips(self, entry: SourceRow | SourceFault) -> SourceRow | SourceFault:
        """Copy an entry's clips into shards where a manifest cannot point to their bytes."""
        for item in _items_of(entry):
            audio = item.get("audio")
            if isinstance(audio, AudioBytes):
                number, _ = self.writer.state
                digest = hashlib.sha256(audio.data).hexdigest()[:16]
                name = f"{number:05d}-{digest}{audio.ending}"
                item["audio"] = self.writer.add(name, audio.data)
        return entry

    def _check_entry(self, entry: SourceRow | SourceFault) -> tuple[Row, float] | SourceFault:
        """The row of an entry and its seconds of audio, or why it is none."""
        if isinstance(entry, SourceFault):
            return entry
        try:
            # As a reader of the finished manifest would, so that none of its rows is broken.
            read = self.reader.read(0, {"id": entry.name, **entry.record})
            json.dumps(entry.record, ensure_ascii=False).encode()
        except BrokenRow as broken:
            return SourceFault(entry.name, str(broken))
        except UnicodeEncodeError:
            return SourceFault(entry.name, "a name or a text in it is not UTF-8; rename or mend it")
        # Stated in the manifest, so that its readers need not open the clips again.
        turns = [
            dataclasses.replace(item, extra={**item.extra, "duration_s": round(seconds, 3)})
            if item.audio is not None and not math.isnan(seconds)
            else item
            for item, seconds in zip(read.row.turns, read.seconds)
        ]
        return dataclasses.replace(read.row, turns=tuple(turns)), math.fsum(read.seconds)

    def _write_row(self, row: Row, seconds: float) -> None:
        record = row_record(row, self.output.parent)
        # The name of the shards' folder once it is published.
        hidden, published = f"{self.hidden_shards.name}/", f"{self.shards.name}/"
        for item in record["conversations"]:
            if "audio" in item:
                item["audio"] = item["audio"].replace(hidden, published, 1)
        self.rows.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.progress.rows += 1
        self.progress.seconds += seconds

    def _write_fault(self, name: str, reason: str) -> None:
        if self.progress.faults < SHOWN_FAULTS:
            # A name that is not UTF-8 could not be printed.
            print_message(f"left out: {name}: {reason}".encode(errors="replace").decode())
        self.faults.write(json.dumps({"entry": name, "reason": reason}).encode() + b"\n")
        self.progress.faults += 1

    def _save_progress(self) -> None:
        """Note how far the work is good, once it is on the disk."""
        # In this order: a note must not tell of bytes that a crash could still lose.
        for file in (self.rows, self.faults):
            file.flush()
            os.fsync(file.fileno())
        self.writer.sync()
        self.progress.rows_bytes = self.rows.tell()
        self.progress.faults_bytes = self.faults.tell()
        self.progress.shard = self.writer.state
        with atomic_write(self.note_path) as unfinished:
            unfinished.write_text(json.dumps(dataclasses.asdict(self.progress)), encoding="utf-8")

    def _drop_repeated_ids(self) -> None:
        """Take out the rows whose id an earlier row has, and name them among the faults."""
        repeats = set(duplicate_rows(self.rows_path))
        if not repeats:
            return
        # At the end, for a repeat may be in any later source; line by line, for memory.
        with (
            atomic_write(self.rows_path) as unfinished,
            unfinished.open("wb") as out,
            self.faults_path.open("ab") as faults,
            self.rows_path.open("rb") as rows,
        ):
            for number, line in enumerate(rows):
                if number not in repeats:
                    out.write(line)
                    continue
                fault = {"entry": json.loads(line)["id"], "reason": "its id was used before"}
                faults.write(json.dumps(fault, ensure_ascii=False).encode() + b"\n")
                self.progress.rows -= 1
                self.progress.faults += 1

    def _publish(self) -> None:
        """Move all files to their final names, the manifest last: it appears with all it needs."""
        faults = path_beside(self.output, FAULTS)
        self.faults_path.replace(faults)
        # Written and removed, so that the file of an earlier manifest does not stay.
        if not self.progress.faults:
            faults.unlink()
        if self.hidden_shards.exists():
            shutil.rmtree(self.shards, ignore_errors=True)
            self.hidden_shards.rename(self.shards)
        # An index of the manifest that is replaced.
        index_path(self.output).unlink(missing_ok=True)
        self.rows_path.replace(self.output)
        self.note_path.unlink(missing_ok=True)


def _items_of(entry: SourceRow | SourceFault) -> Iterator[dict[str, Any]]:
    """Items of an entry's conversation; of one that is malformed, those that are objects."""
    items = entry.record.get("conversations") if isinstance(entry, SourceRow) else None
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))
