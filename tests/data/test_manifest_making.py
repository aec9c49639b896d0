"""Manifests made from every kind of source; broken entries are named, and a killed run ends with the same bytes."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile

from echox.data import manifest_making
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import AudioRef
from echox.data.manifest import read_manifest
from echox.data.manifest_making import MakeManifestConfig, make_manifest
from echox.data.sources.base import Speaker
from echox.errors import ConfigError, ManifestError, PackageError


def clip(seconds: float = 0.1, ending: str = "wav") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(round(16_000 * seconds)) / 9), 16_000, format=ending)
    return file.getvalue()


def made(*sources, **settings) -> list:
    """Rows of the manifest that sources make."""
    path = make_manifest(MakeManifestConfig(sources=[str(source) for source in sources], **settings))
    return list(read_manifest(path).rows)


def faults(path) -> dict[str, str]:
    return {found["entry"]: found["reason"] for found in map(json.loads, path.read_text().splitlines())}


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
    rows = made(speech, speaker_level=1)
    assert [row.id for row in rows] == ["a", "b", "19/198/19-198-0000"]
    assert [row.turns[1].transcription for row in rows] == ["Doctor who", "bee", "NORTHANGER ABBEY"]
    assert [row.extra.get("speaker") for row in rows] == [None, None, "19"]
    assert [row.turns[0].extra["duration_s"] for row in rows] == [0.1, 0.2, 0.1]
    assert [one["conversations"][0]["audio"] for one in map(json.loads, (speech / "manifest.jsonl").open())] == ["a.wav", "b.wav", "19/198/19-198-0000.flac"]
    assert {name: reason.split(",")[0].split(";")[0] for name, reason in faults(speech / "manifest.left_out.jsonl").items()} == {
        "c": "has no words",
        "cut": faults(speech / "manifest.left_out.jsonl")["cut"].split(";")[0],
    }
    assert "not readable" in faults(speech / "manifest.left_out.jsonl")["cut"]
    assert [path.name for path in speech.glob(".*")] == []


def test_links_in_a_circle_and_names_that_are_no_text(speech):
    (speech / "a.txt").write_text("ay")
    (speech / "loop").symlink_to(speech, target_is_directory=True)
    odd = os.fsencode(speech) + b"/b\xff"
    os.rename(speech / "b.wav", odd + b".wav")
    open(odd + b".txt", "w").write("bee")
    assert [row.id for row in made(speech)] == ["a"]
    assert [reason for name, reason in faults(speech / "manifest.left_out.jsonl").items() if "\udcff" in name] == ["a name or a text in it is not UTF-8; rename or mend it"]


def test_speech_to_be_learned_and_clips_without_words(speech):
    (speech / "a.txt").write_text("Ay.")
    (row,) = made(speech, speaker=Speaker.assistant)
    assert row.question is None and row.answer.text == "Ay." and row.answer.audio.name == "a.wav"
    assert len(made(speech, untranscribed=True, overwrite=True)) == 3
    with pytest.raises(ConfigError, match="speaker_level is 0; folders are counted from 1"):
        made(speech, speaker_level=0)


def test_a_table_with_a_header(speech):
    (speech / "t.tsv").write_text('client_id\tpath\tsentence\tage\nx\ta.wav\tHe said "ay"\t\ny\tb.wav\n\tgone.wav\tno\t3\nz\tb.wav\tbee\t4\n')
    rows = made(speech / "t.tsv")
    assert [(row.id, row.turns[1].transcription, row.extra["speaker"]) for row in rows] == [("t-1", 'He said "ay"', "x"), ("t-4", "bee", "z")]
    named = faults(speech / "t.left_out.jsonl")
    assert "fewer fields" in named["t-2"] and "does not exist" in named["t-3"] and len(named) == 2
    (speech / "u.csv").write_text('utt,clip,said\n1,a.wav,"ay, ay"\n')
    assert made(speech / "u.csv", columns={"audio": "clip", "text": "said"})[0].turns[1].transcription == "ay, ay"
    with pytest.raises(ManifestError, match=r"columns utt, clip, said, and not sayd \(columns.text\)"):
        made(speech / "u.csv", columns={"audio": "clip", "text": "sayd"}, overwrite=True)
    with pytest.raises(ConfigError, match="columns.txt is unknown; did you mean 'text'"):
        made(speech / "u.csv", columns={"txt": "said"})
    with pytest.raises(ManifestError, match=r"columns utt, clip, said.*set columns.audio=NAME"):
        made(speech / "u.csv", overwrite=True)


def test_fairseq_tables_and_the_words_beside_them(speech):
    (speech / "train.tsv").write_text(f"{speech}\na.wav\t1600\nb.wav\t3200\n")
    (speech / "train.ltr").write_text("A Y |\nB E E | T W O |\n")
    (speech / "train.km").write_text("1 1 2\n3\n")
    rows = made(speech / "train.tsv", speaker=Speaker.assistant)
    assert [(row.answer.text, row.answer.units) for row in rows] == [("AY", (1, 1, 2)), ("BEE TWO", (3,))]
    (speech / "train.wrd").write_text("ay\nbee\ncee\n")
    assert [row.answer.text for row in made(speech / "train.tsv", speaker=Speaker.assistant, overwrite=True)] == ["ay", "bee"]
    assert "no clip" in faults(speech / "train.left_out.jsonl")["train-3"]


def test_fairseq_words_stay_with_their_clips_under_another_folder(speech):
    (speech / "lists").mkdir()
    (speech / "lists" / "t.tsv").write_text("/where/it/was\r\na.wav\t1600\r\nb.wav\t3200\r\nc.wav\t4800\r\n")
    (speech / "lists" / "t.wrd").write_bytes(b"\xef\xbb\xbfay\nbee\n\xff\n")
    rows = made(speech / "lists" / "t.tsv", audio_root=os.path.relpath(speech), output=str(speech / "m.jsonl"))
    assert [(row.turns[0].audio.name, row.turns[1].transcription) for row in rows] == [("a.wav", "ay"), ("b.wav", "bee")]
    assert {name: reason[:12] for name, reason in faults(speech / "m.left_out.jsonl").items()} == {"t-3": "is not UTF-8"}


def test_a_quotation_mark_that_nothing_closes_is_named(speech):
    (speech / "t.csv").write_text('audio,text\na.wav,ay\nb.wav,"' + "bee\n" * 50_000)
    with pytest.raises(ManifestError, match="t.csv, line .*field larger than.*quotation mark"):
        made(speech / "t.csv")


def test_a_folder_that_cannot_be_read_is_named(speech, monkeypatch):
    (speech / "a.txt").write_text("ay")
    (speech / "shut").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [row.id for row in made(speech)] == ["a"]
    assert faults(speech / "manifest.left_out.jsonl")[str(speech / "shut")] == "the folder cannot be read (Permission denied)"


def test_what_the_header_says_goes_before_what_the_row_says(speech):
    (speech / "n.jsonl").write_text('{"audio": "b.wav", "duration_s": 12.0, "text": "bee"}\n')
    assert made(speech / "n.jsonl")[0].turns[0].extra == {"duration_s": 0.2}


def test_published_conversations_and_flat_rows(speech):
    turns = [{"from": "user", "value": "", "audio": "a.wav"}, {"from": "assistant", "value": "Yes.", "transcription": "Is it?", "units": "1_2 3", "wer": 0.1}]
    (speech / "data.json").write_text(json.dumps([{"conversations": turns}, {"conversations": [{"from": "user"}]}, {"conversations": turns, "topic": 3}]))
    rows = made(speech / "data.json")
    assert [row.id for row in rows] == ["data-1", "data-3"] and rows[1].extra == {"topic": 3}
    assert rows[0].answer.words == ((1, 2), (3,)) and rows[0].answer.extra == {"wer": 0.1}
    assert "neither audio nor a text" in faults(speech / "data.left_out.jsonl")["data-2"]
    (speech / "nemo.jsonl").write_text('{"audio_filepath": "b.wav", "duration": 0.2, "text": "bee", "lang": "en"}\n{"audio_filepath": \n"x"\n')
    (row,) = made(speech / "nemo.jsonl")
    assert row.turns[1].transcription == "bee" and row.extra == {"lang": "en"}
    assert len(faults(speech / "nemo.manifest.left_out.jsonl")) == 2


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_tar_shards_are_referenced_where_they_lie(speech):
    members = [("x/0.wav", clip(0.1)), ("x/0.txt", b"zero"), ("x/1.json", b'{"text": "one", "speaker": "s"}'), ("x/1.flac", clip(0.2, "flac"))]
    tar_of(speech / "s.tar", [*members, ("x/2.wav", b"no"), ("x/2.txt", b"two"), ("x/3.txt", b"three"), ("README", b"hello")])
    rows = made(speech / "s.tar")
    assert [(row.id, row.turns[1].transcription) for row in rows] == [("s/x/0", "zero"), ("s/x/1", "one")]
    assert rows[1].extra == {"speaker": "s"}
    reference = rows[1].turns[0].audio
    assert isinstance(reference, AudioRef) and reference.file == speech / "s.tar" and audio_header(reference).duration_s == 0.2
    assert (speech / "s.tar").read_bytes()[reference.offset_bytes :][: reference.length_bytes] == members[3][1]
    named = faults(speech / "s.left_out.jsonl")
    assert set(named) == {"s/x/2", "s/x/3"} and "no audio" in named["s/x/3"]


def test_published_archives_are_unpacked_to_shards(speech):
    turns = [{"from": "user", "value": "", "audio": "wavs/q.wav"}, {"from": "assistant", "value": "Yes."}]
    rows = [{"conversations": turns}, {"conversations": [{"from": "user", "value": "", "audio": "wavs/gone.wav"}, turns[1]]}]
    tar_of(speech / "00000.tar.gz", [("d/wavs/q.wav", clip(0.3)), ("d/data.json", json.dumps(rows).encode())], "w:gz")
    (row,) = made(speech / "00000.tar.gz")
    assert row.question.audio.file == speech / "00000.shards/unpacked/00000.tar"
    assert len(load_audio(row.question.audio, 16_000)) == 4800
    assert "gone.wav is not in the archive" in faults(speech / "00000.left_out.jsonl")["00000-2"]
    whole = (speech / "00000.tar.gz").read_bytes()
    (speech / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match="half.tar.gz could not be unpacked"):
        made(speech / "half.tar.gz")


def test_clips_of_parquet_are_copied_into_shards(speech):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"audio": {"bytes": clip(n / 10), "path": f"{n}.wav"}, "text": f"word {n}", "speaker_id": n, "hot": n > 1} for n in (1, 2, 3)]
    table = pyarrow.Table.from_pylist([*rows, {"audio": {"bytes": b"no", "path": "4.wav"}, "text": "four"}, {"audio": {"bytes": None, "path": "gone.wav"}, "text": "five"}])
    parquet.write_table(table, speech / "train.parquet", row_group_size=2)
    found = made(speech / "train.parquet", shard_megabytes=1)
    assert [len(load_audio(row.turns[0].audio, 16_000)) for row in found] == [1600, 3200, 4800]
    assert found[1].extra == {"speaker": "2", "hot": True} and found[0].turns[0].audio.file == speech / "train.shards/00000.tar"
    with tarfile.open(speech / "train.shards/00000.tar") as archive:
        assert len(archive.getmembers()) == 4
    named = faults(speech / "train.left_out.jsonl")
    assert "not readable" in named["train-4"] and "gone.wav does not exist" in named["train-5"]
    # What was copied is not read again beside what it was copied from.
    assert len(made(speech, output=str(speech / "all.jsonl"))) == 3
    with pyarrow.OSFile(str(speech / "d.arrow"), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    assert [row.turns[0].extra["duration_s"] for row in made(speech / "d.arrow")] == [0.1, 0.2, 0.3]


def test_pyarrow_is_asked_for_by_name(speech, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (speech / "x.parquet").write_bytes(b"PAR1")
    (speech / "table.tsv").write_text("path\ttext\na.wav\tone\n", encoding="utf-8")
    with pytest.raises(PackageError, match=r"pip install 'echox\[data\]'"):
        made(speech / "table.tsv", speech / "x.parquet", output=str(speech / "all.jsonl"))
    assert not list(speech.glob(".all*")), "work was done before"


def test_several_sources_tell_their_rows_apart(speech):
    for part in ("one", "two"):
        tar_of(speech / part / "00.tar", [("k.wav", clip()), ("k.txt", part.encode())]) if (speech / part).mkdir() is None else None
    rows = made(speech / "*" / "00.tar", output=str(speech / "all.jsonl"))
    assert [row.id for row in rows] == ["one/00/k", "two/00/k"]
    for name in ("k-l.tar.gz", "k/l.tar.gz", "k/l.tgz"):
        (speech / name).parent.mkdir(exist_ok=True)
        tar_of(speech / name, [("x.wav", clip()), ("x.txt", name.encode())], "w:gz")
    rows = made(speech / "k-l.tar.gz", speech / "k", output=str(speech / "packed.jsonl"))
    assert {row.id: row.turns[1].transcription for row in rows} == {
        "k-l/x": "k-l.tar.gz", "k/l.tar.gz/x": "k/l.tar.gz", "k/l.tgz/x": "k/l.tgz"
    }  # fmt: skip
    (speech / "t.csv").write_text("id,audio,text\nsame,a.wav,ay\nother,b.wav,bee\nsame,c.wav,cee\n")
    assert [row.id for row in made(speech / "t.csv")] == ["same", "other"]
    assert faults(speech / "t.left_out.jsonl") == {"same": "its id was used before"}


def test_a_folder_that_changed_meanwhile_is_read_anew(speech, monkeypatch):
    for name in "abc":
        (speech / f"{name}.txt").write_text(name)
    monkeypatch.setattr(manifest_making, "SAVED_ENTRIES", 2)
    source = MakeManifestConfig(sources=[str(speech)])
    save = manifest_making._Maker._save
    monkeypatch.setattr(manifest_making._Maker, "_save", lambda maker: save(maker) if maker.progress.entries == 2 else (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ManifestError):
        make_manifest(source)
    monkeypatch.undo()
    (speech / "a0.wav").write_bytes(clip())
    (speech / "a0.txt").write_text("new")
    assert [row.id for row in made(speech)] == ["a", "a0", "b", "c"]


class Killed(BaseException):
    """As SIGKILL would end it."""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(speech, monkeypatch, kind):
    monkeypatch.setattr(manifest_making, "SAVED_ENTRIES", 3)
    if kind == "csv":
        source = speech / "t.csv"
        source.write_text("audio,text\n" + "".join(f"{'abcx'[n % 4]}.wav,word {n}\n" for n in range(20)))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        source = speech / "t.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{"audio": {"bytes": clip(n / 50 + 0.1)}, "text": f"w{n}"} for n in range(20)]), source, row_group_size=4)
    made(source)
    outputs = ["t.jsonl", "t.left_out.jsonl" if kind == "csv" else "t.shards/00000.tar"]
    whole = [(speech / name).read_bytes() for name in outputs]
    save, saves, opened = manifest_making._Maker._save, [], []
    checked = manifest_making._Maker._checked

    def save_and_die(maker):
        save(maker)
        saves.append(maker.progress.entries)
        if len(saves) == 3:
            # Work after the last note is lost, and must not be there twice.
            maker._take(list(manifest_making.itertools.islice(manifest_making.open_source(source, "t", maker.config).after(9), 2)))
            for file in (maker.rows, maker.faults):
                file.flush()
            raise Killed

    monkeypatch.setattr(manifest_making._Maker, "_save", save_and_die)
    with pytest.raises(Killed):
        made(source, overwrite=True)
    monkeypatch.setattr(manifest_making._Maker, "_save", save)
    monkeypatch.setattr(manifest_making._Maker, "_checked", lambda maker, entry: opened.append(entry) or checked(maker, entry))
    assert (speech / "t.jsonl").read_bytes() == whole[0]  # the old one stays until the new one is whole
    made(source, overwrite=True)
    assert len(opened) == 11 and [(speech / name).read_bytes() for name in outputs] == whole
    assert [path.name for path in speech.glob(".*")] == []


def test_what_cannot_be_made_is_said(speech, tmp_path):
    with pytest.raises(ConfigError, match="no source was named"):
        made()
    with pytest.raises(ConfigError, match="gone does not exist"):
        made(speech / "gone")
    (speech / "x.zip").write_text("")
    with pytest.raises(ConfigError, match="no known kind of source.*tar.gz"):
        made(speech / "x.zip")
    with pytest.raises(ManifestError, match="no entry of .* can be used; the first: .*no words"):
        made(speech)
    (speech / "a.txt").write_text("ay")
    made(speech)
    with pytest.raises(ConfigError, match="is there already; set overwrite=true"):
        made(speech)
    with pytest.raises(ManifestError, match="lies outside the manifest's folder"):
        made(speech, output=str(speech / "lists" / "m.jsonl"))
    assert len(made(speech, output=str(speech / "m.jsonl"))) == 1
    (speech / "mine.shards").mkdir()
    (speech / "mine.shards" / "t.csv").write_text("audio,text\n../a.wav,ay\n")
    with pytest.raises(ConfigError, match="mine.shards holds a source.*set another output"):
        made(speech / "mine.shards" / "t.csv", output=str(speech / "mine.jsonl"))
    with pytest.raises(ConfigError, match="several sources need one place"):
        made(speech, speech / "lists")


def test_a_full_disk_is_named_and_nothing_is_lost(speech, monkeypatch):
    (speech / "a.txt").write_text("ay")
    monkeypatch.setattr(manifest_making._Maker, "_save", lambda maker: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ManifestError, match="could not be made: No space left on device; mend that and start again"):
        made(speech)
    monkeypatch.undo()
    assert len(made(speech)) == 1


def test_a_packed_list_is_no_archive(speech):
    (speech / "x.tar.gz").write_bytes(gzip.compress(b"not a tar"))
    with pytest.raises(ManifestError, match="no whole tar archive"):
        made(speech / "x.tar.gz")
