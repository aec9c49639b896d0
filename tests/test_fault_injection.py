"""A corpus with every common fault: each is named by row, no good row is lost, nothing hangs."""

import errno
import io
import json
import os
import re
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import write_run

from echox.backbones.hub import HubBackboneConfig
from echox.core.errors import SignalError
from echox.data.audio import _warn_wrong_ending
from echox.data.manifest import OnBroken, examine_manifest
from echox.encoders.whisper import WhisperConfig
from echox.inference.batch_run import GenerateConfig, generate
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.pipeline.plugins import discover
from echox.tasks.align.task import AlignmentTask, AlignmentTaskConfig
from echox.tasks.base import Parts, StageContext
from echox.tasks.conversations import SpokenDataConfig
from echox_cli.prepare import main

RATE_HZ = 16_000
GOOD = ["plain", "six", "misnamed", "member"]
# Row -> pattern of its reason: faults that its record or a header shows, and those that only
# decoding shows.
READ = {
    "cut_wav": r"cut short: its header says 0\.60 s, but 0\.\d+ s are there",
    "cut_opus": "cut short: its last page is not whole",
    "zero": "no bytes at all",
    "silent": "zero length",
    "text": "not readable as audio",
    "m4a": "MPEG-4.*ffmpeg",
    "fifo": "no regular file",
    "folder": "is a folder",
    "device": "lies outside",
    "above": "lies outside",
    "link": "lies outside",
    "tar_above": "lies outside",
    "tar_link": "lies outside",
    "tar_beyond": "lies beyond the end of its file",
    "tar_header": "not readable as audio",
    "after_end": "not within the recording",
    "gone": "does not exist",
}
DECODED = {
    "cut_flac": "cut short|not readable",
    "cut_mp3": "cut short",
    "nan": "NaN",
    "infinite": "NaN or infinite",
}


