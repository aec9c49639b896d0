"""Large files as streams: JSON lists by elements, lines by chunks, results in order."""

import io
import itertools
import json
import os

import pytest

from echox.core.errors import ConfigError, ManifestError
from echox.data import lines, row_reader
from echox.data.line_shards import LineShards
from echox.data.lines import list_items_in, map_in_order, read_chunks, read_records


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


@pytest.fixture
def short_rows(monkeypatch):
    """Rows of 100 bytes at most, so that a longer one needs no gigabyte."""
    monkeypatch.setattr(lines, "ROW_BYTES", 100)
    monkeypatch.setattr(row_reader, "ROW_BYTES", 100)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_row_without_an_end_is_refused_and_not_held(tmp_path, short_rows, end):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 1000 + end + b'{"c": 3}' * bool(end))
    records = dict(read_records(path))
    assert records.pop(1) == {"a": 1} and records.pop(3, {"c": 3}) == {"c": 3}
    assert "a row has more than" in str(records.pop(2)) and not records
    # Of 9 bytes too: then the long row begins with its chunk.
    assert all(len(c.lines[-1]) != 100 for c in read_chunks(path, 9) if not c.is_rest)
    chunks = list(read_chunks(path, 4))
    places = [place for chunk in chunks for place in chunk.places()]
    assert [line for line, _, _ in places] == [1, 2, 3][: 2 + bool(end)]
    assert b"".join(raw for chunk in chunks for raw in chunk.lines) == path.read_bytes()
    assert max(len(raw) for _, _, raw in places) <= 204
    assert len(LineShards(path, 1)) == 2 + bool(end)


def test_an_element_without_an_end_is_refused_and_not_held(monkeypatch, short_rows):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 16)
    for begin in (b'[{"a": "', b'{"a": "'):
        file = io.BytesIO(begin + b"x" * 10_000)
        with pytest.raises(ManifestError, match="more than|holds no JSON list"):
            list(list_items_in(file, "m.json"))
        assert file.tell() < 500
    long, short = list_items_in(io.BytesIO(b'["' + b"x" * 110 + b'", 1]'), "m.json")
    assert "a row has more than" in str(long) and short == 1


@pytest.mark.parametrize("levels", [101, 500, 970, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nested_rows_are_refused(tmp_path, levels, brackets):
    opening = {"[": "[", "{": '{"a": '}[brackets[0]]
    nested = opening * levels + "1" + brackets[1] * levels
    (tmp_path / "m.jsonl").write_text(f'{nested}\n{{"b": [[2]]}}')
    (_, deep), (_, flat) = read_records(tmp_path / "m.jsonl")
    assert "nested deeper than 100 levels" in str(deep) and flat == {"b": [[2]]}
    (tmp_path / "m.json").write_text(f"[{nested}, 2]")
    try:
        (_, deep), (_, flat) = read_records(tmp_path / "m.json")
        assert "nested deeper than 100 levels" in str(deep) and flat == 2
    except ManifestError as error:  # beyond what Python itself parses, no row after it is found
        assert levels > 900 and "nested deeper than 100 levels" in str(error)


def test_pipes_are_refused_as_manifests(tmp_path):
    os.mkfifo(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="is no regular file"):
        list(read_records(tmp_path / "m.jsonl"))


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
