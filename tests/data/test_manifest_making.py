"""Manifests made from every kind of source: broken entries are named, killed runs resume."""

import gzip
import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile

from echox.core.errors import ConfigError, ManifestError, PackageError
from echox.data import manifest_builder
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import AudioRef
from echox.data.manifest import read_manifest
from echox.data.manifest_builder import ManifestBuilder
from echox.data.manifest_making import MakeManifestConfig, make_manifest
from echox.data.sources.base import Speaker
from echox.data.sources.opening import open_source


def clip(seconds: float = 0.1, ending: str = "wav") -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, 0.1 * np.sin(np.arange(round(16_000 * seconds)) / 9), 16_000, format=ending
    )
    return file.getvalue()


def rows_of(*sources, **settings) -> list:
    """Rows of the manifest that is made from sources."""
    path = make_manifest(
        MakeManifestConfig(sources=[str(source) for source in sources], **settings)
    )
    return list(read_manifest(path).rows)


def faults(path) -> dict[str, str]:
    return {
        fault["entry"]: fault["reason"] for fault in map(json.loads, path.read_text().splitlines())
    }


@pytest.fixture
def speech(tmp_path):
    """Clips a to c, of 0.1 to 0.3 s."""
    for number, name in enumerate("abc", start=1):
        (tmp_path / f"{name}.wav").write_bytes(clip(number / 10))
    return tmp_path


def test_a_folder_of_clips_with_words_beside_them(speech):
    (speech / "a.normalized.txt").write_text("Doctor  who\n")
    (speech / "a.txt").write_text("Dr. who")
    (speech / "b.lab").write_text("bee")
    (speech / "cut.wav").write_bytes(clip()[:30])
    (speech / "cut.txt").write_text("half")
    chapter = speech / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198-0000.flac").write_bytes(clip(ending="flac"))
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n")
    rows = rows_of(speech, speaker_level=1)
    assert [row.id for row in rows] == ["a", "b", "19/198/19-198-0000"]
    assert [row.turns[1].transcription for row in rows] == ["Doctor who", "bee", "NORTHANGER ABBEY"]
    assert [row.extra.get("speaker") for row in rows] == [None, None, "19"]
    assert [row.turns[0].extra["duration_s"] for row in rows] == [0.1, 0.2, 0.1]
    assert [
        record["conversations"][0]["audio"]
        for record in map(json.loads, (speech / "manifest.jsonl").open())
    ] == ["a.wav", "b.wav", "19/198/19-198-0000.flac"]
    assert {
        name: reason.split(",")[0].split(";")[0]
        for name, reason in faults(speech / "manifest.left_out.jsonl").items()
    } == {
        "c": "has no words",
        "cut": faults(speech / "manifest.left_out.jsonl")["cut"].split(";")[0],
    }
    assert "not readable" in faults(speech / "manifest.left_out.jsonl")["cut"]
    assert [path.name for path in speech.glob(".*")] == []


def test_circular_links_and_names_that_are_not_utf_8(speech):
    (speech / "a.txt").write_text("ay")
    (speech / "loop").symlink_to(speech, target_is_directory=True)
    not_utf_8 = os.fsencode(speech) + b"/b\xff"
    os.rename(speech / "b.wav", not_utf_8 + b".wav")
    open(not_utf_8 + b".txt", "w").write("bee")
    assert [row.id for row in rows_of(speech)] == ["a"]
    assert [
        reason
        for name, reason in faults(speech / "manifest.left_out.jsonl").items()
        if "\udcff" in name
    ] == ["a name or a text in it is not UTF-8; rename or mend it"]


def test_speech_to_be_learned_and_clips_without_words(speech):
    (speech / "a.txt").write_text("Ay.")
    (row,) = rows_of(speech, speaker=Speaker.assistant)
    assert row.question is None and row.answer.text == "Ay." and row.answer.audio.name == "a.wav"
    assert len(rows_of(speech, untranscribed=True, overwrite=True)) == 3
    with pytest.raises(ConfigError, match="speaker_level is 0; folders are counted from 1"):
        rows_of(speech, speaker_level=0)


