"""The k-means codec, fitted on tones with a random encoder; the real vocoder where there is one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from echox.codecs.base import CODECS
from echox.codecs.kmeans import (
    CodecFitConfig,
    KMeansCodec,
    KMeansCodecConfig,
    LanguageConfig,
    fit_codec,
)
from echox.codecs.kmeans import fit as fitting
from echox.codecs.kmeans.acoustic_model import AcousticModelSizes
from echox.codecs.kmeans.pitch import fundamental
from echox.codecs.kmeans.vocoder import build_vocoder
from echox.codecs.quantization.kmeans import fit_kmeans, nearest
from echox.codecs.quantization.language import UnitLanguage, train_language
from echox.core.errors import AssetError, CheckpointError, ConfigError, SignalError
from echox.core.signals import Units, Waveform
from echox.encoders.whisper import WhisperConfig
from echox.vocoders.mel import MelRecipe, MelSpectrogram

RATE_HZ = 16_000
SMALL = AcousticModelSizes(
    prosody_channels=16, prosody_depth=1, mel_channels=16, coarse_depth=1, fine_depth=1
)


def tone(pitch_hz: float, duration_s: float) -> torch.Tensor:
    """A tone with eight harmonics, fading in and out."""
    time_s = torch.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    wave = sum(torch.sin(2 * torch.pi * pitch_hz * h * time_s) / h for h in range(1, 9))
    return 0.2 * wave * torch.hann_window(len(wave))


def tones() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        tone(120 + 20 * i, 0.6 + 0.1 * i)
        + 0.01 * torch.randn(int((0.6 + 0.1 * i) * RATE_HZ), generator=generator)
        for i in range(6)
    ]


def fit_config(folder, **changes) -> CodecFitConfig:
    settings = dict(
        folder=str(folder),
        encoder=WhisperConfig(weights="random"),
        vocoder="random",
        units=12,
        language=LanguageConfig(words=20),
        sizes=SMALL,
        held_out=0.2,
        prosody_steps=3,
        mel_steps=4,
        batch=4,
        crop_frames=16,
        judge_channels=4,
    )
    return CodecFitConfig(**(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec")
    fit_codec(fit_config(path), tones())
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return CODECS.build(KMeansCodecConfig(folder=str(folder)))


def padded(clips, extra=0, fill=0.0) -> Waveform:
    lengths = torch.tensor([len(clip) for clip in clips])
    samples = torch.full((len(clips), int(lengths.max()) + extra), fill)
    for row, clip in enumerate(clips):
        samples[row, : len(clip)] = clip
    return Waveform(samples, lengths, RATE_HZ)


def row_of(units: Units, row: int) -> list[int]:
    return units.ids[row, : units.lengths[row]].tolist()


def test_encode_merges_repeats_and_decode_gives_whole_frames(codec):
    clips = tones()[:3]
    units = codec.encode(padded(clips))
    assert (
        units.rate_hz is None
        and units.ids.dtype == torch.int64
        and units.ids.shape[1] == units.lengths.max()
    )
    for row in range(3):
        ids = row_of(units, row)
        assert all(0 <= unit < codec.vocab_size for unit in ids) and all(
            a != b for a, b in zip(ids, ids[1:])
        )
    wave = codec.decode(units)
    assert wave.rate_hz == RATE_HZ and wave.samples.shape == (3, int(wave.lengths.max()))
    assert (wave.lengths % 320 == 0).all() and (wave.lengths >= units.lengths * 320).all()
    assert wave.samples.abs().max() <= 1


def test_encode_ignores_padding_and_neighbours(codec):
    clips = tones()[:3]
    together = codec.encode(padded(clips, extra=5_000, fill=0.7))
    for row, clip in enumerate(clips):
        assert row_of(together, row) == row_of(codec.encode(padded([clip])), 0)


def test_decode_ignores_padding_and_neighbours(codec):
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4], [7]]
    ids = torch.full((3, 20), 999)
    for row, units in enumerate(rows):
        ids[row, : len(units)] = torch.tensor(units)
    together = codec.decode(Units(ids, torch.tensor([len(units) for units in rows]), None))
    for row, units in enumerate(rows):
        alone = codec.decode(Units(torch.tensor([units]), torch.tensor([len(units)]), None))
        assert together.lengths[row] == alone.lengths[0]
        # Convolutions of other lengths add in another order.
        torch.testing.assert_close(
            together.samples[row, : alone.lengths[0]], alone.samples[0], atol=1e-5, rtol=1e-4
        )
        assert not together.samples[row, together.lengths[row] :].any()


def test_empty_rows(codec):
    units = codec.encode(Waveform(torch.zeros(2, 3_200), torch.tensor([0, 3_200]), RATE_HZ))
    assert units.lengths[0] == 0 and units.lengths[1] > 0
    wave = codec.decode(Units(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 3]), None))
    assert wave.lengths[0] == 0 and not wave.samples[0].any()
    assert codec.decode(
        Units(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0]), None)
    ).samples.shape == (1, 0)


def test_other_rates_and_units_are_refused(codec):
    with pytest.raises(SignalError, match="8000 Hz"):
        codec.encode(Waveform(torch.zeros(1, 800), torch.tensor([800]), 8_000))
    with pytest.raises(SignalError, match="0..11"):
        codec.decode(Units(torch.tensor([[3, 12]]), torch.tensor([2]), None))
    with pytest.raises(SignalError, match="unit 12"):
        codec.unit_tokens_of([12])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_any_unit_sequence_can_be_written_in_words(kind):
    regular = [[1, 2, 3, 4] * 5 + [5, 6] * 4 for _ in range(20)]  # 0 and 7 to 9 never occur
    language = train_language(regular, 10, LanguageConfig(words=16, kind=kind))
    unseen = [9, 0, 7, 8, 9, 1, 2, 3, 4, 0, 0]
    assert language.units_of(language.unit_tokens_of(unseen)) == unseen
    assert language.units_of(list(range(language.unit_vocab_size)))
    assert all(language.units_of([word]) for word in range(language.unit_vocab_size))
    assert len(language.unit_tokens_of(regular[0])) < len(regular[0])
    again = UnitLanguage(10, language.model)
    assert (
        again.unit_tokens_of(unseen) == language.unit_tokens_of(unseen)
        and language.unit_tokens_of([]) == []
    )
    with pytest.raises(SignalError, match=str(language.unit_vocab_size)):
        language.units_of([language.unit_vocab_size])


def test_without_a_language_a_word_is_a_unit():
    language = train_language([[1, 2]], 5, LanguageConfig(words=0))
    assert (
        language.unit_vocab_size == 5
        and language.unit_tokens_of([4, 0]) == [4, 0]
        and language.units_of([4, 0]) == [4, 0]
    )


@pytest.mark.parametrize(
    ("changes", "message"), [({"kind": "words"}, "unigram"), ({"words": 5}, "more words")]
)
def test_impossible_languages_are_refused(changes, message):
    settings = {"words": 20, "kind": "bpe"} | changes
    with pytest.raises(ConfigError, match=message):
        train_language([[1, 2, 3]], 10, LanguageConfig(**settings))


def test_kmeans_finds_separate_groups_and_leaves_none_empty():
    generator = torch.Generator().manual_seed(1)
    centres = 20 * torch.randn(8, 5, generator=generator)
    points = (centres[:, None] + torch.randn(8, 50, 5, generator=generator)).flatten(0, 1)
    centroids = fit_kmeans(points, 8, seed=0)
    labels = nearest(points, centroids).reshape(8, 50)
    assert (labels == labels[:, :1]).all() and len(labels[:, 0].unique()) == 8
    assert torch.equal(centroids, fit_kmeans(points, 8, seed=0))
    assert len(nearest(points, fit_kmeans(points, 60, seed=0)).unique()) >= 58
    with pytest.raises(ConfigError, match="401 clusters"):
        fit_kmeans(points, 401, seed=0)


@pytest.mark.parametrize("pitch_hz", [90.0, 180.0, 330.0])
def test_pitch_of_a_tone(pitch_hz):
    contour_hz = fundamental(tone(pitch_hz, 1.0), RATE_HZ, 160)
    assert len(contour_hz) == 100
    assert (contour_hz[10:90] - pitch_hz).abs().max() < 0.01 * pitch_hz
    assert not fundamental(torch.zeros(16_000), RATE_HZ, 160).any()
    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    assert (fundamental(noise, RATE_HZ, 160) > 0).float().mean() < 0.1


def test_griffin_lim_keeps_the_length_and_the_pitch():
    vocoder, samples = build_vocoder("griffin_lim"), tone(200.0, 0.5)
    generated = vocoder(MelSpectrogram(MelRecipe())(samples)[None])
    assert generated.shape == (1, 8_000)
    assert (fundamental(generated[0], RATE_HZ, 160)[15:35] - 200).abs().median() < 6


def test_griffin_lim_computes_in_float32_under_autocast():
    vocoder, mel = build_vocoder("griffin_lim"), MelSpectrogram(MelRecipe())(tone(200.0, 0.2))[None]
    with torch.autocast("cpu", torch.bfloat16):
        generated = vocoder(mel.bfloat16())
    torch.testing.assert_close(generated, vocoder(mel.bfloat16().float()))


def test_a_fit_without_held_out_clips_clusters_and_measures_all(tmp_path, monkeypatch):
    clustered = []
    monkeypatch.setattr(
        fitting,
        "fit_kmeans",
        lambda points, *args, **settings: (
            clustered.append(len(points)) or fit_kmeans(points, *args, **settings)
        ),
    )
    metrics = fit_codec(fit_config(tmp_path, held_out=0), tones())
    assert clustered == [sum(-(-len(clip) // 320) for clip in tones())]
    assert metrics["mel_error"] > 0 and metrics["duration_ratio"] > 0


def test_the_fit_records_its_measurements(folder):
    document = json.loads((folder / "config.json").read_text())
    assert document["metrics"]["units"] == 12 and document["metrics"]["units_per_s"] > 0
    assert {"features", "units", "language", "durations", "melody", "mel"} <= set(
        document["metrics"]["seconds"]
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "language.model",
        "model.safetensors",
    ]


def test_fitting_is_repeatable_and_an_interrupted_fit_resumes(folder, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "train_mel", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_codec(fit_config(tmp_path), tones())
    with pytest.raises(CheckpointError, match="config.json is missing"):
        KMeansCodec(KMeansCodecConfig(folder=str(tmp_path)))
    with monkeypatch.context() as patch:
        for phase in ("fit_kmeans", "train_language", "train_durations", "train_pitch"):
            patch.setattr(fitting, phase, interrupted)  # none of them may run again
        fit_codec(fit_config(tmp_path), tones())
    first, second = (
        json.loads((path / "config.json").read_text())["fingerprint"] for path in (folder, tmp_path)
    )
    assert first == second


def test_other_settings_start_over(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "train_mel", interrupted)
    for units in (12, 13):
        with pytest.raises(KeyboardInterrupt):
            fit_codec(fit_config(tmp_path, units=units), tones())
        centroids = load_file(tmp_path / ".fitting" / "units.safetensors")["centroids"]
        assert len(centroids) == units


def test_impossible_fits_are_refused(tmp_path):
    with pytest.raises(SignalError, match="at least two recordings"):
        fit_codec(fit_config(tmp_path), tones()[:1])
    with pytest.raises(ConfigError, match="held_out"):
        fit_config(tmp_path, held_out=1.0)


def test_the_fingerprint_follows_the_files(codec, folder, tmp_path):
    assert CODECS.build(KMeansCodecConfig(folder=str(folder))).fingerprint() == codec.fingerprint()
    fit_codec(fit_config(tmp_path / "other", seed=1), tones())
    assert (
        CODECS.build(KMeansCodecConfig(folder=str(tmp_path / "other"))).fingerprint()
        != codec.fingerprint()
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "language.model").unlink(), "language.model is missing"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            "model.safetensors is not the file",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged config.json"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"random"', '"tiny"')
            ),
            "changed after",
        ),
        (lambda folder: shutil.rmtree(folder), "there is no codec"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(folder, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        KMeansCodec(KMeansCodecConfig(folder=str(copy)))
    assert "\n" not in str(caught.value)


def test_the_random_codec_needs_no_folder():
    first, second = (CODECS.build(KMeansCodecConfig(folder="random")) for _ in range(2))
    wave = padded([torch.randn(8_000, generator=torch.Generator().manual_seed(0)) * 0.1])
    units = first.encode(wave)
    assert (
        first.vocab_size == first.unit_vocab_size == 32
        and first.fingerprint() == second.fingerprint()
    )
    assert torch.equal(units.ids, second.encode(wave).ids)
    assert first.decode(units).lengths[0] > 0


def test_the_real_vocoder_reconstructs_a_tone():
    try:
        vocoder = build_vocoder("hifigan_16k")
    except AssetError as error:
        pytest.skip(f"needs the real vocoder: {error}")
    samples = tone(200.0, 1.0)
    with torch.no_grad():
        generated = vocoder(MelSpectrogram(vocoder.recipe)(samples)[None])
    assert generated.shape == (1, 16_000)
    assert (fundamental(generated[0], RATE_HZ, 160)[30:70] - 200).abs().median() < 4


def test_a_config_that_asks_for_other_units_than_the_folder_has_is_refused(folder):
    def check(**settings):
        config = KMeansCodecConfig(folder=str(folder), fit=fit_config(folder, **settings))
        KMeansCodec.check_folder(config)

    check()
    KMeansCodec.check_folder(KMeansCodecConfig(folder=str(folder)))  # the default asks for nothing
    with pytest.raises(ConfigError, match="fitted with 12 units, and codec.fit.units is 8; set"):
        check(units=8)
