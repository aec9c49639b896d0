"""The lineage of a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from echox_plugins.spoken_style_backbone import SpokenStyleConfig

from echox.assets.folder_digest import folder_digest
from echox.backbones.hub import HubBackboneConfig
from echox.core import checkpoint
from echox.core.errors import CheckpointError
from echox.encoders.whisper import WhisperConfig
from echox.engine import lineage
from echox.tasks.base import Parts, StageContext

from .toy import ToyConfig, ToyTask


class Child(ToyTask):
    parents = ("s2t",)


def child_of(folder):
    return Child(
        ToyConfig(),
        StageContext(
            parts=None,
            seed=0,
            cache_dir=Path("unused"),
            parents={"s2t": folder, "t2c": Path("not read")},
        ),
    )


def test_a_run_with_another_parent_is_refused(tmp_path):
    first, second = (
        checkpoint.save(tmp_path / name, {"w": torch.full((2,), value)}, {})
        for name, value in (("a", 1.0), ("b", 2.0))
    )
    recorded = lineage.trace(child_of(first), {"plugins": ["mel"]})
    assert recorded["parents"] == {"s2t": checkpoint.fingerprint(first)} and recorded[
        "plugins"
    ] == ["mel"]
    assert recorded["working_folder"] == str(Path.cwd())
    resumed = checkpoint.load(
        checkpoint.save(tmp_path / "run", {"w": torch.zeros(2)}, {"lineage": recorded})
    )
    lineage.check_same_origin(resumed, recorded)
    with pytest.raises(CheckpointError, match="trained with other parents .s2t changed"):
        lineage.check_same_origin(resumed, lineage.trace(child_of(second)))


def test_weights_of_another_source_are_refused(tmp_path, monkeypatch):
    origins = {"toy": "packages toy-1", "someone/toy": "hub someone/toy@c1"}
    for module in ("echox.engine.lineage", "echox.tasks.recorded"):
        monkeypatch.setattr(f"{module}.origin_of", origins.get)

    def trace(*parents):
        task = ToyTask(ToyConfig(), context_of(*parents))
        return lineage.trace(task)

    def context_of(*parents):
        names = ("toy", "someone/toy", "random")
        parts = Parts(*(SimpleNamespace(weights=name) for name in names))
        return StageContext(parts, seed=0, cache_dir=Path("unused"), parents=dict(parents))

    recorded = trace()
    assert recorded["assets"] == origins
    saved = checkpoint.save(tmp_path / "run", {"w": torch.zeros(2)}, {"lineage": recorded})
    resumed = checkpoint.load(saved)
    # Most commits of a model on the hub change no weights.
    origins["someone/toy"] = "hub someone/toy@c2"
    lineage.check_same_origin(resumed, trace())
    origins["toy"] = "hub someone/toy@c1"
    with pytest.raises(CheckpointError, match="'toy' of packages toy-1.*ECHOX_ASSET_SOURCE=pack"):
        lineage.check_same_origin(resumed, trace())
    # The same of a parent, whose weights this stage builds on.
    monkeypatch.setattr(ToyTask, "parents", ("s2t",))
    with pytest.raises(CheckpointError, match="'toy' of packages toy-1, and here it is of hub"):
        trace(("s2t", saved))


def test_folders_of_weights_are_recorded(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    def trace(**parts):
        every = {"encoder": None, "backbone": None, "codec": None, **parts}
        context = StageContext(Parts(**every), seed=0, cache_dir=Path("unused"))
        return lineage.trace(ToyTask(ToyConfig(), context))

    inner = HubBackboneConfig(weights=str(tmp_path))
    recorded = trace(backbone=SpokenStyleConfig(inner=inner), encoder=WhisperConfig())[
        "weight_folders"
    ]
    assert recorded == {"backbone.inner.weights": folder_digest(tmp_path)}
    assert "weight_folders" not in trace(backbone=HubBackboneConfig(weights="random"))


def test_differences_are_dotted_paths():
    before = {"train": {"lr": 1, "steps": 5}, "task": {"name": "s2t"}}
    after = {"train": {"lr": 2, "steps": 5}, "task": {"name": "s2t", "beam": 4}}
    assert lineage.differences(before, after) == ["train.lr", "task.beam"]
