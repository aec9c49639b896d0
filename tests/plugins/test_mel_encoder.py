"""The worked example, loaded from a folder as a stranger's plugin would be, and trained."""

import json
from pathlib import Path

import echox_plugins
import numpy as np
import pytest
import soundfile
import torch

from echox.core import checkpoint
from echox.criteria.base import CRITERIA
from echox.encoders.base import ENCODERS
from echox.engine.trainer import train
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe, to_dict
from echox.tasks.base import TASKS, Parts, StageContext

RECIPE = """
    doc: The align stage on a plugin's features.
    defaults:
      - _stages
      - encoder: my_mel
      - backbone: hub
      - codec: kmeans
      - _self_
    only: [align]
    backbone: {weights: random}
    codec: {folder: random}
    stages:
      align:
        task:
          data: {train: [clips/train.jsonl], valid: [clips/train.jsonl]}
        train: {steps: 3, batch_size: 2, validate_every: null}
"""


@pytest.fixture
def clips(workspace):
    """A manifest of noises that are said to be words."""
    folder = workspace / "clips"
    folder.mkdir()
    noise = np.random.default_rng(0)
    rows = []
    for number, words in enumerate(("red", "green", "blue", "grey")):
        soundfile.write(folder / f"{number}.wav", 0.1 * noise.standard_normal(16_000), 16_000)
        turns = [
            {"from": "user", "value": "", "audio": f"{number}.wav"},
            {"from": "assistant", "value": "Yes.", "transcription": words},
        ]
        rows.append(json.dumps({"id": f"row{number}", "conversations": turns}))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_it_is_loaded_from_a_folder_and_trained(clips, write, workspace):
    source = (Path(echox_plugins.__file__).parent / "mel_encoder.py").read_text(encoding="utf-8")
    write("lab/my_mel_encoder.py", source.replace('"mel"', '"my_mel"'))
    write("recipes/mine.yaml", RECIPE)
    assert Path("lab/my_mel_encoder.py") in discover(["lab"]).files
    recipe = load_recipe("mine", ["encoder.bins=40"])

    context = StageContext(
        parts=Parts(encoder=recipe.encoder, backbone=recipe.backbone, codec=recipe.codec),
        seed=1,
        cache_dir=workspace / "cache",
    )
    task, criterion = (
        TASKS.build(recipe.plan("align").task, context),
        CRITERIA.build(recipe.plan("align").criterion),
    )
    final = train(
        task,
        criterion,
        recipe.plan("align").train,
        run_dir=workspace / "run",
        stage="align",
        seed=1,
        device=torch.device("cpu"),
        recipe_dict=to_dict(recipe),
    )

    stored = checkpoint.verify(final)["recipe"]["encoder"]
    assert stored == {"name": "my_mel", "bins": 40}
    assert ENCODERS.build(ENCODERS.parse(stored)).dim == 40
