"""Parts of finished checkpoints, rebuilt from what the checkpoints record."""

from pathlib import Path

import pytest
from torch import nn

from echox.assets.sources import Source, allowed_sources
from echox.backbones.base import BACKBONES
from echox.backbones.hub import HubBackboneConfig
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.tasks.restored import recorded_backbone


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
