"""`echox-prepare manifest`: a manifest made from folders, tables, JSON, Hugging Face datasets and tar shards.

Everything is read as a stream, and every row is checked as a reader of the manifest would. What is unfinished lies in hidden files beside
the manifest, with a note of how far it is good; killed and started again, the work goes on from that note and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


from echox.config import to_plain
from echox.data.id_hashes import repeated_ids
from echox.data.manifest_index import index_path
from echox.data.row_reader import Broken, Headers, RowReader, row_record
from echox.data.rows import Row
from echox.data.shards import ShardWriter, unpack
from echox.data.sources.base import Content, Fault, Found, SourceConfig
from echox.data.sources.opening import COPIES, open_source, packages_of, packed, paths_of, prefixes_of
from echox.data.writing import appearing
from echox.errors import ConfigError, ManifestError
from echox.packages import require
from echox.progress import Bar, say

# Entries between two notes of how far the work is good: what a kill can lose.
SAVED_ENTRIES = 2048
# Faults printed; the rest are counted, and all are in the file of faults.
SHOWN_FAULTS = 20


@dataclass(kw_only=True, slots=True)
class MakeManifestConfig(SourceConfig):
    """Make a manifest from folders of clips, TSV, CSV, JSONL, JSON (the published conversations), parquet, arrow, tar and tar.gz."""

    sources: list[str] = field(default_factory=list)
    """Folders and files to read, in this order; * stands for any characters, and a folder of shards for its shards."""
    output: str | None = None
    """The manifest to write; null is manifest.jsonl in the one folder that is read, or NAME.jsonl beside the one file."""
    allow_outside: bool = False
    """Allow clips outside the manifest's folder; readers of the manifest must then allow them too."""
    check_audio: bool = True
    """Open every clip to read its header; off, clips whose seconds the source states are taken on trust."""
    shard_megabytes: int = 1024
    """Size at which a tar shard is closed, where clips have to be copied (from parquet and arrow)."""
    threads: int = 4
    """Headers read at once."""
    overwrite: bool = False
    """Make the manifest anew if it is there already."""

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        if self.shard_megabytes < 1 or self.threads < 1:
            raise ConfigError(f"shard_megabytes is {self.shard_megabytes} and threads {self.threads}; use 1 or more")


@dataclass(slots=True)
class Progress:
    """How far the work is good."""

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


def make_manifest(config: MakeManifestConfig) -> Path:
    """Make it, and print what it holds and what was left out.

    Raises:
        ConfigError: no source, one that does not exist or is of no known kind, or no place to write to.
        ManifestError: a source cannot be read at all, nothing in them is usable, or the disk is full.
        PackageError: what reads a source is not installed.
    """
    paths = paths_of(config.sources)
    require(packages_of(paths))
    output = _output_of(config, paths)
    if output.exists() and not config.overwrite:
        raise ConfigError(f"{output} is there already; set overwrite=true to make it anew, or another output")
    if any(path.is_relative_to(_beside(output, COPIES)) for path in paths):
        raise ConfigError(f"{_beside(output, COPIES)} holds a source, and is where clips are copied to, which replaces it; set another output")
    try:
        done = _Maker(config, paths, output).make()
    except OSError as error:
        raise ManifestError(f"the manifest {output} could not be made: {error.strerror or error}; mend that and start again to go on") from error
    print(f"{output}: {done.rows} rows, {done.seconds / 3600:.2f} h; {done.faults} entries left out" + (f", named in {_beside(output, FAULTS)}" if done.faults else ""))
    return output


FAULTS = ".left_out.jsonl"


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name.removesuffix(".jsonl") + ending)


def _output_of(config: MakeManifestConfig, paths: list[Path]) -> Path:
    if config.output is not None:
        if not config.output.endswith(".jsonl"):
            raise ConfigError(f"output is {config.output}; a manifest's name ends in .jsonl")
        return Path(config.output).absolute()
    if len(config.sources) > 1:
        raise ConfigError("several sources need one place to write to; set output=FILE.jsonl")
    only = Path(config.sources[0]).absolute()
    if only.is_dir():
        return only / "manifest.jsonl"
    if len(paths) > 1:
        return Path(os.path.commonpath([path.parent for path in paths])) / "manifest.jsonl"
    name = prefixes_of(paths)[0]
    return only.with_name(f"{name}.jsonl" if only.suffix != ".jsonl" else f"{name}.manifest.jsonl")


