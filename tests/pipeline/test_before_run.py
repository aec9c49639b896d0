"""What can be known before a run begins is said before it does anything."""

import re
from pathlib import Path

import pytest
import torch

from echox.codecs.base import CODECS
from echox.core import checkpoint
from echox.core.errors import AssetError, CheckpointError, ConfigError
from echox.criteria.base import CRITERIA, Criterion
from echox.pipeline import run as pipeline_run
from echox.pipeline.criterion_fit import criterion_misfit_reason
from echox.pipeline.dry_run import missing_files, stage_sizes
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import from_dict, load_recipe, to_dict
from echox.pipeline.run import run_recipe
from echox.pipeline.tasks import recorded_recipe, stage_task
from echox.tasks.base import TASKS

CPU = torch.device("cpu")


@pytest.fixture
def idle(workspace, monkeypatch):
    """A working folder in which no step of a run may begin."""
    monkeypatch.setattr(pipeline_run, "run_step", lambda *_: pytest.fail("work was begun"))
    discover()
    return workspace


def recipe_of(name, *overrides):
    return load_recipe(name, ["device=cpu", *overrides])


def test_a_criterion_that_cannot_read_the_outputs_of_its_task_is_refused(idle):
    sentence = (
        r"^align\.criterion does not fit align\.task: UnitsCriterion reads unit_states, "
        r"unit_labels, unit_head, which AlignmentTask does not return; "
        r"criteria that fit it are alignment"
    )
    with pytest.raises(ConfigError, match=sentence):
        run_recipe(recipe_of("echo_tiny", "align.criterion=t2c"))
    with pytest.raises(ConfigError, match="s2t.criterion does not fit"):
        run_recipe(recipe_of("echo_tiny", "s2t.criterion=echo", "dry_run=true"))
    # A stage that is not trained may be unfinished work.
    recipe_of("echo_tiny", "align.criterion=t2c", "stage=s2t").check()


def test_a_criterion_fits_what_has_more_than_it_reads(idle):
    def reason(task, criterion):
        return criterion_misfit_reason(
            TASKS[task].implementation, CRITERIA[criterion].implementation
        )

    # The alignment loss reads a part of what S2T returns, and unit losses a part of Echo's.
    assert reason("s2t", "alignment") is None and reason("echo", "t2c") is None
    assert "criteria that fit it are" in reason("t2c", "s2t")


def test_of_a_criterion_without_types_nothing_is_known(idle):
    class Untyped(Criterion):
        def forward(self, outputs, batch):
            raise NotImplementedError

    class OfAbsentType(Criterion):
        def forward(self, outputs: "Absent", batch):  # noqa: F821
            raise NotImplementedError

    task = TASKS["t2c"].implementation
    assert criterion_misfit_reason(task, Untyped) is None
    assert criterion_misfit_reason(task, OfAbsentType) is None


def test_a_missing_parent_is_said_before_the_stages_that_could_be_trained(idle):
    with pytest.raises(CheckpointError, match="runs/echo_tiny/s2t/final does not exist: train"):
        run_recipe(recipe_of("echo_tiny", "only=[t2c,echo]"))
    assert not Path("runs").exists()


def test_missing_files_are_said_before_the_first_step(idle):
    recipe = recipe_of(
        "turn_taking",
        "encoder.weights=random",
        "turn_taking.task.data.train=[turns.jsonl]",
        "turn_taking.task.data.valid=[held_out.jsonl]",
    )
    with pytest.raises(
        AssetError,
        match=r"^turn_taking cannot begin, because of missing files: turns.jsonl \(manifest\), "
        r"held_out.jsonl \(manifest\); put them there",
    ):
        run_recipe(recipe)


def test_a_stage_that_cannot_build_on_another_is_refused(idle):
    recipe = recipe_of("echo_tiny", "echo.after={s2t: align}")
    with pytest.raises(ConfigError, match="a stage needs a SpeechLLM"):
        run_recipe(recipe)


def finish_stage(recipe, stage):
    folder = Path(recipe.run_dir) / stage / "final"
    meta = {"stage": stage, "recipe": to_dict(recipe), "lineage": {"parents": {}, "data": {}}}
    checkpoint.save(folder, {"w": torch.zeros(2)}, meta)
    return folder


