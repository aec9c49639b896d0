"""Parts of finished checkpoints, rebuilt from what the checkpoints record."""

from pathlib import Path

import pytest
from torch import nn

from echox.assets.sources import Source, allowed_sources
from echox.backbones.base import BACKBONES
from echox.backbones.hub import HubBackboneConfig
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError, ConfigError
from echox.tasks.align.task import AlignmentTaskConfig
from echox.tasks.base import TASKS, Outline
from echox.tasks.recorded import recorded_config, weight_digests
from echox.tasks.restored import recorded_adapter, recorded_backbone, required_codec
from echox.tasks.t2c.task import TextUnitsTaskConfig


def test_weights_are_those_of_the_source_in_training(monkeypatch):
    described = BACKBONES.describe(HubBackboneConfig(weights="smollm2_135m"))
    meta = {"recipe": {"backbone": described}, "lineage": {}}
    checkpoint = Checkpoint(Path("runs/echo/final"), meta, {}, None)
    sources = []

    def build(config):
        sources.append(allowed_sources())
        return nn.Identity()

    monkeypatch.delenv("ECHOX_ASSET_SOURCE", raising=False)
    monkeypatch.setattr(BACKBONES, "build", build)
    origins = {"smollm2_135m": "packages smollm2_135m-8bdf6b3db3"}
    monkeypatch.setattr("echox.tasks.recorded.origin_of", origins.get)
    # Earlier versions recorded no sources.
    recorded_backbone(checkpoint)
    assert sources.pop() == (Source.hub, Source.packages)
    meta["lineage"]["assets"] = dict(origins)
    recorded_backbone(checkpoint)
    assert sources.pop() == (Source.packages,)
    # The user's choice in the environment goes first, and is refused where it is another source.
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "hub")
    origins["smollm2_135m"] = "hub HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f"
    with pytest.raises(CheckpointError, match="and here it is of hub .*=packages to use the"):
        recorded_backbone(checkpoint)


def test_a_folder_of_weights_that_changed_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(BACKBONES, "build", lambda config: nn.Identity())
    (tmp_path / "config.json").write_text("{}")
    config = HubBackboneConfig(weights=str(tmp_path))
    meta = {
        "recipe": {"backbone": BACKBONES.describe(config)},
        "lineage": {"weight_folders": weight_digests({"backbone": config})},
    }
    checkpoint = Checkpoint(Path("runs/echo/final"), meta, {}, None)
    recorded_backbone(checkpoint)
    assert not caplog.text
    (tmp_path / "config.json").write_text('{"tie": true}')
    recorded_backbone(checkpoint)
    assert f"other files of backbone.weights than are in {tmp_path} now" in caplog.text


def test_a_checkpoint_of_another_task_is_refused():
    task = TASKS.describe(TextUnitsTaskConfig())
    meta = {"stage": "t2c", "recipe": {"stages": {"t2c": {"task": task}}}}
    checkpoint = Checkpoint(Path("runs/t2c/final"), meta, {}, None)
    assert recorded_config(checkpoint, TextUnitsTaskConfig) == TextUnitsTaskConfig()
    with pytest.raises(CheckpointError, match="TextUnitsTaskConfig where a AlignmentTaskConfig is"):
        recorded_config(checkpoint, AlignmentTaskConfig)
    with pytest.raises(CheckpointError, match="TextUnitsTaskConfig, which has no speech adapter"):
        recorded_adapter(checkpoint)
    with pytest.raises(CheckpointError, match="cannot be loaded without its codec"):
        required_codec(checkpoint, None)


def test_an_outline_gives_modules_of_the_class_that_is_asked_for():
    model = nn.Sequential(nn.Linear(2, 3))
    outline = Outline(model, parts={}, cost_unit="rows", longest_cost=1, activations={})
    assert outline.module("", nn.Sequential) is model
    assert outline.module("0", nn.Linear) is model[0]
    for path, kind in (("0", nn.Conv1d), ("1", nn.Linear)):
        with pytest.raises(ConfigError, match=f"needs a {kind.__name__} called '{path}' of the"):
            outline.module(path, kind)