def test_a_table_with_a_header(speech):
    (speech / "t.tsv").write_text(
        'client_id\tpath\tsentence\tage\nx\ta.wav\tHe said "ay"\t\n'
        "y\tb.wav\n\tgone.wav\tno\t3\nz\tb.wav\tbee\t4\n"
    )
    rows = rows_of(speech / "t.tsv")
    assert [(row.id, row.turns[1].transcription, row.extra["speaker"]) for row in rows] == [
        ("t-1", 'He said "ay"', "x"),
        ("t-4", "bee", "z"),
    ]
    reasons = faults(speech / "t.left_out.jsonl")
    assert "fewer fields" in reasons["t-2"] and "does not exist" in reasons["t-3"]
    assert len(reasons) == 2
    (speech / "u.csv").write_text('utt,clip,said\n1,a.wav,"ay, ay"\n')
    rows = rows_of(speech / "u.csv", columns={"audio": "clip", "text": "said"})
    assert rows[0].turns[1].transcription == "ay, ay"
    with pytest.raises(
        ManifestError, match=r"columns utt, clip, said, and not sayd \(columns.text\)"
    ):
        rows_of(speech / "u.csv", columns={"audio": "clip", "text": "sayd"}, overwrite=True)
    with pytest.raises(ConfigError, match="columns.txt is unknown; did you mean 'text'"):
        rows_of(speech / "u.csv", columns={"txt": "said"})
    with pytest.raises(ManifestError, match=r"columns utt, clip, said.*set columns.audio=NAME"):
        rows_of(speech / "u.csv", overwrite=True)


def test_fairseq_tables_and_the_words_beside_them(speech):
    (speech / "train.tsv").write_text(f"{speech}\na.wav\t1600\nb.wav\t3200\n")
    (speech / "train.ltr").write_text("A Y |\nB E E | T W O |\n")
    (speech / "train.km").write_text("1 1 2\n3\n")
    rows = rows_of(speech / "train.tsv", speaker=Speaker.assistant)
    assert [(row.answer.text, row.answer.units) for row in rows] == [
        ("AY", (1, 1, 2)),
        ("BEE TWO", (3,)),
    ]
    (speech / "train.wrd").write_text("ay\nbee\ncee\n")
    assert [
        row.answer.text
        for row in rows_of(speech / "train.tsv", speaker=Speaker.assistant, overwrite=True)
    ] == ["ay", "bee"]
    assert "no clip" in faults(speech / "train.left_out.jsonl")["train-3"]


def test_fairseq_words_stay_with_their_clips_under_another_folder(speech):
    (speech / "lists").mkdir()
    (speech / "lists" / "t.tsv").write_text(
        "/where/it/was\r\na.wav\t1600\r\nb.wav\t3200\r\nc.wav\t4800\r\n"
    )
    (speech / "lists" / "t.wrd").write_bytes(b"\xef\xbb\xbfay\nbee\n\xff\n")
    rows = rows_of(
        speech / "lists" / "t.tsv",
        audio_root=os.path.relpath(speech),
        output=str(speech / "m.jsonl"),
    )
    assert [(row.turns[0].audio.name, row.turns[1].transcription) for row in rows] == [
        ("a.wav", "ay"),
        ("b.wav", "bee"),
    ]
    assert {name: reason[:12] for name, reason in faults(speech / "m.left_out.jsonl").items()} == {
        "t-3": "is not UTF-8"
    }


def test_an_unclosed_quotation_mark_is_named(speech):
    (speech / "t.csv").write_text('audio,text\na.wav,ay\nb.wav,"' + "bee\n" * 50_000)
    with pytest.raises(ManifestError, match="t.csv, line .*field larger than.*quotation mark"):
        rows_of(speech / "t.csv")


def test_a_folder_that_cannot_be_read_is_named(speech, monkeypatch):
    (speech / "a.txt").write_text("ay")
    (speech / "shut").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [row.id for row in rows_of(speech)] == ["a"]
    assert (
        faults(speech / "manifest.left_out.jsonl")[str(speech / "shut")]
        == "the folder cannot be read (Permission denied)"
    )


def test_seconds_of_the_header_replace_those_of_the_row(speech):
    for stated in ("12.0", "1" + "0" * 400, "Infinity", '"long"'):
        (speech / "n.jsonl").write_text(
            f'{{"audio": "b.wav", "duration_s": {stated}, "text": "bee"}}\n'
        )
        (made,) = rows_of(speech / "n.jsonl", overwrite=True)
        assert made.turns[0].extra == {"duration_s": 0.2}


