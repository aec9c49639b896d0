"""Checkpoints exist completely or not at all."""

import errno
import hashlib
import json
import os

import pytest
import torch
from torch import nn

from echox.core import checkpoint
from echox.core.errors import CheckpointError, DiskError

META = {"stage": "toy", "step": 1, "recipe": {}, "lineage": {}, "metrics": {}}


def save_step(parent, step, state=True):
    shared = torch.full((2, 3), float(step))
    return checkpoint.save(
        checkpoint.step_folder(parent, step),
        {"a": shared, "tied": shared},
        META | {"step": step},
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
def test_load_refuses_a_damaged_checkpoint_and_resuming_skips_it(tmp_path, caplog, name, damage):
    sound, broken = save_step(tmp_path, 1), save_step(tmp_path, 2)
    path = broken / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    if damage != "removed":
        path.write_bytes(content if damage == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=str(broken)):
        checkpoint.load(broken)
    assert [saved.folder for saved in checkpoint.newest_first(tmp_path)] == [sound]
    assert str(broken) in caplog.text


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[" * 100_000, "cannot be read"),
        (b"\xff{}", "cannot be read"),
        (b'{"format": 1, "files": ["model.safetensors"]}', "does not state the size"),
        (b'{"format": 1, "files": {"../model": {"bytes": 1, "sha256": "0"}}}', "does not state"),
        (b'{"format": 1, "files": {"a": {"bytes": "1", "sha256": "0"}}}', "does not state"),
        (b'{"format": 1, "files": {"a": {"bytes": 1, "sha256": "0"}}, "lineage": []}', "'lineage'"),
        (b'{"format": 1, "files": {"a": {"bytes": 1, "sha256": "0"}}, "step": "x"}', "'step'"),
    ],
)
def test_a_description_of_any_content_is_one_sentence(tmp_path, content, fault):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: its meta.json.*{fault}"):
        checkpoint.described(tmp_path)


def test_a_description_that_was_changed_is_refused(tmp_path):
    path = save_step(tmp_path, 1) / "meta.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described, separators=(",", ":")))
    checkpoint.load(path.parent)
    path.write_text(json.dumps(described | {"recipe": {"lr": 0.1}}))
    with pytest.raises(CheckpointError, match="meta.json has been changed since it was written"):
        checkpoint.load(path.parent)
    del described["checksum"]  # earlier versions wrote none
    path.write_text(json.dumps(described))
    checkpoint.load(path.parent)


def test_a_pipe_in_the_place_of_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "meta.json")
    with pytest.raises(CheckpointError, match="it has no meta.json"):
        checkpoint.load(tmp_path)


def test_values_that_are_not_numbers_are_named(tmp_path):
    bad = torch.tensor([1.0, float("nan")])
    final = checkpoint.save(tmp_path / "final", {"a.weight": bad}, META)
    with pytest.raises(CheckpointError, match="a.weight in model.safetensors holds NaN"):
        checkpoint.load(final)
    state = {"step": 1, "optimizer": {"a": {"exp_avg": bad}}}
    step = checkpoint.save(tmp_path / "step_000000001", {}, META, state)
    with pytest.raises(CheckpointError, match="optimizer.a.exp_avg in state.pt holds NaN"):
        checkpoint.load(step)


def test_checkpoints_that_were_exchanged_are_not_resumed_from(tmp_path, caplog):
    sound, old, new = (save_step(tmp_path, step) for step in (1, 2, 3))
    old.rename(tmp_path / "spare")
    new.rename(old)
    (tmp_path / "spare").rename(new)
    assert [saved.folder for saved in checkpoint.newest_first(tmp_path)] == [sound]
    assert "its meta.json is of step 2, and its state.pt of step 2" in caplog.text


def test_other_folders_are_no_steps(tmp_path):
    (tmp_path / "step_final").mkdir()
    (tmp_path / "step_10").mkdir()
    assert checkpoint.step_folders(tmp_path) == []


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    folder = save_step(tmp_path, 1)
    torch.save({"step": 1, "payload": _Payload(tmp_path / "run")}, folder / "state.pt")
    described = json.loads((folder / "meta.json").read_text())
    content = (folder / "state.pt").read_bytes()
    described["files"]["state.pt"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    del described["checksum"]
    (folder / "meta.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="is damaged: .*[Ww]eights"):
        checkpoint.load(folder)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_sentence_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    sound = save_step(tmp_path, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DiskError, match=r"No space left on device \(\d+ bytes needed, .* free in "
    ) as error:
        save_step(tmp_path, 2)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [sound.name]
    checkpoint.load(sound)


def test_a_folder_left_by_a_crash_is_no_checkpoint_and_is_removed(tmp_path):
    leftover = tmp_path / ".step_000000007.partial"
    leftover.mkdir()
    assert list(checkpoint.newest_first(tmp_path)) == []
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
