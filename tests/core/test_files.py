"""Lines of a file end at a line feed alone, and what a killed process left is left out."""

import json
import os
import subprocess

import pytest

from echox.core import partial_files
from echox.core.errors import ConfigError
from echox.core.files import atomic_folder, atomic_write, complete_lines
from echox.corpora.own_answers import OwnAnswer, OwnAnswers
from echox.inference.records import Records

# All that `str.splitlines` splits at; JSON has them inside strings as they are.
LINE_ENDS = "a\u2028b\u2029c\x85d\x1ce\x1df\x1eg\x0ch\x0bi"


def test_lines_end_at_line_feeds(tmp_path):
    path = tmp_path / "file"
    assert complete_lines(path) == []
    path.write_bytes(f"{LINE_ENDS}\n\nsecond\r\nhalf a li".encode())
    assert complete_lines(path) == [LINE_ENDS, "", "second\r"]


def test_records_keep_every_character(tmp_path):
    record = {"id": LINE_ENDS, "text": LINE_ENDS, "error": None, "audio": None}
    Records(tmp_path, {}, overwrite=False).add([record])
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "of a killed ru')
    records = Records(tmp_path, {}, overwrite=False)
    assert list(records.kept.values()) == [record] == records.in_order([LINE_ENDS])


def test_own_answers_keep_every_character_and_lose_half_a_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    answer = OwnAnswer(LINE_ENDS, True)
    assert OwnAnswers(path, lambda questions, seed: [answer]).to([LINE_ENDS]) == {LINE_ENDS: answer}
    stored = path.read_text()
    # As an editor or another program may write it, without escapes.
    path.write_text(json.dumps(json.loads(stored), ensure_ascii=False) + '\n{"question": "ha')
    again = OwnAnswers(path, lambda questions, seed: [OwnAnswer("", True)])
    assert again.to([LINE_ENDS]) == {LINE_ENDS: answer}
    assert path.read_text().count("\n") == 1 and path.read_text().endswith("\n")


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def left_by(path, monkeypatch, *, pid=None, started=None, machine=None):
    """A partial file of `path` as another process names it."""
    with monkeypatch.context() as patched:
        if pid is not None:
            patched.setattr(os, "getpid", lambda: pid)
            patched.setattr(partial_files, "_own_start_time", lambda pid: started or 1)
        if machine is not None:
            patched.setattr(partial_files, "_machine", lambda: machine)
        partial = partial_files.partial_path(path)
    partial.write_text("half")
    return partial


def test_only_the_partial_files_of_dead_processes_are_deleted(tmp_path, monkeypatch):
    path = tmp_path / "00000.bin"
    dead = left_by(path, monkeypatch, pid=dead_pid())
    # Its id is that of a process which was started at another time.
    reused = left_by(path, monkeypatch, pid=os.getppid(), started=1)
    alive = left_by(path, monkeypatch)
    elsewhere = left_by(path, monkeypatch, pid=dead_pid(), machine="abcdef")
    hidden = tmp_path / ".of.the.user-1-2-3.bin"
    hidden.write_text("")
    with atomic_write(path) as unfinished:
        unfinished.write_text("whole")
    assert not dead.exists() and not reused.exists()
    assert {*tmp_path.iterdir()} == {path, alive, elsewhere, hidden}


def test_a_folder_that_another_process_writes_is_left_to_it(tmp_path, monkeypatch):
    dead, alive = (tmp_path / f"{name}" for name in ("dead", "alive"))
    partial = left_by(dead, monkeypatch, pid=dead_pid())
    partial.unlink()
    partial.mkdir()
    with atomic_folder(alive) as first:
        (first / "file").write_text("")
        with atomic_folder(tmp_path / "second"):
            assert not partial.exists() and (first / "file").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "second"]


@pytest.mark.parametrize("name", ["e" * 250, "é" * 120 + ".wav"])
def test_long_names_are_written(tmp_path, name):
    with atomic_write(tmp_path / name) as unfinished:
        unfinished.write_text("")
        assert unfinished.name.endswith((tmp_path / name).suffix)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Lines of a file that somebody, or a damaged disk, changed.
DAMAGED = (
    b"{",
    b"[1]",
    b"\xff",
    b"{}",
    b'{"id": 1, "audio": null, "error": null}',
    b'{"id": "a", "audio": 2, "error": null, "question": "q", "answer": 1, "seed": null}',
    b'{"id": "a", "question": "q", "answer": "a", "whole": true}',
    b"[" * 1000,
    b'{"id": "\\ud83d", "audio": null, "error": null}',
)


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_lines_are_left_out_and_made_again(tmp_path, caplog, line):
    record = {"id": "good", "error": None, "audio": None}
    Records(tmp_path, {"of": 1}, overwrite=False).add([record])
    path, answers = tmp_path / "answers.jsonl", tmp_path / "own.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert list(Records(tmp_path, {"of": 1}, overwrite=False).kept) == ["good"]
    assert "answers.jsonl: 1" in caplog.text
    assert len(path.read_bytes().splitlines()) == 1
    answer = OwnAnswer("yes", True)
    OwnAnswers(answers, lambda questions, seed: [answer]).to(["q"], 3)
    answers.write_bytes(line + b"\n" + answers.read_bytes())
    assert OwnAnswers(answers, lambda questions, seed: []).to(["q"], 3) == {"q": answer}
    assert len(answers.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("origin", [b"{", b"[1]", b"\xff", b"[" * 1000])
def test_answers_without_a_readable_origin_count_as_anothers(tmp_path, origin):
    Records(tmp_path, {"of": 1}, overwrite=False).add([])
    (tmp_path / "generation.json").write_bytes(origin)
    with pytest.raises(ConfigError, match="was made with another of; choose another out_dir"):
        Records(tmp_path, {"of": 1}, overwrite=False)
