"""HuBERT units, fitted on tones with a random HuBERT in a second, or read from published centres, and heard through a random vocoder."""

import json
import re
import shutil
from pathlib import Path

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
from echox.encoders.base import ENCODERS
from echox.encoders.ssl import SslConfig
from echox.encoders.whisper import WhisperConfig
from echox.errors import CheckpointError, ConfigError, SignalError
from echox.models.published.tokens import UNIT_WORD
from echox.signals import Units, Waveform
from echox.testing import check
from echox.vocoders.layout import CONFIG, TINY, WEIGHTS, tiny_generator
from echox_cli import prepare

RATE_HZ = 16_000


def clips(count=12) -> list[torch.Tensor]:
    """Buzzes that rise, each of its own length."""
    made = []
    for number in range(count):
        time_s = torch.arange(int((0.5 + 0.1 * number) * RATE_HZ)) / RATE_HZ
        pitch_hz = 100 + 15 * number + 60 * time_s
        made.append(0.1 * sum(torch.sin(2 * torch.pi * pitch_hz * h * time_s) / h for h in range(1, 6)))
    return made


def fit_config(**changes) -> UnitFitConfig:
    settings = dict(encoder=SslConfig(weights="random", layer=1), units=12, language=LanguageConfig(words=30), held_out=0.2, batch_s=3.0)
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
    theirs = {"units.": "dict.", "vocoder.": "", "predictor.conv1.": "dur_predictor.conv1.0.", "predictor.norm1.": "dur_predictor.ln1."}
    theirs |= {"predictor.conv2.": "dur_predictor.conv2.0.", "predictor.norm2.": "dur_predictor.ln2.", "predictor.out.": "dur_predictor.proj."}
    tensors = {}
    for name, tensor in tiny_generator().state_dict().items():
        prefix = next(prefix for prefix in theirs if name.startswith(prefix))
        tensors[theirs[prefix] + name.removeprefix(prefix)] = tensor[:12] if name == "units.weight" else tensor
    torch.save({"generator": tensors}, path / WEIGHTS)
    return path


def batch(*rows) -> Waveform:
    lengths = torch.tensor([len(row) for row in rows])
    return Waveform(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, RATE_HZ)


def test_a_fitted_codec_keeps_the_contract(folder, vocoder):
    check(HubertUnitsConfig(folder=str(folder)))
    check(HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder=str(vocoder))))


def test_units_are_the_nearest_centres_of_the_encoder_s_frames(folder):
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    clip = clips()[3]
    frames = ENCODERS.build(SslConfig(weights="random", layer=1))(batch(clip)).values[0]
    wanted = torch.unique_consecutive(torch.cdist(frames, codec.centres).argmin(1)).tolist()
    units = codec.encode(batch(clips()[9], clip))
    assert units.ids[1, : units.lengths[1]].tolist() == wanted and len(set(wanted)) > 2
    assert units.rate_hz is None and codec.unit_rate_hz == 50 and codec.vocab_size == 12


def test_without_a_vocoder_units_cannot_be_heard(folder, vocoder, tmp_path):
    units = Units(torch.tensor([[1, 2, 3]]), torch.tensor([3]), None)
    mute = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    assert mute.encodes and not mute.decodes
    with pytest.raises(ConfigError, match="no vocoder.*codec.vocoder.folder"):
        mute.decode(units)
    voiced = HubertUnits(HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder=str(vocoder))))
    assert voiced.decodes and voiced.decode(units).lengths[0] >= 3 * 320
    # A manifest that was written before there was a vocoder stays good.
    assert voiced.fingerprint() == mute.fingerprint()
    beside = tmp_path / "beside"
    shutil.copytree(folder, beside)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(vocoder / name, beside)
    found = HubertUnits(HubertUnitsConfig(folder=str(beside)))
    assert torch.equal(found.decode(units).samples, voiced.decode(units).samples) and found.fingerprint() == mute.fingerprint()
    with pytest.raises(ConfigError, match="speaks 1000 units.*has 12"):
        HubertUnits(HubertUnitsConfig(folder=str(folder), vocoder=UnitHifiGanConfig(folder="random")))


def test_published_centres_are_taken_as_they_are(tmp_path):
    encoder = ENCODERS.build(SslConfig(weights="random", layer=1))
    frames = torch.cat([encoder(batch(clip)).values[0] for clip in clips()])
    model = MiniBatchKMeans(9, n_init=1, random_state=0).fit(frames.numpy())
    joblib.dump(model, tmp_path / "km.bin")
    config = HubertUnitsConfig(folder=str(tmp_path / "codec"), fit=fit_config(centres=str(tmp_path / "km.bin")))
    assert not HubertUnits.is_ready(config) and HubertUnits.missing(config) == []
    CODECS.entry_of(config).implementation.fit(config, clips(), torch.device("cpu"))
    codec = CODECS.build(config)
    clip = clips()[5]
    units = codec.encode(batch(clip))
    assert units.ids[0].tolist() == torch.unique_consecutive(torch.tensor(model.predict(encoder(batch(clip)).values[0].numpy()))).tolist()
    shutil.rmtree(tmp_path / "codec")
    (tmp_path / "km.bin").unlink()
    assert HubertUnits.missing(config) == [str(tmp_path / "km.bin")]
    np.save(tmp_path / "narrow.npy", np.zeros((9, 5), np.float32))
    with pytest.raises(ConfigError, match="5 channels and the encoder's frames 32"):
        fit_units(str(tmp_path / "codec"), fit_config(centres=str(tmp_path / "narrow.npy")), clips(), torch.device("cpu"))