@pytest.fixture(autouse=True)
def alarm():
    """Fail a test that hangs."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sound(
    format: str = "WAV",
    subtype: str | None = None,
    rate_hz: int = RATE_HZ,
    channels: int = 1,
    seconds: float = 0.6,
) -> bytes:
    content = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * rate_hz), channels))
    soundfile.write(content, samples, rate_hz, format=format, subtype=subtype)
    return content.getvalue()


def broken_float(value: float) -> bytes:
    content, samples = io.BytesIO(), np.zeros(RATE_HZ // 2, dtype=np.float32)
    samples[5] = value
    soundfile.write(content, samples, RATE_HZ, format="WAV", subtype="FLOAT")
    return content.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A manifest with a row for each fault, and some good rows."""
    outside = tmp_path_factory.mktemp("faults")
    root = outside / "corpus"
    root.mkdir()
    (outside / "secret.wav").write_bytes(sound())
    files = {
        "plain.wav": sound(),
        "six.wav": sound("WAV", "PCM_24", 96_000, 6),
        "misnamed.mp3": sound("FLAC"),
        "cut_wav.wav": sound()[:9_000],
        "cut_opus.opus": sound("OGG", "OPUS")[:-400],
        "cut_flac.flac": sound("FLAC")[:9_000],
        "cut_mp3.mp3": sound("MP3", seconds=3.0)[:7_000],
        "zero.wav": b"",
        "silent.wav": sound(seconds=0.0),
        "text.wav": b"this is no audio at all",
        "m4a.m4a": b"\0\0\0\x20ftypM4A " + bytes(100),
        "nan.wav": broken_float(np.nan),
        "infinite.wav": broken_float(np.inf),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    os.mkfifo(root / "fifo.wav")
    (root / "folder.wav").mkdir()
    (root / "link.wav").symlink_to(outside / "secret.wav")
    for folder in (root, outside):
        with tarfile.open(folder / "shard.tar", "w") as tar:
            tar.add(root / "plain.wav", "plain.wav")
    (root / "link.tar").symlink_to(outside / "shard.tar")
    with tarfile.open(root / "shard.tar") as tar:
        (member,) = tar
    size = (root / "shard.tar").stat().st_size
    audio = {Path(name).stem: {"audio": name} for name in files} | {
        "member": {"audio": f"shard.tar:{member.offset_data}:{member.size}"},
        "fifo": {"audio": "fifo.wav"},
        "folder": {"audio": "folder.wav"},
        "device": {"audio": "/dev/zero"},
        "above": {"audio": "../secret.wav"},
        "link": {"audio": "link.wav"},
        "tar_above": {"audio": f"../shard.tar:{member.offset_data}:{member.size}"},
        "tar_link": {"audio": f"link.tar:{member.offset_data}:{member.size}"},
        "tar_beyond": {"audio": f"shard.tar:{member.offset_data}:{size}"},
        "tar_header": {"audio": f"shard.tar:{member.offset_data - 512}:512"},
        "after_end": {"audio": "plain.wav", "start_s": 3.0},
        "gone": {"audio": "gone.wav"},
    }
    assert audio.keys() == {*GOOD, *READ, *DECODED}
    lines = [_row(name, clip).encode() for name, clip in audio.items()]
    lines += [
        _row("plain", {"audio": "plain.wav"}).encode(),
        b'{"id": "\xff\xfe"}',
        b'{"id": "half", "conversations": [',
    ]
    (root / "all.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return root / "all.jsonl"


def _row(name: str, clip: dict) -> str:
    # In both turns, so that encoders and codecs read the same files.
    items = [
        {"from": "user", "value": "", **clip},
        {"from": "assistant", "value": "Well.", "transcription": "Is it so?", **clip},
    ]
    return json.dumps({"id": name, "conversations": items})


def expected(corpus: Path, faults: dict[str, str]) -> list[tuple[int, str | None, str]]:
    """Line, id and reason of every row that must be named."""
    faulty = []
    for line, raw in enumerate(corpus.read_bytes().splitlines(), start=1):
        name = next((name for name in faults if raw.startswith(f'{{"id": "{name}"'.encode())), None)
        if name is not None:
            faulty.append((line, name, faults[name]))
    lines = len(corpus.read_bytes().splitlines())
    return [
        *faulty,
        (lines - 2, "plain", "'plain' was already used in line 1"),
        (lines - 1, None, "not UTF-8"),
        (lines, None, "not JSON"),
    ]


def assert_named(
    problems: list[tuple[int, str | None, str]], patterns: list[tuple[int, str | None, str]]
) -> None:
    assert [(line, row_id) for line, row_id, _ in problems] == [
        (line, row_id) for line, row_id, _ in patterns
    ]
    for (_, row_id, reason), (_, _, pattern) in zip(problems, patterns):
        assert re.search(pattern, reason), (row_id, reason, pattern)


def test_reading_names_faults_of_records_and_headers(corpus, caplog):
    _warn_wrong_ending.cache_clear()  # a folder is warned of once
    manifest = examine_manifest(corpus)
    assert_named(
        [(problem.line, problem.row_id, problem.reason) for problem in manifest.problems],
        expected(corpus, READ),
    )
    assert {row.id for row in manifest.rows} == {*GOOD, *DECODED}
    assert "end in .mp3 and are FLAC" in caplog.text


def test_validate_names_faults_of_decoding_too(corpus, tmp_path, capsys):
    assert main(["validate", str(corpus), f"report={tmp_path / 'report'}"]) == 1
    output = capsys.readouterr().out
    for line, _, reason in expected(corpus, READ | DECODED):
        assert re.search(rf"line {line}\b.*(?:{reason})", output), (line, reason, output)


def units_of(corpus: Path, cache: Path, *words: str) -> int:
    return main(
        [
            "units",
            str(corpus),
            "codec=kmeans",
            "codec.folder=random",
            "device=cpu",
            "rows_per_shard=5",
            f"cache_dir={cache}",
            *words,
        ]
    )


def test_units_are_written_for_good_rows_and_others_are_named(corpus, tmp_path):
    assert units_of(corpus, tmp_path) == 0
    rows = [
        json.loads(line) for line in (corpus.parent / "all.units.jsonl").read_text().splitlines()
    ]
    assert sorted(row["id"] for row in rows) == sorted(GOOD)
    assert all(row["conversations"][1]["units"] for row in rows)
    problems = [
        json.loads(line)
        for line in (corpus.parent / "all.units.broken.jsonl").read_text().splitlines()
    ]
    assert_named(
        [(problem["line"], problem["id"], problem["reason"]) for problem in problems],
        expected(corpus, READ | DECODED),
    )
    assert units_of(corpus, tmp_path / "other", "on_broken=refuse") == 2


def test_a_full_disk_is_one_sentence_and_a_second_try_resumes(
    corpus, tmp_path, monkeypatch, capsys
):
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "000002" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert units_of(corpus, tmp_path) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in message and "finished shards are kept" in message
    assert units_of(corpus, tmp_path) == 0
    assert len((corpus.parent / "all.units.jsonl").read_text().splitlines()) == len(GOOD)


def alignment_task(corpus: Path, cache: Path, on_broken: OnBroken) -> AlignmentTask:
    discover()
    parts = Parts(WhisperConfig(weights="random"), HubBackboneConfig(weights="random"), None)
    data = SpokenDataConfig(train=[str(corpus)], on_broken=on_broken)
    task = AlignmentTask(
        AlignmentTaskConfig(data=data, adapter=SpeechAdapterConfig(heads=4), answers=False),
        StageContext(parts, 1, cache),
    )
    task.prepare(task.build())
    return task


def test_training_names_faulty_rows_and_uses_the_others(corpus, tmp_path, caplog):
    task = alignment_task(corpus, tmp_path, OnBroken.skip)
    assert sorted(clip.row_id for clip in task.examples("train")) == sorted(GOOD)
    for line, _, reason in expected(corpus, READ):
        assert re.search(rf"line {line}\b.*(?:{reason})", caplog.text), (line, reason)
    for name, reason in DECODED.items():
        assert re.search(rf"{name}.*(?:{reason})", caplog.text), name
    assert torch.isfinite(task.collate(list(task.examples("train"))).features.values).all()
    # Clips in the cache are not decoded again; broken ones are counted again.
    caplog.clear()
    assert len(alignment_task(corpus, tmp_path, OnBroken.skip).examples("train")) == len(GOOD)
    assert f"{len(DECODED)} clips cannot be decoded and are left out" in caplog.text


def test_training_with_on_broken_refuse_names_the_first_fault(corpus, tmp_path):
    good = "\n".join(
        raw
        for raw in corpus.read_bytes().decode("latin-1").splitlines()
        if any(f'"id": "{name}"' in raw for name in (*GOOD, "nan"))
    )
    (corpus.parent / "nan.jsonl").write_text("\n".join(dict.fromkeys(good.splitlines())))
    with pytest.raises(SignalError, match="nan.wav holds NaN"):
        alignment_task(corpus.parent / "nan.jsonl", tmp_path, OnBroken.refuse)


def test_generation_answers_good_rows_and_names_the_others(corpus, tmp_path):
    run = write_run(tmp_path / "run")
    config = GenerateConfig(
        checkpoint=str(run / "echo" / "final"),
        manifest=str(corpus),
        out_dir=str(tmp_path / "out"),
        batch_size=4,
        max_tokens=3,
        device="cpu",
    )
    assert generate(config) == 0
    records = [
        json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    ]
    assert len(records) == len(corpus.read_bytes().splitlines())
    assert sorted(record["id"] for record in records if record["error"] is None) == sorted(GOOD)
    faulty = [
        (
            record["line"],
            None if record["id"].startswith("line-") else record["id"],
            record["error"],
        )
        for record in records
        if record["error"]
    ]
    assert_named(faulty, expected(corpus, READ | DECODED))
