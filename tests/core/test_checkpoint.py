"""Checkpoints exist completely or not at all."""

import errno
import json
import os

import pytest
import torch
from torch import nn

from echox.core import checkpoint
from echox.core.errors import CheckpointError, TrainingError

META = {"stage": "toy", "step": 1, "recipe": {}, "lineage": {}, "metrics": {}}


def save_step(parent, step, state=True):
    shared = torch.full((2, 3), float(step))
    return checkpoint.save(
        checkpoint.step_folder(parent, step),
        {"a": shared, "tied": shared},
        META,
        {"step": step} if state else None,
    )


def test_round_trip(tmp_path):
    loaded = checkpoint.load(save_step(tmp_path, 4))
    assert loaded.state == {"step": 4} and loaded.meta["stage"] == "toy"
    assert torch.equal(loaded.tensors["a"], torch.full((2, 3), 4.0))
    assert torch.equal(loaded.tensors["tied"], loaded.tensors["a"])
    sha256 = loaded.meta["files"]["model.safetensors"]["sha256"]
    assert checkpoint.fingerprint(loaded.folder) == sha256
    assert checkpoint.load(save_step(tmp_path, 5, state=False)).state is None


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["removed", "cut", "flipped"])
def test_load_refuses_a_damaged_checkpoint_and_latest_skips_it(tmp_path, caplog, name, damage):
    sound, broken = save_step(tmp_path, 1), save_step(tmp_path, 2)
    path = broken / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    if damage != "removed":
        path.write_bytes(content if damage == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=str(broken)):
        checkpoint.load(broken)
    assert checkpoint.latest(tmp_path).folder == sound
    assert str(broken) in caplog.text


def test_a_full_disk_is_one_sentence_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    sound = save_step(tmp_path, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="no space left on the disk") as error:
        save_step(tmp_path, 2)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [sound.name]
    checkpoint.load(sound)


def test_a_folder_left_by_a_crash_is_no_checkpoint_and_is_removed(tmp_path):
    leftover = tmp_path / ".step_000000007.partial"
    leftover.mkdir()
    assert checkpoint.latest(tmp_path) is None
    save_step(tmp_path, 1)
    assert not leftover.exists()


def test_prune_keeps_the_newest_and_deletes_damaged_ones_after_the_step(tmp_path):
    for step in (1, 2, 3, 9):
        save_step(tmp_path, step)
    checkpoint.prune(tmp_path, step=3, keep=2)
    names = [folder.name for folder in checkpoint.step_folders(tmp_path)]
    assert names == ["step_000000002", "step_000000003"]


def test_another_format_is_refused(tmp_path):
    folder = save_step(tmp_path, 1)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 1"):
        checkpoint.load(folder)
    with pytest.raises(CheckpointError, match="it has no meta.json"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="it has no model.safetensors"):
        checkpoint.fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("model", "names", "fault"),
    [
        (nn.Linear(3, 2), {"weight", "bias"}, "lacks 1 tensors of this model, such as 'bias'"),
        (nn.Linear(4, 2), {"weight"}, "does not fit this model: .*size mismatch for weight"),
        (nn.Identity(), set(), "holds 1 tensors this model lacks, such as 'weight'"),
    ],
)
def test_another_model_is_refused(tmp_path, model, names, fault):
    folder = checkpoint.save(tmp_path / "step_1", {"weight": torch.zeros(2, 3)}, META)
    with pytest.raises(CheckpointError, match=fault):
        checkpoint.fill(model, checkpoint.load(folder), names)
