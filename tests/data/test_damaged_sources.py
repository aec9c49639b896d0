"""Sources that are damaged or made to harm: bounded before they are read, named, and counted."""

import gzip
import io
import json
import os
import struct
import tarfile

import numpy as np
import pytest
import soundfile

from echox.core.errors import ConfigError, ManifestError
from echox.data import shards
from echox.data.manifest import read_manifest
from echox.data.manifest_making import MakeManifestConfig, make_manifest
from echox.data.shards import unpack
from echox.data.sources import folder, parquet, table, tar
from echox.data.sources.base import SourceConfig, SourceFault
from echox.data.sources.parquet import ParquetSource

HUGE = 6 << 30


def clip() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(1600) / 9), 16_000, format="wav")
    return file.getvalue()


def rows_of(path) -> list:
    config = MakeManifestConfig(sources=[str(path)], overwrite=True)
    return list(read_manifest(make_manifest(config)).rows)


def faults(path) -> dict[str, str]:
    return {fault["entry"]: fault["reason"] for fault in map(json.loads, path.open())}


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes) -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def negative(size: int) -> bytes:
    """Header of a member whose size leads back to it."""
    content = bytearray(header("a.wav"))
    content[124:136] = size.to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
def test_a_header_that_states_gigabytes_is_not_read(tmp_path, kind):
    path = tmp_path / "s.tar"
    path.write_bytes(header("x", HUGE, kind))
    os.truncate(path, HUGE + 1024)
    with pytest.raises(ManifestError, match=f"a header states {HUGE} bytes; 1 MiB is the most"):
        rows_of(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (negative(-512), "no possible size"),
        (negative(-1024), "no possible size"),
        (header("x", 10, tarfile.GNUTYPE_LONGNAME) + b"a" * 10 + bytes(502), "recursion"),
        (member("a.wav", clip()) + b"x" * 512 + member("b.wav", clip()), "header after .* damaged"),
        (member("a.wav", clip()) + member("b.wav", clip())[:300], "header after .* damaged"),
        (header("a.wav", HUGE), "end of data"),
    ],
)
def test_damaged_headers_of_a_tar_are_named(tmp_path, content, reason):
    (tmp_path / "s.tar").write_bytes(content * (2000 if reason == "recursion" else 1))
    with pytest.raises(ManifestError, match=f"no whole tar archive .*{reason}"):
        rows_of(tmp_path / "s.tar")


NO_FILES = [
    header("pipe.wav", kind=tarfile.FIFOTYPE),
    header("device.txt", kind=tarfile.CHRTYPE),
    header("disk", kind=tarfile.BLKTYPE),
    header("link.wav", kind=tarfile.SYMTYPE, link="pipe.wav"),
    header("hard.txt", kind=tarfile.LNKTYPE, link="gone.txt"),
    header("folder", kind=tarfile.DIRTYPE),
    member("inner.tar.gz", b"x"),
    member("a.wav", b"the first one"),
]
REASONS = {
    "s/pipe.wav": "is a pipe or a device; only regular files are read",
    "s/device.txt": "is a pipe or a device; only regular files are read",
    "s/disk": "is a pipe or a device; only regular files are read",
    "s/link.wav": "is a link; only regular files are read",
    "s/hard.txt": "is a link; only regular files are read",
    "s/inner.tar.gz": "is an archive in the archive; unpack it, and name it as a source of its own",
    "s/a.wav": "is in the archive twice; the last one is read, as tar itself does",
}


def test_members_that_are_no_files_are_counted_by_reason(tmp_path, capsys):
    words = member("a.txt", b"ay") + member("b.flac", b"b") + member("b.wav", b"b")
    words += header("long.txt", 17 << 20) + bytes(17 << 20)
    (tmp_path / "s.tar").write_bytes(b"".join(NO_FILES) + member("a.wav", clip()) + words)
    (row,) = rows_of(tmp_path / "s.tar")
    assert row.id == "s/a" and row.turns[1].transcription == "ay"
    others = {
        "s/long.txt": "has 17,825,792 bytes; 16 MiB of words are the most",
        "s/b.wav": "is not the first clip of its name; the last one is read",
        "s/b": "has no words; put them beside it, or set untranscribed=true",
    }
    assert faults(tmp_path / "s.left_out.jsonl") == REASONS | others
    printed = capsys.readouterr().out
    assert "1 rows, 0.1 s; 10 entries left out" in printed
    assert "        3  is a pipe or a device" in printed and "        2  is a link;" in printed


