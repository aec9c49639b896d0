"""Training on augmented clips: new sounds each epoch, the same ones after an interruption.

Validation is not augmented.
"""

import numpy as np
import pytest
import soundfile
import torch

from echox.backbones.hub import HubBackboneConfig
from echox.core import checkpoint
from echox.criteria.base import CRITERIA
from echox.data.augmentation import AugmentationConfig
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.encoders.whisper import WhisperConfig
from echox.engine.config import TrainConfig
from echox.engine.trainer import train
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.pipeline.plugins import discover
from echox.tasks.align.task import AlignmentTask, AlignmentTaskConfig
from echox.tasks.base import Parts, StageContext
from echox.tasks.conversations import SpokenDataConfig

NOISY = AugmentationConfig(speed_share=1.0, noise_share=1.0, time_masks=1)


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 2)):
        rows = []
        for number in range(count):
            soundfile.write(
                tmp_path / f"{split}{number}.wav",
                0.1 * noise.standard_normal(6_000 + 800 * number),
                16_000,
            )
            question = Item(Role.USER, audio=tmp_path / f"{split}{number}.wav")
            rows.append(
                Row(
                    f"{split}{number}",
                    (question, Item(Role.ASSISTANT, "Yes.", transcription="Is it?")),
                )
            )
        write_manifest(tmp_path / f"{split}.jsonl", rows)
    return tmp_path


def task_in(folder, augmentation: AugmentationConfig | None) -> AlignmentTask:
    discover()
    data = SpokenDataConfig(
        train=[str(folder / "train.jsonl")],
        valid=[str(folder / "valid.jsonl")],
        augmentation=augmentation,
    )
    parts = Parts(WhisperConfig(weights="random"), HubBackboneConfig(weights="random"), None)
    return AlignmentTask(
        AlignmentTaskConfig(data=data, adapter=SpeechAdapterConfig(heads=4)),
        StageContext(parts, 1, folder / "cache"),
    )


def prepared(folder, augmentation) -> AlignmentTask:
    task = task_in(folder, augmentation)
    task.prepare(task.build())
    return task


def test_clips_differ_by_epoch_alone_and_stay_clean_in_validation(folder, caplog):
    task = prepared(folder, NOISY)
    assert "encodes them at every step" in caplog.text and len(task.data.cache) == 2
    examples = task.examples("train")
    first, repeated, later = (
        task.collate([examples.at(3, epoch), examples.at(0, epoch)]).features for epoch in (0, 0, 1)
    )
    assert torch.equal(first.values, repeated.values)
    assert not torch.equal(first.values, later.values)
    clean = prepared(folder, None)
    valid, plain = task.examples("valid"), clean.examples("valid")
    assert torch.equal(
        task.collate([valid[0], valid[1]]).features.values,
        clean.collate([plain[0], plain[1]]).features.values,
    )
    # Lengths for batching are those of the clips as they were recorded.
    assert [examples.cost(index) for index in range(6)] == [
        clean.examples("train").cost(index) for index in range(6)
    ]


def test_masks_alone_leave_the_cache_in_use(folder, caplog):
    task = prepared(folder, AugmentationConfig(time_masks=2, channel_masks=1))
    assert len(task.data.cache) == 8 and "encodes them" not in caplog.text
    examples = task.examples("train")
    masked = task.collate([examples.at(0, 0)]).features.values
    plain = task.collate([examples[0]]).features.values
    assert masked.shape == plain.shape and 0 < (masked != plain).float().mean() < 0.8


class Stopped(Exception):
    pass


def trained(folder, run: str, stop_at: int | None = None):
    task = task_in(folder, NOISY)
    forward, calls = task.forward, []

    def counting_forward(model, batch):
        if model.training and torch.is_grad_enabled():
            calls.append(batch.row_ids)
            if len(calls) == stop_at:
                raise Stopped
        return forward(model, batch)

    task.forward = counting_forward
    config = TrainConfig(steps=6, batch_size=2, save_every=2, validate_every=None, audit=False)
    criterion = CRITERIA.build(CRITERIA.parse({"name": "alignment"}))
    return train(
        task,
        criterion,
        config,
        run_dir=folder / run,
        stage="align",
        seed=1,
        device=torch.device("cpu"),
    )


def test_an_interrupted_run_reads_the_same_sounds_to_the_bit(folder):
    uninterrupted = trained(folder, "uninterrupted")
    with pytest.raises(Stopped):
        trained(folder, "stopped", stop_at=5)
    resumed = trained(folder, "stopped")
    assert checkpoint.fingerprint(resumed) == checkpoint.fingerprint(uninterrupted)
