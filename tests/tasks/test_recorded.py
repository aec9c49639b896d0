"""Recipes of checkpoints: their files are found from anywhere, and missing plugins are named."""

import pytest

from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError, PluginError
from echox.encoders.base import ENCODERS
from echox.pipeline.plugins import discover
from echox.tasks.recorded import recorded_part, recorded_task, with_places


@pytest.fixture(autouse=True)
def _parts():
    discover()


def recorded(folder, recipe, **lineage):
    return Checkpoint(folder, {"stage": "s2t", "recipe": recipe, "lineage": lineage}, {}, None)


def test_files_of_a_checkpoint_are_found_from_another_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("moved/codec", "former/llm", "former/runs/a/codec", "former/random"):
        (tmp_path / folder).mkdir(parents=True)
    final = tmp_path / "moved/s2t/final"
    plain = {
        "run_dir": "runs/a",
        "backbone": {"name": "hub", "weights": "llm", "system": "llm"},
        "encoder": {"name": "whisper", "weights": "random"},
        "codec": {"name": "kmeans", "folder": "runs/a/codec", "parts": [{"weights": "tiny"}]},
    }
    checkpoint = recorded(final, plain, working_folder=str(tmp_path / "former"))
    found = with_places(checkpoint, plain)
    assert found["backbone"]["weights"] == str(tmp_path / "former/llm")
    assert found["codec"]["folder"] == str(tmp_path / "moved/codec")
    # Names, and fields that name no file, stay as they are.
    assert (found["backbone"]["system"], found["encoder"]["weights"]) == ("llm", "random")
    assert found["codec"]["parts"] == [{"weights": "tiny"}] and found["run_dir"] == "runs/a"
    (tmp_path / "moved/codec").rmdir()
    assert with_places(checkpoint, plain["codec"])["folder"] == str(
        tmp_path / "former/runs/a/codec"
    )
    # Checkpoints of earlier versions record no working folder.
    assert with_places(recorded(final, plain), plain) == plain


def test_a_plugin_that_is_missing_is_named_with_its_file(tmp_path):
    recipe = {"encoder": {"name": "ear"}}
    plugins = {"encoder ear": "/home/me/plugins/ear.py"}
    checkpoint = recorded(tmp_path, recipe, plugins=plugins)
    with pytest.raises(PluginError, match="encoder ear of /home/me/plugins/ear.py.*plugin_dirs="):
        recorded_part(checkpoint, "encoder", ENCODERS)
    with pytest.raises(PluginError, match="^no encoder named 'ear'"):
        recorded_part(recorded(tmp_path, recipe), "encoder", ENCODERS)


@pytest.mark.parametrize(
    "task",
    [{"name": []}, {"name": "s2t", "adapter": {"heads": "many"}}],
)
def test_a_damaged_recipe_is_one_sentence(tmp_path, task):
    recipe = {"stages": {"s2t": {"task": task}}}
    with pytest.raises(CheckpointError, match="does not describe a task .*meta.json is damaged"):
        recorded_task(recorded(tmp_path, recipe))
