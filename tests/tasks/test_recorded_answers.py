"""Recorded answers in Echo training: own text and units beside pseudo-labels, with a weight."""

import json
import shutil

import pytest
import torch
from echo_home import recipe_at, words_at, write_home

from echox.core import checkpoint
from echox.core.errors import ManifestError
from echox.criteria.base import CRITERIA
from echox.data.manifest import read_manifests, write_manifest
from echox.models.speech_llm import IGNORE
from echox.pipeline.run import run_recipe
from echox.pipeline.tasks import stage_task
from echox_cli import prepare, train

CPU = torch.device("cpu")
CUTS = ("echo.task.segments.rule.threshold=-1.0", "echo.task.segments.rule.window=2")
RECORDED = ("echo.task.recorded.share=1.0", "echo.task.recorded.weight=3.0")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    write_home(folder)
    assert (
        prepare.main(
            [
                "units",
                str(folder / "questions.jsonl"),
                "codec=kmeans",
                "codec.folder=random",
                f"cache_dir={folder / 'cache'}",
            ]
        )
        == 0
    )
    encoded = {row.id: row for row in read_manifests([str(folder / "questions.units.jsonl")])}
    write_manifest(
        folder / "mixed.jsonl",
        [encoded.get(row.id, row) for row in read_manifests([str(folder / "questions.jsonl")])],
    )
    return folder


def with_units(home):
    return f"echo.task.data.train=[{home / 'mixed.jsonl'}]"


@pytest.fixture(scope="module")
def stage(home):
    """Builds the Echo stage, prepared, in eval mode."""
    stages = {}

    def build(*more):
        if more not in stages:
            task = stage_task(recipe_at(home, with_units(home), *more), "echo", CPU)
            torch.manual_seed(0)
            model = task.build()
            task.prepare(model)
            stages[more] = task, model.eval()
        return stages[more]

    return build


def examples_of(task, split="train"):
    examples = task.examples(split)
    return {examples[index].conversation.row_id: examples[index] for index in range(len(examples))}


def recordings(home):
    rows = read_manifests([str(home / "mixed.jsonl")])
    return {row.id: list(row.answer.units) for row in rows if row.answer.units}


@pytest.mark.parametrize("cuts", [(), CUTS], ids=["whole", "segments"])
def test_rows_with_units_are_learned_as_recorded_and_the_others_as_before(home, stage, cuts):
    task, model = stage(*RECORDED, *cuts)
    examples, before, units = examples_of(task), examples_of(stage(*cuts)[0]), recordings(home)
    assert sorted(units) == ["row-1", "row-3"]
    assert task.recorded.utterances.keys() == units.keys()
    for name, row in examples.items():
        if name not in units:
            assert row == before[name]
            continue
        decoder = model.voice.decoder
        assert (
            row.text == row.conversation.target[:-1]
            and row.ends == before[name].ends
            and row.weight == 3.0
        )
        unit_tokens = [
            token for target in row.targets for token in target if token < decoder.unit_vocab_size
        ]
        assert task.codec.units_of(unit_tokens) == units[name]
        for (start, end), target in zip(row.spans, row.targets):
            assert (
                target.count(decoder.next_id) == end - start
                and target[-1] == decoder.end_id
                and target.count(decoder.end_id) == 1
            )
    assert examples_of(task, "valid") == examples_of(stage(*cuts)[0], "valid"), (
        "validation keeps its pseudo-labels"
    )
    segments = max(len(row.targets) for name, row in examples.items() if name in units)
    assert cuts == () or segments > 1


@torch.no_grad()
def test_their_units_have_the_configured_weight(home, stage):
    task, model = stage(*RECORDED)
    examples = task.examples("train")
    batch = task.collate([examples[index] for index in range(len(examples))])
    assert batch.weights.tolist() == [1.0, 3.0, 1.0, 3.0]
    outputs = task.forward(model, batch)
    loss = CRITERIA.build(CRITERIA.parse({"name": "echo", "impl": "reference"}))(outputs, batch)
    costs = torch.nn.functional.cross_entropy(
        model.voice.decoder.logits(outputs.unit_states), outputs.unit_labels, reduction="none"
    )
    weights = torch.cat(
        [
            torch.full((int((target != IGNORE).sum()),), weight)
            for target, weight in zip(batch.targets, (1.0, 3.0, 1.0, 3.0))
        ]
    )
    total, count = loss.parts["units"]
    assert float(total / count) == pytest.approx(
        float((costs * weights).sum() / weights.sum()), rel=1e-5
    )
    assert float(total / count) != pytest.approx(float(costs.mean()), rel=1e-4)
    unweighted, _ = stage("echo.task.recorded.share=1.0")
    examples = unweighted.examples("train")
    assert unweighted.collate([examples[index] for index in range(2)]).weights is None


def test_a_share_of_them_is_drawn(stage):
    drawn = {
        share: set(stage(f"echo.task.recorded.share={share}", "seed=2")[0].recorded.utterances)
        for share in (0.6, 1.0)
    }
    assert drawn[0.6] < drawn[1.0] and len(drawn[0.6]) == 1


def test_it_trains_and_says_so(home, tmp_path, capsys):
    fingerprints = {}
    for name, more in (("pseudo", ()), ("recorded", RECORDED)):
        shutil.copytree(home / "run", tmp_path / name)
        run_recipe(recipe_at(home, with_units(home), *more, f"run_dir={tmp_path / name}"))
        fingerprints[name] = checkpoint.fingerprint(tmp_path / name / "echo" / "final")
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "echo" / "metrics.jsonl").read_text().splitlines()
        ]
        assert all(line["units"] > 0 for line in lines)
    assert fingerprints["pseudo"] != fingerprints["recorded"]
    assert (
        "2 of 4 training answers are learned as they were recorded, a unit with weight 3"
        in capsys.readouterr().err
    )


def test_what_does_not_fit_is_one_sentence(home, tmp_path, capsys):
    words = ["recipe=echo_tiny", *words_at(home, "echo.task.recorded={}")]
    assert train.main([*words, f"run_dir={tmp_path}", "echo.task.online={}"]) == 2
    assert "recorded answers stand beside cached pseudo-labels" in capsys.readouterr().err
    assert train.main([*words, "echo.task.recorded.share=0"]) == 2
    assert "recorded.share must be above 0 and at most 1" in capsys.readouterr().err
    task = stage_task(recipe_at(home, "echo.task.recorded={}"), "echo", CPU)
    with pytest.raises(
        ManifestError,
        match="has units on its assistant turn; write them with 'echox-prepare units'",
    ):
        task.prepare(task.build())
    task = stage_task(
        recipe_at(home, with_units(home), "echo.task.recorded.share=1e-6"), "echo", CPU
    )
    with pytest.raises(ManifestError, match="draws none of the answers with units"):
        task.prepare(task.build())