def test_published_conversations_and_flat_rows(speech):
    turns = [
        {"from": "user", "value": "", "audio": "a.wav"},
        {
            "from": "assistant",
            "value": "Yes.",
            "transcription": "Is it?",
            "units": "1_2 3",
            "wer": 0.1,
        },
    ]
    (speech / "data.json").write_text(
        json.dumps(
            [
                {"conversations": turns},
                {"conversations": [{"from": "user"}]},
                {"conversations": turns, "topic": 3},
            ]
        )
    )
    rows = rows_of(speech / "data.json")
    assert [row.id for row in rows] == ["data-1", "data-3"] and rows[1].extra == {"topic": 3}
    assert rows[0].answer.words == ((1, 2), (3,)) and rows[0].answer.extra == {"wer": 0.1}
    assert "neither audio nor a text" in faults(speech / "data.left_out.jsonl")["data-2"]
    (speech / "nemo.jsonl").write_text(
        '{"audio_filepath": "b.wav", "duration": 0.2, "text": "bee", "lang": "en"}\n'
        '{"audio_filepath": \n"x"\n'
    )
    (row,) = rows_of(speech / "nemo.jsonl")
    assert row.turns[1].transcription == "bee" and row.extra == {"lang": "en"}
    assert len(faults(speech / "nemo.manifest.left_out.jsonl")) == 2


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_clips_of_tar_shards_are_referenced_in_the_tar(speech):
    members = [
        ("x/0.wav", clip(0.1)),
        ("x/0.txt", b"zero"),
        ("x/1.json", b'{"text": "one", "speaker": "s"}'),
        ("x/1.flac", clip(0.2, "flac")),
    ]
    tar_of(
        speech / "s.tar",
        [
            *members,
            ("x/2.wav", b"no"),
            ("x/2.txt", b"two"),
            ("x/3.txt", b"three"),
            ("README", b"hello"),
        ],
    )
    rows = rows_of(speech / "s.tar")
    assert [(row.id, row.turns[1].transcription) for row in rows] == [
        ("s/x/0", "zero"),
        ("s/x/1", "one"),
    ]
    assert rows[1].extra == {"speaker": "s"}
    reference = rows[1].turns[0].audio
    assert (
        isinstance(reference, AudioRef)
        and reference.file == speech / "s.tar"
        and audio_header(reference).duration_s == 0.2
    )
    assert (speech / "s.tar").read_bytes()[reference.offset_bytes :][
        : reference.length_bytes
    ] == members[3][1]
    reasons = faults(speech / "s.left_out.jsonl")
    assert set(reasons) == {"s/x/2", "s/x/3"} and "no audio" in reasons["s/x/3"]


def test_published_archives_are_unpacked_to_shards(speech):
    turns = [
        {"from": "user", "value": "", "audio": "wavs/q.wav"},
        {"from": "assistant", "value": "Yes."},
    ]
    rows = [
        {"conversations": turns},
        {"conversations": [{"from": "user", "value": "", "audio": "wavs/gone.wav"}, turns[1]]},
    ]
    tar_of(
        speech / "00000.tar.gz",
        [("d/wavs/q.wav", clip(0.3)), ("d/data.json", json.dumps(rows).encode())],
        "w:gz",
    )
    (row,) = rows_of(speech / "00000.tar.gz")
    assert row.question.audio.file == speech / "00000.shards/unpacked/00000.tar"
    assert len(load_audio(row.question.audio, 16_000)) == 4800
    assert "gone.wav is not in the archive" in faults(speech / "00000.left_out.jsonl")["00000-2"]
    packed = (speech / "00000.tar.gz").read_bytes()
    (speech / "half.tar.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ManifestError, match="half.tar.gz could not be unpacked"):
        rows_of(speech / "half.tar.gz")


def test_clips_of_parquet_are_copied_into_shards(speech):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "audio": {"bytes": clip(n / 10), "path": f"{n}.wav"},
            "text": f"word {n}",
            "speaker_id": n,
            "hot": n > 1,
        }
        for n in (1, 2, 3)
    ]
    table = pyarrow.Table.from_pylist(
        [
            *rows,
            {"audio": {"bytes": b"no", "path": "4.wav"}, "text": "four"},
            {"audio": {"bytes": None, "path": "gone.wav"}, "text": "five"},
        ]
    )
    parquet.write_table(table, speech / "train.parquet", row_group_size=2)
    parquet_rows = rows_of(speech / "train.parquet", shard_megabytes=1)
    samples = [len(load_audio(row.turns[0].audio, 16_000)) for row in parquet_rows]
    assert samples == [1600, 3200, 4800]
    assert parquet_rows[1].extra == {"speaker": "2", "hot": True}
    assert parquet_rows[0].turns[0].audio.file == speech / "train.shards/00000.tar"
    with tarfile.open(speech / "train.shards/00000.tar") as archive:
        assert len(archive.getmembers()) == 4
    reasons = faults(speech / "train.left_out.jsonl")
    assert "not readable" in reasons["train-4"] and "gone.wav does not exist" in reasons["train-5"]
    # What was copied is not read again beside what it was copied from.
    assert len(rows_of(speech, output=str(speech / "all.jsonl"))) == 3
    with (
        pyarrow.OSFile(str(speech / "d.arrow"), "wb") as out,
        pyarrow.ipc.new_stream(out, table.schema) as stream,
    ):
        stream.write_table(table)
    arrow_rows = rows_of(speech / "d.arrow")
    assert [row.turns[0].extra["duration_s"] for row in arrow_rows] == [0.1, 0.2, 0.3]


