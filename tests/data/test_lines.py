"""Large files as streams: elements of a JSON list one by one, chunks of lines, work in order."""

import io
import itertools
import json
import os

import pytest

from echox.data import lines
from echox.data.lines import chunks_of, in_order, list_items_in
from echox.errors import ConfigError, ManifestError


@pytest.mark.parametrize("value", [[], [1, 22, 333], [{"a": ["é\"]", {}]}, None, "x" * 50], [[1], [2, [3]]]], ids=str)
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_a_list_is_read_in_any_pieces(value, piece, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", piece)
    for text in (json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value, indent=2) + "\n"):
        assert list(list_items_in(io.BytesIO(text.encode()), "m.json")) == value


@pytest.mark.parametrize("content, reason", [
    (b"[1, 2", "not JSON"), (b"[1 2]", "not JSON"), (b"[1] 2", "not JSON"), (b"[" + b"9" * 5000 + b"]", "not JSON"), (b'{"a": 1}\n{"a": 2}', "name it .jsonl"), (b"", "not JSON"), (b"[1,]", "not JSON"), (b'["\xff"]', "not UTF-8"),
    (b'{"a": 1}', "holds a JSON object"), (b" 3", "holds a JSON number"),
])  # fmt: skip
def test_what_is_no_list_is_named(content, reason):
    with pytest.raises(ManifestError, match=reason):
        list(list_items_in(io.BytesIO(content), "m.json"))


def test_a_long_list_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 64)
    file = io.BytesIO(b"[" + b",".join([b'{"a": 1}'] * 1000) + b"]")
    items = list_items_in(file, "m.json")
    assert len(list(itertools.islice(items, 10))) == 10 and file.tell() < 400


def test_chunks_know_their_places(tmp_path):
    content = b"one\n\n  \nfour\r\nfive"
    (tmp_path / "m").write_bytes(content)
    found = [place for chunk in chunks_of(tmp_path / "m", 4) for place in chunk.places()]
    assert [(line, raw.strip()) for line, _, raw in found] == [(1, b"one"), (4, b"four"), (5, b"five")]
    assert all(content[offset : offset + len(raw)] == raw for _, offset, raw in found)


def test_a_process_that_is_killed_is_said():
    with pytest.raises(ManifestError, match="was killed, perhaps for its memory; use fewer processes"):
        list(in_order(os._exit, [1], 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_work_comes_back_in_order_and_is_not_taken_far_ahead(processes):
    taken = []
    results = in_order(abs, (taken.append(n) or n for n in range(-40, 0)), processes)
    assert next(results) == 40 and len(taken) <= lines.AHEAD * processes
    assert list(results) == list(range(39, 0, -1))
    with pytest.raises(ConfigError, match="processes is 0"):
        list(in_order(abs, [1], 0))
