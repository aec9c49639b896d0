"""A folder of weights is told from a changed one, by samples of large files."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from echox.assets import folder_digest as digests
from echox.assets.folder_digest import folder_digest


@pytest.fixture(params=["whole", "sampled"])
def folder(tmp_path, request, monkeypatch):
    if request.param == "sampled":
        monkeypatch.setattr(digests, "WHOLE_BYTES", 100)
    path = tmp_path / "model"
    path.mkdir()
    write(path, {"a": torch.zeros(500), "b": torch.zeros(500)})
    (path / "config.json").write_text("{}")
    return path


def write(path, tensors):
    save_file(tensors, path / "model.safetensors")


def another_tensor(path):
    write(path, {"a": torch.zeros(500), "b": torch.ones(500)})


def another_setting(path):
    (path / "config.json").write_text('{"tie": true}')


def another_file(path):
    (path / "tokenizer.model").write_bytes(b"words")


def a_damaged_header(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[9] ^= 1
    (path / "model.safetensors").write_bytes(content)


def torn_weights(path):
    (path / "model.safetensors").write_bytes(b"\xff" * 4000)


@pytest.mark.parametrize(
    "change", [another_tensor, another_setting, another_file, a_damaged_header, torn_weights]
)
def test_a_change_is_noticed(folder, change):
    before = folder_digest(folder)
    change(folder)
    assert folder_digest(folder) != before


def test_a_copy_and_texts_for_people_change_nothing(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("A model.")
    (copy / ".lock").write_text("")
    assert folder_digest(copy) == folder_digest(folder)