def test_an_archive_of_conversations_leaves_out_the_same(tmp_path):
    turns = [{"from": "user", "audio": "a.wav"}, {"from": "assistant", "value": "Yes."}]
    conversations = json.dumps([{"id": "1", "conversations": turns}]).encode()
    lists = member("data.json", b"[]") + member("data.json", conversations)
    (tmp_path / "s.tar").write_bytes(b"".join(NO_FILES) + member("a.wav", clip()) + lists)
    (row,) = rows_of(tmp_path / "s.tar")
    assert row.id == "1"
    twice = {"s/data.json": REASONS["s/a.wav"]}
    assert faults(tmp_path / "s.left_out.jsonl") == REASONS | twice


def test_only_regular_files_of_a_folder_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LABEL_BYTES", 100)
    for name in ("a.wav", "b.wav", "c.wav", "d.wav"):
        (tmp_path / name).write_bytes(clip())
    (tmp_path / "a.txt").write_text("ay")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.lab").symlink_to("/dev/zero")
    (tmp_path / "d.txt").write_text("d" * 101)
    os.mkfifo(tmp_path / "e.wav")
    (tmp_path / "e.txt").write_text("ee")
    (tmp_path / "f.wav").symlink_to("/dev/zero")
    (tmp_path / "f.txt").write_text("ef")
    os.mkfifo(tmp_path / "x.trans.txt")
    assert [row.id for row in rows_of(tmp_path)] == ["a"]
    reasons = faults(tmp_path / "manifest.left_out.jsonl")
    assert "b.txt is no regular file" in reasons["b"] and "c.lab is no reg" in reasons["c"]
    assert "d.txt has more than" in reasons["d"] and "x.trans.txt is no" in reasons[str(tmp_path)]
    assert "is no regular file" in reasons["e"] and "outside" in reasons["f"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "parquet", "csv", "tsv", "jsonl", "json"])
def test_pipes_are_refused_as_sources(tmp_path, ending):
    os.mkfifo(tmp_path / f"s.{ending}")
    with pytest.raises(ConfigError, match="is no regular file; copy what it holds to one"):
        rows_of(tmp_path / f"s.{ending}")


def test_packed_archives_unpack_to_no_more_than_audio_does(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(bytes(3 << 20)))
    with pytest.raises(ManifestError, match="unpacks to more than 1 MiB, far more than audio"):
        unpack(tmp_path / "s.tar.gz", tmp_path / "s.tar")
    packed = bytearray(gzip.compress(os.urandom(5000) + bytes(5000)))
    packed[10] |= 0b110  # the kind of the first block, which none has
    (tmp_path / "s.tar.gz").write_bytes(packed)
    with pytest.raises(ManifestError, match="could not be unpacked .*invalid block type"):
        unpack(tmp_path / "s.tar.gz", tmp_path / "s.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar.gz"]


@pytest.mark.parametrize("ending, comma", [("csv", ","), ("tsv", "\t")])
def test_lines_and_fields_of_tables_are_bounded(tmp_path, monkeypatch, ending, comma):
    path = tmp_path / f"t.{ending}"
    path.write_text(f"audio{comma}{'x' * 200_000}\n")
    with pytest.raises(ManifestError, match="line 1: field larger than field limit"):
        rows_of(path)
    path.write_text(comma.join(map(str, range(5000))) + "\n")
    with pytest.raises(ManifestError, match=" 29 and 4,970 more, none of which"):
        rows_of(path)
    monkeypatch.setattr(table, "ROW_BYTES", 1000)
    path.write_text(f"audio{comma}text\n{'x' * 2000}")
    with pytest.raises(ManifestError, match="a line of more than .* no row of a table"):
        rows_of(path)


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def write_parquet(path, columns: dict, **settings):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, compression="zstd", **settings)
    return ParquetSource(path, "p", SourceConfig())


