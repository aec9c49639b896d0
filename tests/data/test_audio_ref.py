"""Clips inside larger files: members of a tar and parts of a recording are read as files are."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import ManifestError, SignalError
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import AudioRef, audio_ref
from echox.data.manifest import read_manifest, write_manifest

RATE_HZ = 16_000


def encoded(seconds: float, ending: str, seed: int = 0) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, round(RATE_HZ * seconds))
    soundfile.write(
        content,
        noise,
        RATE_HZ,
        format="OGG" if ending == "opus" else ending,
        subtype="OPUS" if ending == "opus" else None,
    )
    return content.getvalue()


@pytest.fixture
def shard(tmp_path):
    """A tar of four clips, each also a file beside it, and the reference of each by name."""
    places = {}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, ending in enumerate(("wav", "flac", "mp3", "opus")):
            (tmp_path / f"clip.{ending}").write_bytes(encoded(0.5, ending, number))
            tar.add(tmp_path / f"clip.{ending}", f"clip.{ending}")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        places = {member.name: f"shard.tar:{member.offset_data}:{member.size}" for member in tar}
    return tmp_path, places


def test_a_member_of_a_tar_is_read_as_its_own_file(shard):
    folder, places = shard
    for name, place in places.items():
        assert audio_header(folder / place) == audio_header(folder / name)
        torch.testing.assert_close(
            load_audio(folder / place, 8_000), load_audio(folder / name, 8_000), rtol=0, atol=0
        )


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "opus"])
def test_a_part_has_the_samples_of_the_recording(shard, ending):
    folder, places = shard
    recording = load_audio(folder / f"clip.{ending}", RATE_HZ)
    for place in (folder / f"clip.{ending}", folder / places[f"clip.{ending}"]):
        part = audio_ref(place).between(0.2, 0.3)
        assert audio_header(part).duration_s == pytest.approx(0.1)
        torch.testing.assert_close(
            load_audio(part, RATE_HZ), recording[3_200:4_800], rtol=0, atol=1e-3
        )
        assert (
            len(load_audio(audio_ref(place).between(0.4, None), RATE_HZ)) == len(recording) - 6_400
        )


def test_references_beyond_the_end_and_pipes_are_refused(shard):
    folder, places = shard
    size = (folder / "shard.tar").stat().st_size
    os.mkfifo(folder / "pipe.wav")
    broken = {
        f"shard.tar:{size - 10}:20": "beyond the end of its file",
        f"shard.tar:0:{size}": "not readable",
        "shard.tar:512:0": "no bytes at all",
        "gone.tar:0:10": "gone.tar:0:10 does not exist",
        "pipe.wav": "no regular file",
        "pipe.wav:0:10": "no regular file",
    }
    for name, reason in broken.items():
        with pytest.raises(SignalError, match=reason):
            audio_header(folder / name)
    for start_s, end_s in ((0.6, None), (0.2, 0.9), (0.3, 0.3), (0.4, 0.1)):
        with pytest.raises(SignalError, match="not within the recording, which has 0.5 s"):
            load_audio(audio_ref(folder / "clip.wav").between(start_s, end_s), RATE_HZ)


def test_a_file_whose_name_looks_like_a_reference_is_that_file(tmp_path):
    (tmp_path / "take:1:2").write_bytes(encoded(0.1, "wav"))
    assert audio_ref(tmp_path / "take:1:2") == AudioRef(tmp_path / "take:1:2")
    assert audio_header(tmp_path / "take:1:2").samples == 1_600


def line(number: int, **audio) -> str:
    items = [{"from": "user", "value": "", **audio}, {"from": "assistant", "value": "Yes."}]
    return json.dumps({"id": f"row{number}", "conversations": items})


def test_manifests_keep_byte_ranges_and_seconds_when_written(shard):
    folder, places = shard
    lines = [
        line(0, audio=places["clip.flac"]),
        line(1, audio=places["clip.wav"], start_s=0.1, end_s=0.25),
        line(2, audio="clip.mp3", start_s=0.25),
    ]
    (folder / "m.jsonl").write_text("\n".join(lines))
    rows = read_manifest(folder / "m.jsonl").rows
    assert [round(audio_header(row.question.audio).duration_s, 2) for row in rows] == [
        0.5,
        0.15,
        0.25,
    ]
    write_manifest(folder / "again.jsonl", rows)
    assert read_manifest(folder / "again.jsonl").rows == rows
    assert json.loads((folder / "again.jsonl").read_text().splitlines()[1])["conversations"][0] == {
        "from": "user", "value": "", "audio": places["clip.wav"], "start_s": 0.1, "end_s": 0.25
    }  # fmt: skip


@pytest.mark.parametrize("audio, reason", [
    ({"audio": "../shard.tar:512:100"}, "outside the manifest's folder"),
    ({"audio": "link.tar:512:100"}, "outside the manifest's folder"),
    ({"audio": "inner.tar:0:999999999"}, "beyond the end"),
    ({"audio": "clip.wav", "start_s": -1}, "'start_s' is -1"),
    ({"audio": "clip.wav", "end_s": "2"}, "'end_s' is '2'"),
    ({"audio": "clip.wav", "start_s": 5}, "not within the recording"),
])  # fmt: skip
def test_a_reference_cannot_leave_the_folder_nor_its_file(shard, audio, reason):
    outside, _ = shard
    folder = outside / "corpus"
    folder.mkdir()
    (folder / "link.tar").symlink_to(outside / "shard.tar")
    (folder / "inner.tar").write_bytes(b"0" * 100)
    (folder / "clip.wav").write_bytes(encoded(0.1, "wav"))
    (folder / "m.jsonl").write_text(line(0, **audio))
    with pytest.raises(ManifestError, match=reason):
        read_manifest(folder / "m.jsonl")