def test_a_missing_pyarrow_is_named_before_any_work(speech, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (speech / "x.parquet").write_bytes(b"PAR1")
    (speech / "table.tsv").write_text("path\ttext\na.wav\tone\n", encoding="utf-8")
    with pytest.raises(PackageError, match=r"pip install 'echox\[data\]'"):
        rows_of(speech / "table.tsv", speech / "x.parquet", output=str(speech / "all.jsonl"))
    assert not list(speech.glob(".all*")), "work was done before"


def test_rows_of_several_sources_have_different_ids(speech):
    for part in ("one", "two"):
        (speech / part).mkdir()
        tar_of(speech / part / "00.tar", [("k.wav", clip()), ("k.txt", part.encode())])
    rows = rows_of(speech / "*" / "00.tar", output=str(speech / "all.jsonl"))
    assert [row.id for row in rows] == ["one/00/k", "two/00/k"]
    for name in ("k-l.tar.gz", "k/l.tar.gz", "k/l.tgz"):
        (speech / name).parent.mkdir(exist_ok=True)
        tar_of(speech / name, [("x.wav", clip()), ("x.txt", name.encode())], "w:gz")
    rows = rows_of(speech / "k-l.tar.gz", speech / "k", output=str(speech / "packed.jsonl"))
    assert {row.id: row.turns[1].transcription for row in rows} == {
        "k-l/x": "k-l.tar.gz", "k/l.tar.gz/x": "k/l.tar.gz", "k/l.tgz/x": "k/l.tgz"
    }  # fmt: skip
    (speech / "t.csv").write_text("id,audio,text\nsame,a.wav,ay\nother,b.wav,bee\nsame,c.wav,cee\n")
    assert [row.id for row in rows_of(speech / "t.csv")] == ["same", "other"]
    assert faults(speech / "t.left_out.jsonl") == {"same": "its id was used before"}


def test_a_folder_that_changed_meanwhile_is_read_anew(speech, monkeypatch):
    for name in "abc":
        (speech / f"{name}.txt").write_text(name)
    monkeypatch.setattr(manifest_builder, "SAVED_ENTRIES", 2)
    source = MakeManifestConfig(sources=[str(speech)])
    save = ManifestBuilder._save_progress
    monkeypatch.setattr(
        ManifestBuilder,
        "_save_progress",
        lambda builder: (
            save(builder)
            if builder.progress.entries == 2
            else (_ for _ in ()).throw(OSError(28, "full"))
        ),
    )
    with pytest.raises(ManifestError):
        make_manifest(source)
    monkeypatch.undo()
    (speech / "a0.wav").write_bytes(clip())
    (speech / "a0.txt").write_text("new")
    assert [row.id for row in rows_of(speech)] == ["a", "a0", "b", "c"]


class Killed(BaseException):
    """As SIGKILL would end it."""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(speech, monkeypatch, kind):
    monkeypatch.setattr(manifest_builder, "SAVED_ENTRIES", 3)
    if kind == "csv":
        source = speech / "t.csv"
        source.write_text(
            "audio,text\n" + "".join(f"{'abcx'[n % 4]}.wav,word {n}\n" for n in range(20))
        )
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        source = speech / "t.parquet"
        parquet.write_table(
            pyarrow.Table.from_pylist(
                [{"audio": {"bytes": clip(n / 50 + 0.1)}, "text": f"w{n}"} for n in range(20)]
            ),
            source,
            row_group_size=4,
        )
    rows_of(source)
    outputs = ["t.jsonl", "t.left_out.jsonl" if kind == "csv" else "t.shards/00000.tar"]
    uninterrupted = [(speech / name).read_bytes() for name in outputs]
    save, check = ManifestBuilder._save_progress, ManifestBuilder._check_entry
    saves, checks = [], []

    def save_and_die(builder):
        save(builder)
        saves.append(builder.progress.entries)
        if len(saves) == 3:
            # Work after the last note is lost, and must not be there twice.
            entries = open_source(source, "t", builder.config).after(9)
            builder._write_batch(list(itertools.islice(entries, 2)))
            for file in (builder.rows, builder.faults):
                file.flush()
            raise Killed

    monkeypatch.setattr(ManifestBuilder, "_save_progress", save_and_die)
    with pytest.raises(Killed):
        rows_of(source, overwrite=True)
    monkeypatch.setattr(ManifestBuilder, "_save_progress", save)
    monkeypatch.setattr(
        ManifestBuilder,
        "_check_entry",
        lambda builder, entry: checks.append(entry) or check(builder, entry),
    )
    # The old manifest stays until the new one is complete.
    assert (speech / "t.jsonl").read_bytes() == uninterrupted[0]
    rows_of(source, overwrite=True)
    assert len(checks) == 11
    assert [(speech / name).read_bytes() for name in outputs] == uninterrupted
    assert [path.name for path in speech.glob(".*")] == []


def test_invalid_sources_and_outputs_are_refused(speech, tmp_path):
    with pytest.raises(ConfigError, match="no source was named"):
        rows_of()
    with pytest.raises(ConfigError, match="gone does not exist"):
        rows_of(speech / "gone")
    (speech / "x.zip").write_text("")
    with pytest.raises(ConfigError, match="no known kind of source.*tar.gz"):
        rows_of(speech / "x.zip")
    with pytest.raises(ManifestError, match="no entry of .* can be used; the first: .*no words"):
        rows_of(speech)
    (speech / "a.txt").write_text("ay")
    rows_of(speech)
    with pytest.raises(ConfigError, match="is there already; set overwrite=true"):
        rows_of(speech)
    with pytest.raises(ManifestError, match="lies outside the manifest's folder"):
        rows_of(speech, output=str(speech / "lists" / "m.jsonl"))
    assert len(rows_of(speech, output=str(speech / "m.jsonl"))) == 1
    (speech / "mine.shards").mkdir()
    (speech / "mine.shards" / "t.csv").write_text("audio,text\n../a.wav,ay\n")
    with pytest.raises(ConfigError, match="mine.shards holds a source.*set another output"):
        rows_of(speech / "mine.shards" / "t.csv", output=str(speech / "mine.jsonl"))
    with pytest.raises(ConfigError, match="several sources need one place"):
        rows_of(speech, speech / "lists")


def test_a_full_disk_is_named_and_nothing_is_lost(speech, monkeypatch):
    (speech / "a.txt").write_text("ay")
    monkeypatch.setattr(
        ManifestBuilder,
        "_save_progress",
        lambda builder: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    sentence = (
        r"could not be made: No space left on device \(.* free in .*\); mend that and start again"
    )
    with pytest.raises(ManifestError, match=sentence):
        rows_of(speech)
    monkeypatch.undo()
    assert len(rows_of(speech)) == 1


def test_a_gzip_file_that_is_no_tar_is_refused(speech):
    (speech / "x.tar.gz").write_bytes(gzip.compress(b"not a tar"))
    with pytest.raises(ManifestError, match="no whole tar archive"):
        rows_of(speech / "x.tar.gz")
