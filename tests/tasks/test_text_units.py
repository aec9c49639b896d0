"""T2C: which utterances are learned."""

import torch

from echox import plugins
from echox.codecs.base import CODECS
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.models.unit_decoder import UnitDecoderConfig
from echox.tasks.base import Parts, StageContext
from echox.tasks.text_units import TextUnitsTask, TextUnitsTaskConfig
from tiny_run import TinyRecipe


def test_rows_are_drawn_by_the_seed_and_validation_stays_whole(tmp_path):
    plugins.discover()
    recipe = TinyRecipe()
    codec = CODECS.build(recipe.codec)
    units = tuple(range(1, 9)) * 3
    rows = [Row(f"r{n}", (Item(Role.ASSISTANT, "Yes.", units=units),), {"codec": codec.fingerprint()}) for n in range(12)]
    write_manifest(tmp_path / "m.jsonl", rows)

    def learned(seed, wanted):
        config = TextUnitsTaskConfig(
            train=[str(tmp_path / "m.jsonl")],
            valid=[str(tmp_path / "m.jsonl")],
            rows=wanted,
            spelling_channels=0,
            decoder=UnitDecoderConfig(layers=1, width=32, heads=2, feed_forward=32, monotonic=False),
        )
        task = TextUnitsTask(config, StageContext(Parts(recipe.encoder, recipe.backbone, recipe.codec), seed, tmp_path / "cache"))
        with torch.random.fork_rng():
            task.prepare(task.build())
        return [row.row_id for row in task.splits["train"]], len(task.splits["valid"])

    drawn, valid = learned(1, 5)
    assert len(set(drawn)) == 5 and valid == 12
    assert drawn == learned(1, 5)[0] != learned(2, 5)[0]
    assert learned(1, None) == ([f"r{n}" for n in range(12)], 12) == learned(1, 40)