class _Maker:
    """The work on one manifest."""

    def __init__(self, config: MakeManifestConfig, paths: list[Path], output: Path) -> None:
        self.config, self.paths, self.output = config, paths, output
        hidden = output.with_name(f".{output.stem}")
        self.rows_path, self.faults_path, self.note_path = (Path(f"{hidden}{ending}") for ending in (".rows.part", ".faults.part", ".note.json"))
        # Under their last name, so that rows need not be written twice; the folder is hidden until all is done.
        self.shards, self.hidden_shards = _beside(output, COPIES), Path(f"{hidden}.shards.part")
        self.reader = RowReader(output, config.allow_outside, Headers.ALL if config.check_audio else Headers.UNSTATED)

    def make(self) -> Progress:
        self.progress = self._resumed()
        self.writer = ShardWriter(self.hidden_shards, self.config.shard_megabytes << 20, tuple(self.progress.shard))
        prefixes = prefixes_of(self.paths)
        with self._opened(self.rows_path, self.progress.rows_bytes) as self.rows, self._opened(self.faults_path, self.progress.faults_bytes) as self.faults:
            with ThreadPoolExecutor(self.config.threads) as self.pool, Bar(f"writing {self.output.name}", None, unit="row", initial=self.progress.rows) as self.bar:
                for number in range(self.progress.source, len(self.paths)):
                    self._read_source(self.paths[number], prefixes[number])
        self.writer.close()
        self._drop_repeats()
        if not self.progress.rows:
            first = self.faults_path.read_text(encoding="utf-8").partition("\n")[0]
            # Once the entries are mended, there is nothing to go on from.
            self.note_path.unlink(missing_ok=True)
            raise ManifestError(f"no entry of {', '.join(map(str, self.paths[:3]))} can be used" + (f"; the first: {first}" if first else ": no clips are in it"))
        self._publish()
        return self.progress

    def _resumed(self) -> Progress:
        """The note of an earlier start with the same settings, or a fresh one."""
        stamps = [[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in self.paths if path.is_file()]
        plain = to_plain(self.config)
        about = {key: value for key, value in plain.items() if key not in ("threads", "overwrite")}
        settings = hashlib.sha256(json.dumps([about, [str(path) for path in self.paths], stamps], sort_keys=True).encode()).hexdigest()
        try:
            note = Progress(**json.loads(self.note_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            note = Progress()
        if note.settings == settings and self._is_good(note):
            print(f"going on after {note.rows} rows")
            if self.shards.exists() and not self.hidden_shards.exists():
                self.shards.rename(self.hidden_shards)
            return note
        shutil.rmtree(self.hidden_shards, ignore_errors=True)
        return Progress(settings=settings)

    def _is_good(self, note: Progress) -> bool:
        """Whether what the note tells of is there, and the source at hand still has the entry that was last."""
        number, shard_bytes = note.shard
        shards = self.hidden_shards if self.hidden_shards.exists() else self.shards
        sizes = [(self.rows_path, note.rows_bytes), (self.faults_path, note.faults_bytes)]
        sizes += [(shards / f"{number:05d}.tar", shard_bytes)] if shard_bytes else []
        if not all(path.exists() and path.stat().st_size >= size for path, size in sizes):
            return False
        if not note.entries or packed(self.paths[note.source]):
            return True
        source = open_source(self.paths[note.source], prefixes_of(self.paths)[note.source], self.config)
        last = next(source.after(note.entries - 1), None)
        return last is not None and last.name == note.last

    def _opened(self, path: Path, size: int) -> BinaryIO:
        """A file of the unfinished work, cut to what is good."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _read_source(self, path: Path, prefix: str) -> None:
        if packed(path):
            path = unpack(path, self.hidden_shards / "unpacked" / f"{prefix}.tar")
        # Each is copied before the next is read, so that no more than one clip's bytes are held.
        entries = map(self._copied, open_source(path, prefix, self.config).after(self.progress.entries))
        while batch := list(itertools.islice(entries, SAVED_ENTRIES)):
            self._take(batch)
            self.progress.entries, self.progress.last = self.progress.entries + len(batch), batch[-1].name
            self._save()
        self.progress.source, self.progress.entries = self.progress.source + 1, 0
        self._save()

    def _take(self, batch: list[Found | Fault]) -> None:
        for entry, outcome in zip(batch, self.pool.map(self._checked, batch)):
            if isinstance(outcome, Fault):
                self._write_fault(entry.name, outcome.reason)
            else:
                self._write_row(*outcome)
        self.bar.update(len(batch), f"{self.progress.faults} left out")

    def _copied(self, entry: Found | Fault) -> Found | Fault:
        """The entry with its clips where a manifest can point to."""
        for item in entry.record["conversations"] if isinstance(entry, Found) and isinstance(entry.record.get("conversations"), list) else []:
            if isinstance(item, dict) and isinstance(item.get("audio"), Content):
                number, _ = self.writer.state
                content = item["audio"]
                item["audio"] = self.writer.add(f"{number:05d}-{hashlib.sha256(content.data).hexdigest()[:16]}{content.ending}", content.data)
        return entry

    def _checked(self, entry: Found | Fault) -> tuple[Row, float] | Fault:
        """The row and its seconds of audio."""
        if isinstance(entry, Fault):
            return entry
        try:
            read = self.reader.read(0, {"id": entry.name, **entry.record})
            json.dumps(entry.record, ensure_ascii=False).encode()
        except Broken as broken:
            return Fault(entry.name, str(broken))
        except UnicodeEncodeError:
            return Fault(entry.name, "a name or a text in it is not UTF-8; rename or mend it")
        turns = [
            dataclasses.replace(item, extra={**item.extra, "duration_s": round(seconds, 3)}) if item.audio is not None and not math.isnan(seconds) else item
            for item, seconds in zip(read.row.turns, read.seconds)
        ]
        return dataclasses.replace(read.row, turns=tuple(turns)), math.fsum(read.seconds)

    def _write_row(self, row: Row, seconds: float) -> None:
        record = row_record(row, self.output.parent)
        for item in record["conversations"]:
            if "audio" in item:
                item["audio"] = item["audio"].replace(f"{self.hidden_shards.name}/", f"{self.shards.name}/", 1)
        self.rows.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.progress.rows += 1
        self.progress.seconds += seconds

    def _write_fault(self, name: str, reason: str) -> None:
        if self.progress.faults < SHOWN_FAULTS:
            say(f"left out: {name}: {reason}".encode(errors="replace").decode())
        self.faults.write(json.dumps({"entry": name, "reason": reason}).encode() + b"\n")
        self.progress.faults += 1

    def _save(self) -> None:
        """Note how far the work is good, once it is on the disk."""
        for file in (self.rows, self.faults):
            file.flush()
            os.fsync(file.fileno())
        self.writer.sync()
        self.progress.rows_bytes, self.progress.faults_bytes, self.progress.shard = self.rows.tell(), self.faults.tell(), self.writer.state
        with appearing(self.note_path) as unfinished:
            unfinished.write_text(json.dumps(dataclasses.asdict(self.progress)), encoding="utf-8")

    def _drop_repeats(self) -> None:
        """Rows whose id an earlier row has are left out, and named."""
        again = set(repeated_ids(self.rows_path))
        if not again:
            return
        with appearing(self.rows_path) as unfinished, unfinished.open("wb") as out, self.faults_path.open("ab") as faults, self.rows_path.open("rb") as rows:
            for number, line in enumerate(rows):
                if number not in again:
                    out.write(line)
                    continue
                row_id = json.loads(line)["id"]
                faults.write(json.dumps({"entry": row_id, "reason": "its id was used before"}, ensure_ascii=False).encode() + b"\n")
                self.progress.rows, self.progress.faults = self.progress.rows - 1, self.progress.faults + 1

    def _publish(self) -> None:
        """All files to where they belong, the manifest last."""
        faults = _beside(self.output, FAULTS)
        self.faults_path.replace(faults)
        if not self.progress.faults:
            faults.unlink()
        if self.hidden_shards.exists():
            shutil.rmtree(self.shards, ignore_errors=True)
            self.hidden_shards.rename(self.shards)
        index_path(self.output).unlink(missing_ok=True)
        self.rows_path.replace(self.output)
        self.note_path.unlink(missing_ok=True)
