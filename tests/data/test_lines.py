"""Large files as streams: JSON lists by elements, lines by chunks, results in order."""

import io
import itertools
import json
import os

import pytest

from echox.core.errors import ConfigError, ManifestError
from echox.data import lines
from echox.data.lines import list_items_in, map_in_order, read_chunks


@pytest.mark.parametrize(
    "value", [[], [1, 22, 333], [{"a": ['é"]', {}]}, None, "x" * 50], [[1], [2, [3]]]], ids=str
)
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_a_list_is_read_in_any_pieces(value, piece, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", piece)
    for text in (
        json.dumps(value, ensure_ascii=False),
        "\ufeff" + json.dumps(value, indent=2) + "\n",
    ):
        assert list(list_items_in(io.BytesIO(text.encode()), "m.json")) == value


@pytest.mark.parametrize("content, reason", [
    (b"[1, 2", "not JSON"), (b"[1 2]", "not JSON"), (b"[1] 2", "not JSON"),
    (b"[" + b"9" * 5000 + b"]", "not JSON"), (b'{"a": 1}\n{"a": 2}', "name it .jsonl"),
    (b"", "not JSON"), (b"[1,]", "not JSON"), (b'["\xff"]', "not UTF-8"),
    (b'{"a": 1}', "holds a JSON object"), (b" 3", "holds a JSON number"),
])  # fmt: skip
def test_files_without_a_list_are_refused(content, reason):
    with pytest.raises(ManifestError, match=reason):
        list(list_items_in(io.BytesIO(content), "m.json"))


def test_a_long_list_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 64)
    file = io.BytesIO(b"[" + b",".join([b'{"a": 1}'] * 1000) + b"]")
    items = list_items_in(file, "m.json")
    assert len(list(itertools.islice(items, 10))) == 10 and file.tell() < 400


def test_chunks_have_line_numbers_and_offsets(tmp_path):
    content = b"one\n\n  \nfour\r\nfive"
    (tmp_path / "m").write_bytes(content)
    places = [place for chunk in read_chunks(tmp_path / "m", 4) for place in chunk.places()]
    assert [(line, raw.strip()) for line, _, raw in places] == [
        (1, b"one"),
        (4, b"four"),
        (5, b"five"),
    ]
    assert all(content[offset : offset + len(raw)] == raw for _, offset, raw in places)


def test_a_killed_process_is_an_error():
    with pytest.raises(
        ManifestError, match="was killed, perhaps for its memory; use fewer processes"
    ):
        list(map_in_order(os._exit, [1], 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_items_are_not_taken_far_ahead(processes):
    submitted = []
    results = map_in_order(abs, (submitted.append(n) or n for n in range(-40, 0)), processes)
    assert next(results) == 40 and len(submitted) <= lines.AHEAD * processes
    assert list(results) == list(range(39, 0, -1))
    with pytest.raises(ConfigError, match="processes is 0"):
        list(map_in_order(abs, [1], 0))
