"""Shards of units: each made once however many work on them, none lost to a killed process, ids used twice found across them."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from echox.corpora.unit_shards import Made, UnitShards
from echox.data.line_shards import LineShards
from echox.data.manifest import Problem, Row
from echox.errors import AssetError, ManifestError

FORK = multiprocessing.get_context("fork")
ROWS, SIZE = 23, 3


def written(folder: Path, ids=None) -> Path:
    ids = [f"row{number}" for number in range(ROWS)] if ids is None else ids
    lines = [json.dumps({"id": name, "conversations": [{"from": "assistant", "value": f"Said by {name}."}]}) for name in ids]
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "m.jsonl"


def shards_of(folder: Path, work: str = "work") -> UnitShards:
    return UnitShards(LineShards(folder / "m.jsonl", SIZE), folder / work, folder / f"{work}.jsonl")


class Maker:
    """Makes a shard of its rows as they are, and writes down that it did."""

    def __init__(self, shards: UnitShards) -> None:
        self.shards = shards
        self.log = shards.folder.parent / "made.log"

    def __call__(self, number: int) -> Made:
        with self.log.open("a") as log:
            log.write(f"{number}\n")
        found = list(self.shards.source.rows(number))
        problems = [row for _, row in found if isinstance(row, Problem)]
        return Made([(line, row) for line, row in found if isinstance(row, Row)], problems, 1.5)

    def made(self) -> list[int]:
        return sorted(map(int, self.log.read_text().split()))


class Slow(Maker):
    def __call__(self, number: int) -> Made:
        time.sleep(0.01)
        return super().__call__(number)


class Killed(Maker):
    """Is killed while it holds its third shard."""

    def __call__(self, number: int) -> Made:
        made = super().__call__(number)
        if len(self.made()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return made


class Hanging(Maker):
    def __call__(self, number: int) -> Made:
        super().__call__(number)
        time.sleep(60)
        raise AssertionError


def make_all(folder: Path, maker: type[Maker], first: int = 0) -> None:
    shards = shards_of(folder)
    shards.make([*range(first, len(shards)), *range(first)], maker(shards))


def started(folder: Path, maker: type[Maker], first: int = 0):
    process = FORK.Process(target=make_all, args=(folder, maker, first))
    process.start()
    return process


def test_processes_that_race_make_every_shard_once(tmp_path):
    written(tmp_path)
    processes = [started(tmp_path, Slow, first) for first in (0, 0, 4)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shards = shards_of(tmp_path)
    assert Maker(shards).made() == list(range(8)) and shards.merge()
    assert [json.loads(line)["id"] for line in shards.target.read_text().splitlines()] == [f"row{number}" for number in range(ROWS)]


def test_a_killed_process_loses_only_the_shard_it_held(tmp_path):
    written(tmp_path)
    process = started(tmp_path, Killed)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    shards = shards_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.jsonl")}
    assert sorted(shards.done()) == [0, 1] and not shards.merge() and not shards.target.exists()
    shards.make(range(len(shards)), maker := Maker(shards))
    assert maker.made() == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.jsonl")}.items()
    whole = shards_of(tmp_path, "whole")
    whole.make(range(len(whole)), Maker(whole))
    assert shards.merge() and whole.merge() and shards.target.read_bytes() == whole.target.read_bytes()


def test_the_shard_of_a_process_that_dies_is_taken_over_by_one_that_waits(tmp_path):
    written(tmp_path)
    process = started(tmp_path, Hanging)
    while not (tmp_path / "made.log").exists():
        time.sleep(0.01)
    threading.Timer(0.3, process.kill).start()
    shards = shards_of(tmp_path)
    shards.make(range(len(shards)), maker := Maker(shards))
    assert maker.made() == [0, 0, *range(1, 8)] and shards.merge()
    process.join(30)


def test_a_full_disk_is_said_and_costs_nothing_that_was_finished(tmp_path, monkeypatch):
    written(tmp_path)
    shards = shards_of(tmp_path)
    write_bytes = Path.write_bytes

    def full(path, content):
        if "000002" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(AssetError, match="No space left on device; finished shards are kept"):
            shards.make(range(len(shards)), Maker(shards))
    assert sorted(shards.done()) == [0, 1] and not list(shards.folder.glob(".*"))
    shards.make(range(len(shards)), maker := Maker(shards))
    assert maker.made() == [0, 1, 2, 2, 3, 4, 5, 6, 7] and shards.merge()


def test_a_shard_whose_rows_were_cut_off_is_made_again(tmp_path):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.make(range(len(shards)), Maker(shards))
    with (shards.folder / "000003.jsonl").open("r+b") as rows:
        rows.truncate(10)
    (shards.folder / "000005.json").write_bytes(b"")
    assert sorted(shards_of(tmp_path).done()) == [0, 1, 2, 4, 6, 7]


def test_the_work_on_a_shard_does_not_grow_with_their_number(tmp_path, monkeypatch):
    written(tmp_path)
    shards, looks = shards_of(tmp_path), []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: looks.append(path) or glob(path, pattern))
    shards.make(range(len(shards)), maker := Maker(shards))
    assert maker.made() == list(range(8)) and looks == []


def test_what_is_broken_is_named_in_a_side_file_and_an_id_used_twice_in_another_shard_too(tmp_path):
    path = written(tmp_path, ["a", "b", "c", "d", "a", "e", "b"])
    with path.open("ab") as out:
        out.write(b'{"id": "\xff"}\n\n{"id": "f"')
    shards = shards_of(tmp_path)
    shards.make(range(len(shards)), Maker(shards))
    assert shards.merge()
    assert [json.loads(line)["id"] for line in shards.target.read_text().splitlines()] == ["a", "b", "c", "d", "e"]
    named = [json.loads(line) for line in shards.broken_path.read_text().splitlines()]
    assert [(one["line"], one["id"]) for one in named] == [(5, "a"), (7, "b"), (8, None), (10, None)]
    assert [one["reason"].split(" (")[0] for one in named] == [
        "id 'a' was already used in line 1", "id 'b' was already used in line 2", "not UTF-8 text", "not JSON"
    ]  # fmt: skip


def test_what_is_up_to_date_is_left_alone_and_what_is_not_is_written_again(tmp_path):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.make(range(len(shards)), Maker(shards))
    assert shards.merge()
    before = shards.target.stat().st_ino
    assert shards_of(tmp_path).merge() and shards.target.stat().st_ino == before
    content = shards.target.read_bytes()
    shards.target.write_bytes(content[:100])
    assert shards_of(tmp_path).merge() and shards.target.read_bytes() == content


def test_a_manifest_without_lines_or_usable_rows_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(ManifestError, match="is empty"):
        shards_of(tmp_path)
    (tmp_path / "m.jsonl").write_text("{\n")
    shards = shards_of(tmp_path)
    shards.make([0], Maker(shards))
    with pytest.raises(ManifestError, match="no row of .* has an answer with usable audio: 1 are broken"):
        shards.merge()
    assert not shards.target.exists() and not list(tmp_path.glob(".*"))
