"""The vocoder stage: aligned segments, durations, exact resumption, and the published vocoder."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from echox.codecs.kmeans.codec import KMeansCodecConfig
from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.core import checkpoint
from echox.core.errors import ConfigError, ManifestError
from echox.criteria.vocoder import VocoderCriterion, VocoderCriterionConfig
from echox.data.audio import save_audio
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.engine.config import LrSchedule, Precision, TrainConfig
from echox.engine.trainer import train
from echox.pipeline import plugins
from echox.tasks.base import Parts, StageContext
from echox.tasks.conversations import RowsConfig
from echox.tasks.vocoder.task import GeneratorSizes, VocoderTask, VocoderTaskConfig
from echox.vocoders.discriminators import DiscriminatorSizes

HOP, RATE_HZ, UNITS = 320, 16_000, 6
SMALL = GeneratorSizes(
    upsample_rates=[8, 8, 5],
    upsample_kernel_sizes=[16, 16, 11],
    upsample_initial_channel=32,
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 3]],
    embedding_dim=8,
    duration_channels=8,
)
DISCRIMINATORS = DiscriminatorSizes(
    periods=[2, 3], period_channels=[4, 8], scales=2, scale_channels=[16] * 7
)


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Rows with a unit for every frame; each unit is a tone of its own and lasts some frames."""
    plugins.discover()
    folder = tmp_path_factory.mktemp("corpus")
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("valid", 3)):
        rows = []
        for number in range(count):
            units = torch.randint(UNITS, (12,), generator=random).repeat_interleave(
                torch.randint(1, 4, (12,), generator=random)
            )
            samples = tones(units)
            path = folder / f"{split}-{number}.wav"
            save_audio(path, samples, RATE_HZ)
            item = Item(Role.ASSISTANT, "tones", audio=path, units=tuple(units.tolist()))
            rows.append(Row(f"{split}/{number}", (item,), {"voice": "ab"[number % 2]}))
        write_manifest(folder / f"{split}.jsonl", rows)
    return folder


def tones(units):
    """Units [F] -> a sine of its own pitch for each, [F * HOP], without clicks between them."""
    pitch_hz = (200.0 + 150.0 * units.double()).repeat_interleave(HOP)
    return (0.3 * torch.sin(2 * torch.pi * (pitch_hz / RATE_HZ).cumsum(0))).float()


def task_of(corpus, folder=None, codec=None, **settings):
    data = RowsConfig(train=[str(corpus / "train.jsonl")], valid=[str(corpus / "valid.jsonl")])
    defaults = dict(
        data=data,
        units=None if codec else UNITS,
        segment_frames=8,
        generator=SMALL,
        discriminators=DISCRIMINATORS,
        copied_rows=1,
    )
    context = StageContext(
        parts=Parts(None, None, codec), seed=3, cache_dir=corpus / "cache", run_dir=folder
    )
    return VocoderTask(VocoderTaskConfig(**defaults | settings), context)


def prepared(task):
    torch.manual_seed(3)
    model = task.build()
    task.prepare(model)
    return model