def test_columns_that_expand_are_refused_before_they_are_read(tmp_path, arrow, monkeypatch):
    monkeypatch.setattr(parquet, "_COLUMN_BYTES", 1 << 20)
    monkeypatch.setattr(parquet, "_COLUMN_VALUES", 1000)
    path = tmp_path / "p.parquet"
    silence = bytes(4 << 20)
    source = write_parquet(path, {"audio": [silence], "text": ["a"]}, use_dictionary=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(ManifestError, match="column audio of .* expands .* times to 4 MiB"):
        next(source.entries())
    units = arrow.array([[1] * 2000], arrow.list_(arrow.int64()))
    source = write_parquet(path, {"audio": [b"a"], "units": units})
    with pytest.raises(ManifestError, match="units.list.element of .* has 2,000 values"):
        next(source.entries())
    source = write_parquet(path, {"audio": [b"a"], "units": [["1"]]})
    with pytest.raises(ManifestError, match="units of .* is list<element: string>; units are"):
        next(source.entries())
    # Not in the manifest, so it is not read either.
    source = write_parquet(path, {"audio": [b"a"], "text": ["b"], "image": units})
    assert next(source.entries()).name == "p-1"


def test_values_that_a_dictionary_stores_once_come_a_few_rows_at_a_time(
    tmp_path, arrow, monkeypatch
):
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 300_000)
    columns = {"audio": [bytes(range(256)) * 400] * 50, "text": ["a"] * 50}
    source = write_parquet(tmp_path / "p.parquet", columns)
    _, batches = source._batches(0)
    assert [batch.num_rows for batch in batches] == [2] * 25
    assert [entry.name for entry in source.after(47)] == ["p-48", "p-49", "p-50"]


def test_damaged_values_spoil_their_own_row(tmp_path, arrow):
    texts = ["a" * 50, "b" * 50, "c" * 50]
    columns = {"audio": [b"RIFF"] * 3, "text": texts, "name": ["n"] * 3, "self": [1] * 3}
    path = tmp_path / "p.arrow"
    with arrow.OSFile(str(path), "wb") as out:
        with arrow.ipc.new_stream(out, arrow.table(columns).schema) as stream:
            stream.write_table(arrow.table(columns))
    source = ParquetSource(path, "p", SourceConfig())
    whole = list(source.entries())
    # Columns whose names are those of Python's own words and of the reader's arguments.
    assert [entry.record["name"] for entry in whole] == ["n"] * 3 and "self" in whole[0].record
    content = path.read_bytes()
    path.write_bytes(content.replace(b"b" * 50, b"\xff" * 50))
    good, bad, last = source.entries()
    assert (good, last) == (whole[0], whole[2])
    assert isinstance(bad, SourceFault) and "is damaged (" in bad.reason and "UTF8" in bad.reason
    # Offsets beyond the buffer, which would end the process.
    offsets = struct.pack("<4i", 0, 50, 100, 150)
    path.write_bytes(content.replace(offsets, struct.pack("<4i", 0, 50, 1 << 30, 150)))
    assert sum(isinstance(entry, SourceFault) for entry in source.entries()) >= 1


def test_compressed_arrow_files_are_refused(tmp_path, arrow):
    data = arrow.table({"audio": [bytes(9999)], "text": arrow.array(["a"]).dictionary_encode()})
    for compression in (None, "zstd"):
        options = arrow.ipc.IpcWriteOptions(compression=compression)
        with arrow.OSFile(str(tmp_path / "p.arrow"), "wb") as out:
            with arrow.ipc.new_stream(out, data.schema, options=options) as stream:
                stream.write_table(data)
        source = ParquetSource(tmp_path / "p.arrow", "p", SourceConfig())
        if compression is None:
            assert next(source.entries()).name == "p-1"
    with pytest.raises(ManifestError, match="is compressed, so that its batches may have any"):
        next(source.entries())


def test_pax_headers_of_names_are_read(tmp_path):
    name = "é" * 300
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for ending, data in ((".wav", clip()), (".txt", b"ay")):
            info = tarfile.TarInfo(name + ending)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (row,) = rows_of(tmp_path / "s.tar")
    assert row.id == f"s/{name}" and tar._HEADER_BYTES > 600
