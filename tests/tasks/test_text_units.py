"""T2C: which utterances are learned."""

import pytest
import torch
from tiny_run import TinyRecipe

from echox.codecs.base import CODECS
from echox.core.errors import ConfigError, ManifestError
from echox.data.manifest import Item, Role, Row, read_manifest, write_manifest
from echox.models.unit_decoder import UnitDecoderConfig
from echox.pipeline import plugins
from echox.tasks.base import Parts, StageContext
from echox.tasks.t2c.task import TextUnitsTask, TextUnitsTaskConfig

SMALL = {"layers": 1, "width": 32, "heads": 2, "feed_forward": 32}


@pytest.fixture
def prepared(tmp_path):
    """A prepared task on twelve rows, of which two are answers: (seed, settings) -> task."""
    plugins.discover()
    recipe = TinyRecipe()
    codec = CODECS.build(recipe.codec)
    units = tuple(range(1, 9)) * 3
    kinds = ["answer", "answer", *["sentence"] * 10]
    extra = {"codec": codec.fingerprint()}
    rows = [
        Row(f"r{n}", (Item(Role.ASSISTANT, "Yes.", units=units),), {**extra, "kind": kind})
        for n, kind in enumerate(kinds)
    ]
    write_manifest(tmp_path / "m.jsonl", rows)

    def prepare(seed, **settings):
        defaults = {
            "valid": [str(tmp_path / "m.jsonl")],
            "decoder": UnitDecoderConfig(**SMALL, monotonic=False),
        }
        config = TextUnitsTaskConfig(
            train=[str(tmp_path / "m.jsonl")], spelling_channels=0, **{**defaults, **settings}
        )
        task = TextUnitsTask(
            config,
            StageContext(
                Parts(recipe.encoder, recipe.backbone, recipe.codec), seed, tmp_path / "cache"
            ),
        )
        with torch.random.fork_rng():
            task.prepare(task.build())
        return task

    return prepare


def test_rows_of_a_kind_are_repeated_in_an_epoch(prepared):
    task = prepared(1, repeat={"answer": 3})
    ids = [task.examples("train")[index].row_id for index in range(len(task.examples("train")))]
    assert {row_id: ids.count(row_id) for row_id in ids} == {
        f"r{n}": 3 if n < 2 else 1 for n in range(12)
    }
    assert len(task.examples("valid")) == 12
    with pytest.raises(ConfigError, match="repeat.answer is 0"):
        prepared(1, repeat={"answer": 0})


def test_units_that_the_codec_does_not_have_are_refused(prepared, tmp_path):
    manifest = tmp_path / "m.jsonl"
    (row, *_) = read_manifest(manifest).rows
    codec = CODECS.build(TinyRecipe().codec)
    beyond = Item(Role.ASSISTANT, "Yes.", units=(codec.vocab_size, 1, 2, 3, 4, 5, 6, 7))
    write_manifest(manifest, [Row("other", (beyond,), row.extra)])
    sentence = f"row 'other' has 8 units from 1 to {codec.vocab_size}, but the codec has units"
    with pytest.raises(ManifestError, match=sentence):
        prepared(1)


def test_rows_are_drawn_by_the_seed_from_the_training_split_alone(prepared):
    def row_ids(seed, count):
        task = prepared(seed, rows=count)
        return [row.row_id for row in task.splits["train"]], len(task.splits["valid"])

    drawn, valid = row_ids(1, 5)
    assert len(set(drawn)) == 5 and valid == 12
    assert drawn == row_ids(1, 5)[0] != row_ids(2, 5)[0]
    assert row_ids(1, None) == ([f"r{n}" for n in range(12)], 12) == row_ids(1, 40)


def test_two_utterances_of_one_id_are_aligned_each_by_itself(prepared, tmp_path):
    (tmp_path / "valid.jsonl").write_text((tmp_path / "m.jsonl").read_text().replace("Yes.", "No."))
    splits = prepared(
        1, valid=[str(tmp_path / "valid.jsonl")], decoder=UnitDecoderConfig(**SMALL)
    ).splits
    train, valid = ({row.row_id: row for row in splits[split]} for split in ("train", "valid"))
    assert train.keys() == valid.keys()
    for row_id in train:
        yes, no = train[row_id], valid[row_id]
        assert yes.units == no.units and len(yes.ids) == 4 and len(no.ids) == 3
        assert len(yes.target) == len(no.target) + 1  # a mark ends each token
