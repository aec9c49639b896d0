"""HuBERT units: fitted on tones with a random HuBERT, from published centres, and decoded."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from echox.codecs import quantization
from echox.codecs.base import CODECS
from echox.codecs.hubert_units import HubertUnits, HubertUnitsConfig, UnitFitConfig
from echox.codecs.hubert_units import fit as fitting
from echox.codecs.hubert_units.fit import fit_units
from echox.codecs.quantization.language import LanguageConfig
from echox.codecs.unit_hifigan import UnitHifiGanConfig
from echox.core.errors import CheckpointError, ConfigError, SignalError
from echox.core.signals import Units, Waveform
from echox.encoders.base import ENCODERS
from echox.encoders.ssl import SslConfig, SslEncoder
from echox.encoders.whisper import WhisperConfig
from echox.models.release.tokens import UNIT_WORD
from echox.pipeline import run
from echox.pipeline.preparation import FitCodecConfig, fit_codec
from echox.testing import check
from echox.vocoders.layout import CONFIG, TINY, WEIGHTS, tiny_generator
from echox_cli import prepare

RATE_HZ = 16_000


def clips(count=12) -> list[torch.Tensor]:
    """Harmonic tones of rising pitch, each of another length."""
    tones = []
    for number in range(count):
        time_s = torch.arange(int((0.5 + 0.1 * number) * RATE_HZ)) / RATE_HZ
        pitch_hz = 100 + 15 * number + 60 * time_s
        tones.append(
            0.1 * sum(torch.sin(2 * torch.pi * pitch_hz * h * time_s) / h for h in range(1, 6))
        )
    return tones


def fit_config(**changes) -> UnitFitConfig:
    settings = dict(
        encoder=SslConfig(weights="random", layer=1),
        units=12,
        language=LanguageConfig(words=30),
        held_out=0.2,
        batch_s=3.0,
    )
    return UnitFitConfig(**(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("units")
    fit_units(str(path), fit_config(), clips(), torch.device("cpu"))
    return path


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    """A vocoder of twelve units, as fairseq publishes them."""
    path = tmp_path_factory.mktemp("vocoder")
    settings = {**TINY, "num_embeddings": 12}
    (path / CONFIG).write_text(json.dumps(settings))
    theirs = {
        "units.": "dict.",
        "vocoder.": "",
        "predictor.conv1.": "dur_predictor.conv1.0.",
        "predictor.norm1.": "dur_predictor.ln1.",
    }
    theirs |= {
        "predictor.conv2.": "dur_predictor.conv2.0.",
        "predictor.norm2.": "dur_predictor.ln2.",
        "predictor.out.": "dur_predictor.proj.",
    }
    tensors = {}
    for name, tensor in tiny_generator().state_dict().items():
        prefix = next(prefix for prefix in theirs if name.startswith(prefix))
        tensors[theirs[prefix] + name.removeprefix(prefix)] = (
            tensor[:12] if name == "units.weight" else tensor
        )
    torch.save({"generator": tensors}, path / WEIGHTS)
    return path


def batch(*rows) -> Waveform:
    lengths = torch.tensor([len(row) for row in rows])
    return Waveform(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, RATE_HZ)


def test_a_fitted_codec_passes_the_contract(folder, vocoder, tmp_path):
    # Fitted by the contract itself.
    check(HubertUnitsConfig(folder=str(tmp_path / "none"), fit=fit_config()))
    check(HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder=str(vocoder))))


def test_units_are_the_nearest_centres_of_encoder_frames(folder):
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    clip = clips()[3]
    frames = ENCODERS.build(SslConfig(weights="random", layer=1))(batch(clip)).values[0]
    expected = torch.unique_consecutive(torch.cdist(frames, codec.centres).argmin(1)).tolist()
    units = codec.encode(batch(clips()[9], clip))
    assert units.ids[1, : units.lengths[1]].tolist() == expected and len(set(expected)) > 2
    assert units.rate_hz is None and codec.unit_rate_hz == 50 and codec.vocab_size == 12


def test_decoding_needs_a_vocoder_of_the_same_units(folder, vocoder, tmp_path):
    units = Units(torch.tensor([[1, 2, 3]]), torch.tensor([3]), None)
    encoder = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    assert encoder.encodes and not encoder.decodes
    with pytest.raises(ConfigError, match="no vocoder.*codec.vocoder.folder"):
        encoder.decode(units)
    codec = HubertUnits(
        HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder=str(vocoder)))
    )
    assert codec.decodes and codec.decode(units).lengths[0] >= 3 * 320
    # A manifest that was written before there was a vocoder stays valid.
    assert codec.fingerprint() == encoder.fingerprint()
    beside = tmp_path / "beside"
    shutil.copytree(folder, beside)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(vocoder / name, beside)
    copied = HubertUnits(HubertUnitsConfig(folder=str(beside)))
    assert (
        torch.equal(copied.decode(units).samples, codec.decode(units).samples)
        and copied.fingerprint() == encoder.fingerprint()
    )
    with pytest.raises(ConfigError, match="decodes 1000 units.*has 12"):
        HubertUnits(
            HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder="random"))
        )


def test_published_centres_are_used_unchanged(tmp_path):
    encoder = ENCODERS.build(SslConfig(weights="random", layer=1))
    frames = torch.cat([encoder(batch(clip)).values[0] for clip in clips()])
    model = MiniBatchKMeans(9, n_init=1, random_state=0).fit(frames.numpy())
    joblib.dump(model, tmp_path / "km.bin")
    config = HubertUnitsConfig(
        folder=str(tmp_path / "codec"), fit=fit_config(centres=str(tmp_path / "km.bin"))
    )
    assert not HubertUnits.is_ready(config) and HubertUnits.missing(config) == []
    CODECS.entry_of(config).implementation.fit(config, clips(), torch.device("cpu"))
    codec = CODECS.build(config)
    clip = clips()[5]
    units = codec.encode(batch(clip))
    assert (
        units.ids[0].tolist()
        == torch.unique_consecutive(
            torch.tensor(model.predict(encoder(batch(clip)).values[0].numpy()))
        ).tolist()
    )
    shutil.rmtree(tmp_path / "codec")
    (tmp_path / "km.bin").unlink()
    assert HubertUnits.missing(config) == [str(tmp_path / "km.bin")]
    np.save(tmp_path / "narrow.npy", np.zeros((9, 5), np.float32))
    with pytest.raises(ConfigError, match="5 channels and the encoder's frames 32"):
        fit_units(
            str(tmp_path / "codec"),
            fit_config(centres=str(tmp_path / "narrow.npy")),
            clips(),
            torch.device("cpu"),
        )


def test_words_have_the_format_of_the_release(folder):
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    tokens = (folder / "words.txt").read_text().split()
    assert (
        len(tokens)
        == codec.unit_vocab_size
        == HubertUnits.expected_unit_vocab_size(codec.config)
        > 12
    )
    for word, token in enumerate(tokens):
        assert [int(unit) for unit in UNIT_WORD.fullmatch(token)[1].split("_")] == codec.units_of(
            [word]
        )


def test_metrics_are_of_held_out_recordings(folder):
    metrics = json.loads((folder / "config.json").read_text())["metrics"]
    held_out = [
        clips()[row]
        for row in torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()[-2:]
    ]
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    units = [codec.encode(batch(clip)).ids[0].tolist() for clip in held_out]
    seconds = sum(map(len, held_out)) / RATE_HZ
    assert metrics["units_per_s"] == pytest.approx(sum(map(len, units)) / seconds, abs=0.01)
    assert metrics["words_per_s"] == pytest.approx(
        sum(len(codec.unit_tokens_of(row)) for row in units) / seconds, abs=0.01
    )
    assert metrics["frames_per_s"] == pytest.approx(49, abs=1) and metrics[
        "fitted_s"
    ] == pytest.approx(12.6, abs=0.1)


def test_any_encoder_and_bounded_frames_and_hours(tmp_path):
    config = fit_config(
        encoder=WhisperConfig(weights="random"),
        frames=60,
        hours=4 / 3600,
        language=LanguageConfig(words=0),
    )
    metrics = fit_units(str(tmp_path), config, clips(), torch.device("cpu"))
    assert 4 <= metrics["fitted_s"] < 6 and metrics["words"] == 12
    codec = CODECS.build(HubertUnitsConfig(folder=str(tmp_path)))
    assert codec.unit_tokens_of([3, 1]) == [3, 1] and not (tmp_path / ".fitting").exists()


@pytest.mark.parametrize("phase", ["fit_kmeans", "nearest", "train_language"])
def test_an_interrupted_fit_resumes(folder, tmp_path, monkeypatch, phase):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, phase, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_units(str(tmp_path), fit_config(), clips(), torch.device("cpu"))
    with pytest.raises(CheckpointError, match="config.json is missing"):
        HubertUnits(HubertUnitsConfig(folder=str(tmp_path)))
    encoded = []
    with monkeypatch.context() as patch:
        features_of = fitting.features_of
        patch.setattr(
            fitting,
            "features_of",
            lambda encoder, clips, device: (
                encoded.extend(map(len, clips)) or features_of(encoder, clips, device)
            ),
        )
        metrics = fit_units(str(tmp_path), fit_config(), clips(), torch.device("cpu"))
    # The recordings that were clustered are not encoded again; before the last phase the held-out
    # ones are still to come.
    assert len(encoded) == (0 if phase == "train_language" else 2)
    assert metrics["fingerprint"] == json.loads((folder / "config.json").read_text())["fingerprint"]


def test_other_recordings_or_settings_start_over(folder, tmp_path):
    fingerprints = {
        fit_units(str(tmp_path / str(number)), config, recordings, torch.device("cpu"))[
            "fingerprint"
        ]
        for number, (config, recordings) in enumerate(
            [
                (fit_config(), clips()),
                (fit_config(seed=1), clips()),
                (fit_config(), clips(11)),
                (fit_config(units=11), clips()),
            ]
        )
    }
    assert (
        len(fingerprints) == 4
        and json.loads((folder / "config.json").read_text())["fingerprint"] in fingerprints
    )


def test_impossible_fits_and_changed_folders_are_refused(folder, tmp_path):
    with pytest.raises(SignalError, match="at least two recordings"):
        fit_units(str(tmp_path), fit_config(), clips(1), torch.device("cpu"))
    with pytest.raises(ConfigError, match="400 clusters need"):
        fit_units(str(tmp_path), fit_config(units=400, frames=50), clips(), torch.device("cpu"))
    for wrong, message in (({"hours": 0}, "hours"), ({"held_out": 1.0}, "held_out")):
        with pytest.raises(ConfigError, match=message):
            fit_config(**wrong)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    document = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**document, "codec": "kmeans"}))
    with pytest.raises(CheckpointError, match="is a kmeans, not a hubert_units; set codec=kmeans"):
        HubertUnits(HubertUnitsConfig(folder=str(copy)))
    (copy / "words.txt").write_text("another")
    (copy / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="words.txt is not the file"):
        HubertUnits(HubertUnitsConfig(folder=str(copy)))


def test_other_encoder_weights_are_refused(folder, monkeypatch):
    monkeypatch.setattr("echox.encoders.ssl.SslEncoder.fingerprint", lambda self: "other")
    with pytest.raises(CheckpointError, match="fitted with other weights of its encoder"):
        HubertUnits(HubertUnitsConfig(folder=str(folder)))


def test_the_preset_of_the_release_composes(workspace, capsys):
    assert prepare.main(["codec", "codec=mhubert_units", "codec.fit.centres=km.bin", "--cfg"]) == 0
    shown = capsys.readouterr().out
    assert all(
        part in shown
        for part in (
            "name: hubert_units",
            "weights: voidful/mhubert-base",
            "layer: 11",
            "units: 1000",
            "centres: km.bin",
        )
    )


def test_the_commands_in_the_readme_compose(workspace, capsys):
    page = (Path(quantization.__file__).parent / "README.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    for line in lines:
        command, *words = line.split()
        assert command == "echox-prepare" and prepare.main([*words, "--cfg"]) == 0, (
            capsys.readouterr().err
        )
    assert len(lines) == 4


def test_a_config_that_asks_for_other_units_than_the_folder_has_is_refused(folder):
    def check(**settings):
        config = HubertUnitsConfig(folder=str(folder), fit=fit_config(**settings))
        HubertUnits.check_folder(config)

    check()
    HubertUnits.check_folder(HubertUnitsConfig(folder=str(folder)))  # the default asks for nothing
    with pytest.raises(ConfigError, match="fitted with 12 units, and codec.fit.units is 8; set"):
        check(units=8)


def test_recordings_are_read_at_the_rate_of_what_is_fitted(monkeypatch, tmp_path):
    config = HubertUnitsConfig(folder=str(tmp_path / "codec"), fit=fit_config())
    assert HubertUnits.fit_rate_hz(config) == RATE_HZ
    rates_hz = []
    monkeypatch.setattr(SslEncoder, "outline", lambda config: SimpleNamespace(rate_hz=24_000))
    monkeypatch.setattr(
        HubertUnits, "fit", lambda config, clips, device: rates_hz.append(clips.rate_hz)
    )
    monkeypatch.setattr(run, "read_manifests", lambda manifests, on_broken: [])
    fit_codec(FitCodecConfig(manifests=["rows.jsonl"], codec=config, device="cpu"))
    assert rates_hz == [24_000]
