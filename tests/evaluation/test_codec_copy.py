"""Copy synthesis: what is counted, and one table of all codecs that copied the same recordings."""

import json
import math

import pytest
import tiny_run
import torch

from echox.codecs.kmeans.codec import KMeansCodec, KMeansCodecConfig
from echox.codecs.unit_hifigan import UnitHifiGanConfig
from echox.core.errors import ConfigError
from echox.core.number_format import number_format
from echox.data.audio import load_audio, pad_waveforms
from echox.data.manifest import read_manifest
from echox.evaluation import codec_copy
from echox.evaluation.codec_copy import CodecCopyConfig, copy_synthesis
from echox.evaluation.fidelity import fidelity
from echox_cli import evaluate

TEXTS = ["It is Paris.", "Nobody knows.", "On a Monday."]


class TwoWords:
    """A recogniser with the same transcript for every clip."""

    name = "two words"

    def __init__(self, weights, *, device, batch_size):
        pass

    def transcribe(self, clips, rate_hz):
        return ["it is"] * len(clips)


class Friend:
    """A naturalness model with the same score for every clip."""

    name = "friend"

    def __init__(self, device):
        pass

    def score(self, clip, rate_hz):
        return 4.0


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(codec_copy, "Transcriber", TwoWords)
    monkeypatch.setattr(codec_copy, "Quality", Friend)
    monkeypatch.setattr(codec_copy, "installed_measures", dict)
    return tiny_run.write_speech(tmp_path, "speech", TEXTS)


def scores(folder, label):
    return json.loads((folder / f"{label}.json").read_text())["scores"]


def test_words_units_and_bits_are_counted(tmp_path, manifest, capsys):
    out = tmp_path / "out"
    codec = KMeansCodecConfig(folder="random")
    copy_synthesis(
        CodecCopyConfig(manifests=[str(manifest)], codec=codec, out_dir=str(out), device="cpu")
    )
    by_metric = scores(out, "kmeans")
    # "it is" for three, two and three words: 1 + 2 + 3 errors of 8.
    assert (
        by_metric["WER"]["value"] == pytest.approx(6 / 8)
        and by_metric["WER"]["scorer"] == "two words"
    )
    encoder = KMeansCodec(codec)
    clips = [load_audio(row.answer.audio, encoder.rate_hz) for row in read_manifest(manifest).rows]
    with torch.autocast("cpu", torch.bfloat16, enabled=number_format().bf16):
        units = encoder.encode(pad_waveforms(clips, encoder.rate_hz))
    rate = int(units.lengths.sum()) / (sum(map(len, clips)) / encoder.rate_hz)
    assert by_metric["units/s"]["value"] == pytest.approx(rate)
    assert by_metric["bit/s"]["value"] == pytest.approx(rate * math.log2(32))
    assert by_metric["length"]["count"] == 3 and len(list((out / "wavs" / "kmeans").iterdir())) == 3
    assert "| recordings |" in capsys.readouterr().out


def test_codecs_of_the_same_recordings_share_a_table(tmp_path, manifest):
    out = tmp_path / "out"
    common = [f"manifests=[{manifest}]", f"out_dir={out}", "device=cpu", "codec.folder=random"]
    assert evaluate.main(["codec", "codec=kmeans", *common]) == 0
    assert (
        evaluate.main(
            ["codec", "codec=kmeans", "codec.random_units=40", "label=more units", *common]
        )
        == 0
    )
    lines = (out / "codecs.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == [
        "| recordings",
        "| kmeans",
        "| more units",
    ]
    assert evaluate.main(["codec", "codec=kmeans", "rows=2", *common]) == 0
    # A codec that copied other recordings is no longer in the table.
    assert "more units" not in (out / "codecs.md").read_text()


def test_codecs_of_different_units_are_refused(tmp_path, manifest):
    common = {"manifests": [str(manifest)], "out_dir": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(
        ConfigError,
        match="codec unit_hifigan makes no units of speech; name one that does with units=NAME",
    ):
        copy_synthesis(CodecCopyConfig(codec=UnitHifiGanConfig(folder="random"), **common))
    with pytest.raises(
        ConfigError,
        match="units are of 32 kinds in 1 codebooks, but the codec that speaks knows 1000 in 1",
    ):
        copy_synthesis(
            CodecCopyConfig(
                codec=UnitHifiGanConfig(folder="random"),
                units=KMeansCodecConfig(folder="random"),
                **common,
            )
        )


@pytest.mark.parametrize("measure", ["PESQ", "STOI"])
def test_the_likeness_of_a_copy_falls_with_noise(measure):
    pytest.importorskip(
        {"PESQ": "pesq", "STOI": "pystoi"}[measure], reason="needs the extra 'quality'"
    )
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(32_000) / 16_000
    speech = (
        0.3
        * torch.sin(2 * torch.pi * 150 * time_s).sign()
        * (torch.sin(2 * torch.pi * 3 * time_s) > 0)
    )
    speech = speech + 0.01 * torch.randn(32_000, generator=generator)
    near, far = (
        speech + level * torch.randn(32_000, generator=generator) for level in (0.005, 0.3)
    )
    values = [fidelity(measure, speech, copy, 16_000) for copy in (speech, near, far)]
    assert values[0] > values[1] > values[2]