def test_words_are_written_as_the_release_writes_them(folder):
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    tokens = (folder / "words.txt").read_text().split()
    assert len(tokens) == codec.word_count == HubertUnits.expected_word_count(codec.config) > 12
    for word, token in enumerate(tokens):
        assert [int(unit) for unit in UNIT_WORD.fullmatch(token)[1].split("_")] == codec.units_of([word])


def test_what_is_reported_is_of_recordings_that_taught_nothing(folder):
    metrics = json.loads((folder / "config.json").read_text())["metrics"]
    held = [clips()[row] for row in torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()[-2:]]
    codec = HubertUnits(HubertUnitsConfig(folder=str(folder)))
    units = [codec.encode(batch(clip)).ids[0].tolist() for clip in held]
    seconds = sum(map(len, held)) / RATE_HZ
    assert metrics["units_per_s"] == pytest.approx(sum(map(len, units)) / seconds, abs=0.01)
    assert metrics["words_per_s"] == pytest.approx(sum(len(codec.words(row)) for row in units) / seconds, abs=0.01)
    assert metrics["frames_per_s"] == pytest.approx(49, abs=1) and metrics["fitted_s"] == pytest.approx(12.6, abs=0.1)


def test_any_encoder_and_bounded_work(tmp_path):
    config = fit_config(encoder=WhisperConfig(weights="random"), frames=60, hours=4 / 3600, language=LanguageConfig(words=0))
    metrics = fit_units(str(tmp_path), config, clips(), torch.device("cpu"))
    assert 4 <= metrics["fitted_s"] < 6 and metrics["words"] == 12
    codec = CODECS.build(HubertUnitsConfig(folder=str(tmp_path)))
    assert codec.words([3, 1]) == [3, 1] and not (tmp_path / ".fitting").exists()


@pytest.mark.parametrize("phase", ["fit_kmeans", "nearest", "train_language"])
def test_an_interrupted_fit_goes_on(folder, tmp_path, monkeypatch, phase):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, phase, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_units(str(tmp_path), fit_config(), clips(), torch.device("cpu"))
    with pytest.raises(CheckpointError, match="config.json is missing"):
        HubertUnits(HubertUnitsConfig(folder=str(tmp_path)))
    heard = []
    with monkeypatch.context() as patch:
        honest = fitting.features_of
        patch.setattr(fitting, "features_of", lambda encoder, clips, device: heard.extend(map(len, clips)) or honest(encoder, clips, device))
        metrics = fit_units(str(tmp_path), fit_config(), clips(), torch.device("cpu"))
    # The recordings that were clustered are not encoded again; before the last phase those held out are still to come.
    assert len(heard) == (0 if phase == "train_language" else 2)
    assert metrics["fingerprint"] == json.loads((folder / "config.json").read_text())["fingerprint"]


def test_other_recordings_or_settings_start_over(folder, tmp_path):
    prints = {
        fit_units(str(tmp_path / str(number)), config, made, torch.device("cpu"))["fingerprint"]
        for number, (config, made) in enumerate([(fit_config(), clips()), (fit_config(seed=1), clips()), (fit_config(), clips(11)), (fit_config(units=11), clips())])
    }
    assert len(prints) == 4 and json.loads((folder / "config.json").read_text())["fingerprint"] in prints


def test_what_cannot_work_is_one_sentence(folder, tmp_path):
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


def test_other_weights_than_it_was_fitted_with_are_refused(folder, monkeypatch):
    monkeypatch.setattr("echox.encoders.ssl.SslEncoder.fingerprint", lambda self: "other")
    with pytest.raises(CheckpointError, match="fitted with other weights of its encoder"):
        HubertUnits(HubertUnitsConfig(folder=str(folder)))


def test_the_preset_of_the_release_s_units(house, capsys):
    assert prepare.main(["codec", "codec=mhubert_units", "codec.fit.centres=km.bin", "--cfg"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("name: hubert_units", "weights: voidful/mhubert-base", "layer: 11", "units: 1000", "centres: km.bin"))


def test_the_commands_of_the_room_s_page_compose(house, capsys):
    page = (Path(quantization.__file__).parent / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    for line in lines:
        door, *words = line.split()
        assert door == "echox-prepare" and prepare.main([*words, "--cfg"]) == 0, capsys.readouterr().err
    assert len(lines) == 4