@pytest.fixture
def other_run(idle):
    """The recipe of another run, whose S2T and T2C are finished."""
    recipe = recipe_of("echo_tiny", "run_dir=runs/other", "codec.folder=random")
    for stage in ("s2t", "t2c"):
        finish_stage(recipe, stage)
    return recipe


NEW = ["run_dir=runs/new", "codec.folder=random", "only=[echo]"]
AFTER = "echo.after={s2t: runs/other/s2t, t2c: runs/other/t2c/final}"


def test_a_stage_of_another_run_is_a_parent_by_its_folder(other_run, monkeypatch):
    recipe, steps = recipe_of("echo_tiny", *NEW, AFTER), []
    monkeypatch.setattr(pipeline_run, "run_step", lambda recipe, step: steps.append(step.name))
    run_recipe(recipe)
    assert "echo" in steps
    assert stage_task(recipe, "echo", CPU).context.parents == {
        "s2t": Path("runs/other/s2t/final"),
        "t2c": Path("runs/other/t2c/final"),
    }
    assert not [path for path in missing_files(recipe) if "checkpoint" in path]
    # The shapes of the other run's stages are those of the recipe that they record.
    (size,) = stage_sizes(recipe)
    assert size.part("denoising adapter").trained
    # A checkpoint says how it is read by itself: the other run may be gone by then.
    plans = recorded_recipe(recipe)["stages"]
    assert plans["echo"]["after"]["s2t"] == "runs/other/s2t"
    assert plans["runs/other/s2t"]["after"] == {"align": "runs/other/align"}
    assert plans["runs/other/align"]["task"]["name"] == "align"
    assert from_dict(recorded_recipe(recipe)).planned == ["echo"]


def test_a_parent_of_another_run_that_was_trained_again_makes_a_stage_stale(other_run):
    recipe = recipe_of("echo_tiny", *NEW, AFTER)
    meta = {
        "stage": "echo",
        "recipe": to_dict(recipe),
        "lineage": {"parents": {"s2t": "of other weights"}, "data": {}},
    }
    checkpoint.save(Path("runs/new/echo/final"), {"w": torch.zeros(2)}, meta)
    with pytest.raises(CheckpointError, match="runs/other/s2t was trained again since"):
        run_recipe(recipe)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["encoder.random_dim=32"],
            "echo builds on runs/other/s2t/final, which was trained with other parts: "
            "encoder.random_dim is 64 there and 32 here; set encoder.random_dim as it is there",
        ),
        (["backbone=spoken_style"], "backbone is 'hub' there and 'spoken_style' here"),
        (["echo.after={s2t: runs/none/s2t}"], "runs/none/s2t/final is not a checkpoint"),
    ],
)
def test_a_stage_of_another_run_with_other_parts_is_refused(other_run, overrides, sentence):
    recipe = recipe_of("echo_tiny", *NEW, AFTER, *overrides)
    with pytest.raises(CheckpointError, match=re.escape(sentence)):
        run_recipe(recipe)


def test_what_only_finished_stages_read_may_be_gone(idle, monkeypatch):
    recipe = recipe_of(
        "turn_taking", "encoder.weights=random", "turn_taking.task.data.train=[gone.jsonl]"
    )
    finish_stage(recipe, "turn_taking")
    steps = []
    monkeypatch.setattr(pipeline_run, "run_step", lambda recipe, step: steps.append(step.name))
    run_recipe(recipe)
    assert steps == ["turn_taking"]


@pytest.mark.parametrize("dry", ["dry_run=false", "dry_run=true"])
def test_a_codec_folder_of_other_sizes_is_refused_before_the_first_step(idle, monkeypatch, dry):
    recipe = recipe_of("echo_tiny", "codec.folder=random", dry)

    def refuse(config):
        raise ConfigError(f"{config.folder} has other units")

    implementation = CODECS.entry_of(recipe.codec).implementation
    monkeypatch.setattr(implementation, "check_folder", refuse)
    with pytest.raises(ConfigError, match="random has other units"):
        run_recipe(recipe)