def run(corpus, folder, steps=6, **settings):
    config = TrainConfig(
        steps=steps, batch_size=3, lr=2e-3, betas=[0.8, 0.99], lr_schedule=LrSchedule.exponential,
        precision=Precision.fp32, save_every=3, validate_every=3, log_every=1, grad_clip=None,
    )  # fmt: skip
    criterion = VocoderCriterion(VocoderCriterionConfig())
    return train(
        task_of(corpus, folder, **settings),
        criterion,
        config,
        run_dir=folder,
        stage="vocoder",
        seed=3,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    torch.set_num_threads(1)
    return run(corpus, tmp_path_factory.mktemp("run")).parent


def test_segments_stay_aligned_with_their_units(corpus):
    task = task_of(corpus)
    model = prepared(task).train()
    examples = task.examples("train")
    batch = task.collate([examples[row] for row in range(len(examples))])
    inputs = []
    model.generator.forward = lambda units, speakers: (
        inputs.append(units) or torch.zeros(len(units), units.shape[1] * HOP)
    )
    outputs = [task.forward(model, batch) for _ in range(3)]
    assert any(not torch.equal(inputs[0], other) for other in inputs[1:])
    for units, output in zip(inputs, outputs):
        for row, real in zip(units, output.real):
            # A tone's pitch gives its unit; frames are whole, so phases do not matter.
            spectrum = torch.fft.rfft(
                real.view(-1, HOP) * torch.hann_window(HOP), n=RATE_HZ // 10
            ).abs()
            assert (spectrum.argmax(1) * 10 - 200 - 150 * row).abs().max() <= 60


def test_durations_are_those_of_whole_utterances(corpus):
    task = task_of(corpus)
    prepared(task)
    batch = task.collate([task.examples("train")[row] for row in range(2)])
    for units, durations, frames, length in zip(
        batch.units, batch.durations, batch.frames, batch.lengths.tolist()
    ):
        keep = durations > 0
        assert torch.equal(units[keep].repeat_interleave(durations[keep]), frames[:length])
        assert (units[keep][1:] != units[keep][:-1]).all()


def test_a_resumed_run_ends_with_the_same_bits(corpus, finished, tmp_path):
    shutil.copytree(
        finished / "checkpoints" / "step_000000003", tmp_path / "checkpoints" / "step_000000003"
    )
    assert checkpoint.fingerprint(run(corpus, tmp_path)) == checkpoint.fingerprint(
        finished / "final"
    )


def test_the_published_vocoder_is_the_trained_one(corpus, finished):
    assert (finished / "vocoder" / "g_00000006").is_file()
    codec = UnitHifiGan(UnitHifiGanConfig(folder=str(finished / "vocoder")))
    assert (codec.vocab_size, codec.rate_hz, codec.unit_rate_hz) == (UNITS, RATE_HZ, 50.0)
    model = prepared(task_of(corpus))
    trained = checkpoint.load(finished / "final")
    checkpoint.fill(model, trained, set(trained.tensors))
    units = torch.tensor([0, 3, 5, 1])
    model.eval()
    with torch.no_grad():
        frames = units.repeat_interleave(model.generator.durations(units)[1])
        expected = model.generator(frames[None], torch.zeros(1, dtype=torch.int64))[0]
    assert torch.equal(codec.sound(units), expected)


def test_validation_scores_and_keeps_copies(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in lines if line["split"] == "valid")
    assert {
        "loss",
        "mel",
        "duration",
        "features",
        "adversarial",
        "duration_error_frames",
        "length_ratio",
    } <= valid.keys()
    trained = next(line for line in lines if line["split"] == "train")
    assert {"mel", "discriminator"} <= trained.keys()
    copies = sorted(path.name.partition(".")[2] for path in (finished / "copies").iterdir())
    assert copies == ["made.wav", "real.wav"]


def test_it_learns_tones_and_durations(corpus, tmp_path):
    run(corpus, tmp_path, steps=30, discriminators=None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    mel, duration = (
        [line[name] for line in lines if line["split"] == "train"] for name in ("mel", "duration")
    )
    assert sum(mel[-5:]) < 0.8 * sum(mel[:5]) and sum(duration[-5:]) < 0.6 * sum(duration[:5])
    assert "discriminator" not in lines[0]


def test_it_may_begin_with_a_published_one(corpus, finished):
    model = prepared(task_of(corpus, start=str(finished / "vocoder"))).eval()
    codec = UnitHifiGan(UnitHifiGanConfig(folder=str(finished / "vocoder")))
    units, speaker = torch.arange(UNITS)[None], torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(
            model.generator(units, speaker), codec.net(units, speaker), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            model.generator.log_frames(units), codec.net.log_frames(units), atol=1e-6, rtol=0
        )


def test_speakers_are_numbered_and_published(corpus, tmp_path):
    final = run(corpus, tmp_path, steps=1, speaker_key="voice")
    settings = json.loads((final.parent / "vocoder" / "vocoder_config.json").read_text())
    assert (settings["num_speakers"], settings["speakers"], settings["model_in_dim"]) == (
        2,
        ["a", "b"],
        16,
    )
    codecs = [
        UnitHifiGan(UnitHifiGanConfig(folder=str(final.parent / "vocoder"), speaker=speaker))
        for speaker in (0, 1)
    ]
    assert not torch.equal(*(codec.sound(torch.arange(4)) for codec in codecs))


def test_a_codec_encodes_the_units_where_one_is_named(corpus):
    codec = KMeansCodecConfig(folder="random")
    task = task_of(corpus, codec=codec)
    prepared(task)
    assert task.settings["num_embeddings"] == codec.random_units
    example = task.examples("train")[0]
    assert abs(len(example.recording.frames) - len(example.samples) / HOP) < 1
    assert task.data_fingerprints()["codec"] == task.codec.fingerprint()


def test_wrong_data_is_refused_in_a_sentence(corpus, tmp_path):
    with pytest.raises(ConfigError, match="units is null and there is no codec to ask"):
        task_of(corpus, units=None).build()
    with pytest.raises(
        ConfigError,
        match="makes 50 units/s, but upsample_rates of 160 samples at 16000 Hz speak 100",
    ):
        sizes = dataclasses.replace(
            SMALL, upsample_rates=[8, 4, 5], upsample_kernel_sizes=[16, 8, 11]
        )
        task_of(corpus, codec=KMeansCodecConfig(folder="random"), generator=sizes).build()
    with pytest.raises(ConfigError, match="codec unit_hifigan makes no units of speech"):
        task_of(corpus, codec=UnitHifiGanConfig(folder="random")).build()
    with pytest.raises(ManifestError, match="has unit 5, but there are 3"):
        prepared(task_of(corpus, units=3))
    with pytest.raises(ManifestError, match="has no 'who' that names its speaker"):
        task_of(corpus, speaker_key="who").build()
    merged = Path(shutil.copytree(corpus, tmp_path / "merged"))
    rows = [json.loads(line) for line in (merged / "train.jsonl").read_text().splitlines()]
    rows[2]["conversations"][0]["units"] = "1 2 3"
    (merged / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ManifestError, match="row 'train/2' has 3 units .* learns from a unit per frame"
    ):
        prepared(task_of(merged))


def test_without_a_duration_predictor_no_duration_is_scored(corpus):
    task = task_of(
        corpus, generator=dataclasses.replace(SMALL, duration_channels=None), discriminators=None
    )
    model = prepared(task)
    batch = task.collate([task.examples("train")[0]])
    loss = VocoderCriterion(VocoderCriterionConfig())(task.forward(model, batch), batch)
    assert loss.parts.keys() == {"mel"} and loss.total > 0
    assert task.score(model, lambda: iter([batch])) == {}
