"""Neural codecs of several codebooks: every stage by the command, then an answer."""

import json

import pytest
import torch
from echo_home import WITHOUT_CORPUS
from tiny_run import RATE_HZ, noise

from echox.codecs.base import CODECS
from echox.codecs.neural import MimiCodecConfig
from echox.core import checkpoint
from echox.data.audio import save_audio
from echox.data.manifest import Item, Role, Row, read_manifest, write_manifest
from echox.inference.load import load_pipeline, load_tts_pipeline
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.tasks import stage_task
from echox.tasks.t2c.unit_alignment import frames_of_counts
from echox_cli import train

TEXTS = ("Yes.", "No. It is.", "A dog.", "So it goes.", "At ten.", "Two or three.")
STEPS = 20


def write_conversations(folder):
    """Spoken questions with spoken answers, at a sampling rate that no codec has."""
    rows = []
    for number, text in enumerate(TEXTS):
        clips = [folder / f"{name}-{number}.wav" for name in ("q", "a")]
        for place, clip in enumerate(clips):
            save_audio(clip, noise(10 * number + place, 0.8 + 0.1 * number), RATE_HZ)
        turns = (
            Item(Role.USER, audio=clips[0]),
            Item(Role.ASSISTANT, text, audio=clips[1], transcription="What is it?"),
        )
        rows.append(Row(f"row-{number}", turns))
    write_manifest(folder / "talk.jsonl", rows)


def words_at(folder, codec, *more):
    conversations = [
        f"{stage}.task.data.{split}=[{folder / 'talk.jsonl'}]"
        for stage in ("align", "s2t", "echo")
        for split in ("train", "valid")
    ]
    units = [f"t2c.task.{split}=[{folder / 'talk.units.jsonl'}]" for split in ("train", "valid")]
    brief = [
        f"{stage}.train.{setting}"
        for stage in ("align", "s2t", "echo")
        for setting in ("steps=2", "batch_size=3")
    ]
    places = [
        "device=cpu",
        *WITHOUT_CORPUS,
        "vocoder=null",
        f"units=[{folder / 'talk.jsonl'}]",
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
    ]
    shapes = [
        "t2c.task.decoder.max_words_per_token=3",
        "t2c.task.decoder.width=32",
        "t2c.task.spelling_channels=8",
        f"t2c.train.steps={STEPS}",
        "t2c.train.lr=1.0e-2",
        "t2c.train.log_every=4",
    ]
    return [
        *places,
        *conversations,
        *units,
        *brief,
        *shapes,
        f"codec={codec}",
        "codec.weights=random",
        "codec.codebooks=3",
        *more,
    ]


@pytest.fixture(
    scope="module", params=[("mimi", 1), ("dac", 0)], ids=["mimi-delayed", "dac-parallel"]
)
def home(request, tmp_path_factory):
    codec, delay = request.param
    folder = tmp_path_factory.mktemp(codec)
    write_conversations(folder)
    words = words_at(folder, codec, f"t2c.task.decoder.codebook_delay={delay}")
    assert train.main(["recipe=echo_tiny", *words]) == 0
    return folder, codec, words


def losses(home, stage):
    lines = [
        json.loads(line)
        for line in (home[0] / "run" / stage / "metrics.jsonl").read_text().splitlines()
    ]
    return [line for line in lines if line["split"] == "train"], [
        line for line in lines if line["split"] == "valid"
    ]


def test_every_stage_is_trained_and_scored(home):
    trained, valid = losses(home, "t2c")
    assert trained[-1]["units"] < 0.9 * trained[0]["units"]
    assert valid[-1]["unit_error"] > 0
    trained, valid = losses(home, "echo")
    assert torch.tensor(trained[-1]["units"]).isfinite() and valid[-1]["unit_error"] >= 0
    recipe = checkpoint.verify(home[0] / "run" / "echo" / "final")["recipe"]
    assert recipe["codec"]["name"] == home[1] and recipe["codec"]["codebooks"] == 3


def test_manifests_hold_frames_of_codes(home):
    row = read_manifest(home[0] / "talk.units.jsonl").rows[0]
    assert all(len(frame) == 3 for frame in row.answer.words) and len(row.answer.units) == 3 * len(
        row.answer.words
    )
    spelled = json.loads((home[0] / "talk.units.jsonl").read_text().splitlines()[0])[
        "conversations"
    ][1]["units"]
    assert spelled.split()[0] == "_".join(map(str, row.answer.units[:3]))


def test_answers_alone_are_those_of_a_batch(home):
    pipeline = load_pipeline(
        home[0] / "run" / "echo" / "final", device="cpu", max_tokens=4, bf16=False
    )
    clips = [noise(number, 0.6 + 0.3 * number) for number in range(2)]
    together = pipeline.answer(clips)
    for clip, answer in zip(clips, together):
        (alone,) = pipeline.answer([clip])
        assert answer.units == alone.units and answer.codebooks == 3 and len(answer.units) % 3 == 0
        assert answer.rate_hz == pipeline.codec.rate_hz
        assert len(answer.samples) == len(answer.units) // 3 * pipeline.codec.hop_samples > 0
        torch.testing.assert_close(answer.samples, alone.samples, atol=1e-4, rtol=0)
    tts = load_tts_pipeline(home[0] / "run" / "t2c" / "final", beside=pipeline, bf16=False)
    typed = tts.synthesize(["Yes.", ""])
    assert (
        len(typed[0].units) % 3 == 0
        and len(typed[0].samples) == len(typed[0].units) // 3 * pipeline.codec.hop_samples > 0
    )
    assert typed[1].samples is None and typed[1].units == ()


def test_each_text_token_has_its_frames(home):
    task = stage_task(load_recipe("echo_tiny", [*home[2], "stage=t2c"]), "t2c", torch.device("cpu"))
    model = task.build()
    task.prepare(model)
    assert len(task.splits["train"]) == len(TEXTS)
    for row in task.splits["train"]:
        assert model.decoder.unit_tokens_in(row.target) == list(row.units)
        assert row.target[0::3].count(model.decoder.next_id) == len(row.ids)
    examples = task.examples("train")
    batch = task.collate([examples[index] for index in range(len(examples))])
    outputs = task.forward(model, batch)
    assert batch.count == int((outputs.unit_labels != -100).sum())


def test_counts_of_readings_become_counts_of_frames():
    counts = torch.tensor([1, 2, 3, 6, 0, 4])
    assert frames_of_counts(counts, 1).tolist() == counts.tolist()
    frames = frames_of_counts(counts, 4)
    assert frames.tolist() == [0, 1, 1, 1, 0, 1] and int(frames.sum()) == 4


def test_frames_of_a_low_rate_are_read_repeatedly(tmp_path):
    discover()
    codec = CODECS.build(MimiCodecConfig(weights="random", codebooks=2))
    assert codec.unit_rate_hz == 12.5
    write_conversations(tmp_path)
    words = words_at(
        tmp_path,
        "mimi",
        "stage=t2c",
        "codec.codebooks=2",
        f"t2c.task.train=[{tmp_path / 'm.jsonl'}]",
    )
    # Ten letters in half a second: six frames.
    row = Row(
        "fast",
        (Item(Role.ASSISTANT, "Abcdefghi.", units=tuple(range(12))),),
        {"codec": codec.fingerprint()},
    )
    write_manifest(tmp_path / "m.jsonl", [row])
    task = stage_task(load_recipe("echo_tiny", words), "t2c", torch.device("cpu"))
    task.build()
    (utterance,) = task._utterances("train")
    assert task.alignment._readings(utterance)[:8] == [0, 0, 0, 0, 2, 2, 2, 2]
