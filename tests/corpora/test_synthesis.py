"""Synthesis: complete files, resumed runs, failures that cost only their own clips."""

import errno
from pathlib import Path

import numpy as np
import pytest

from echox.core.errors import ConfigError
from echox.corpora import synthesis
from echox.corpora.synthesis import Job, synthesize
from echox.corpora.voices import Role, Voice

soundfile = pytest.importorskip(
    "soundfile", reason="soundfile is not installed, so no clip can be written"
)


class Humming(Voice):
    """A voice for tests: 0.1 s of hum per character."""

    name, rate_hz, role = "humming", 24_000, Role.TRAIN

    def _render(self, text, seed):
        if text == "break":
            raise ValueError("out of breath")
        return 0.5 * np.sin(np.arange(2400 * len(text)) / (20 + seed))


@pytest.fixture
def humming(monkeypatch):
    monkeypatch.setattr(synthesis, "voice", lambda name: Humming())


def test_clips_are_mono_16_bit_at_16_khz(humming, tmp_path):
    jobs = [
        Job("abc", "humming", 1, None, tmp_path / "a" / "x.flac"),
        ("abcd", "humming", 1, 5, tmp_path / "y.wav"),
    ]
    report = synthesize(jobs, workers=1, progress=False)
    assert (report.written, report.skipped, report.failures) == (2, 0, [])
    for path, shortest_s in ((tmp_path / "a" / "x.flac", 0.3), (tmp_path / "y.wav", 0.35)):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.duration >= shortest_s
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["x.flac", "y.wav"]


def test_a_second_run_skips_existing_files(humming, tmp_path):
    jobs = [Job("abc", "humming", seed, None, tmp_path / f"{seed}.wav") for seed in range(3)]
    synthesize(jobs[:2], workers=1, progress=False)
    stamp = (tmp_path / "0.wav").stat().st_mtime_ns
    report = synthesize(jobs, workers=1, progress=False)
    assert (report.written, report.skipped) == (1, 2)
    assert (tmp_path / "0.wav").stat().st_mtime_ns == stamp


def test_a_failing_job_is_reported_and_the_others_go_on(humming, tmp_path):
    texts = ["abc", "break", "???", "abcd"]
    jobs = [
        Job(text, "humming", 0, None, tmp_path / f"{row}.wav") for row, text in enumerate(texts)
    ]
    jobs.append(Job("abc", "humming", 0, None, tmp_path / "z.mp3"))
    report = synthesize(jobs, workers=1, progress=False)
    assert report.written == 2
    reasons = {job.text + job.path.suffix: reason for job, reason in report.failures}
    assert reasons["break.wav"] == "ValueError: out of breath"
    assert "nothing to say" in reasons["???.wav"]
    assert "change its ending" in reasons["abc.mp3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.wav", "3.wav"]


def test_a_full_disk_ends_the_run_and_leaves_whole_files_only(humming, tmp_path, monkeypatch):
    write_bytes = Path.write_bytes

    def full(path, content):
        if path.name.startswith(".1."):
            write_bytes(path, bytes(content)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        synthesize(
            [Job("abc", "humming", seed, None, tmp_path / f"{seed}.wav") for seed in range(3)],
            workers=1,
            progress=False,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["0.wav"]


def test_two_jobs_may_not_share_a_file(tmp_path):
    with pytest.raises(ConfigError, match="two would write"):
        synthesize(
            [
                Job("a", "hibari", 0, None, tmp_path / "a.wav"),
                Job("b", "hibari", 0, None, tmp_path / "a.wav"),
            ]
        )


def test_processes_write_the_same_files_and_report_failures(tmp_path):
    pytest.importorskip(
        "hibari", reason="hibari-tts is not installed, so its voices cannot be used"
    )

    def jobs(folder):
        good_jobs = [
            Job("Good day.", "hibari_male", seed, seed, tmp_path / folder / f"{seed}.wav")
            for seed in range(15)
        ]
        return [*good_jobs, Job("Good day.", "nobody", 0, None, tmp_path / folder / "none.wav")]

    report = synthesize(jobs("many"), workers=2, progress=False)
    assert report.written == 15 and "no voice named 'nobody'" in report.failures[0][1]
    synthesize(jobs("one")[:2], workers=1, progress=False)
    for name in ("0.wav", "1.wav"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
