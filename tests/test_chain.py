"""The smoke test: every stage of echo_tiny, one after the other, on speech made on the spot."""

import json
import shutil

import pytest

from echox import chain, checkpoint, number_format
from echox.chain import run_recipe
from echox.engine.own_process import in_own_process
from echox.errors import CheckpointError
from echox.plugins import discover
from echox.recipe import STAGES, load_recipe


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of echo_tiny."""
    folder = tmp_path_factory.mktemp("tiny")
    discover()
    overrides = [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}", "device=cpu", *(f"{stage}.train.save_every=6" for stage in STAGES)]
    run_recipe(load_recipe("echo_tiny", overrides))
    return folder, overrides


def test_every_stage_leaves_a_checkpoint_that_knows_its_parents(tiny):
    run = tiny[0] / "run"
    prints = {stage: checkpoint.fingerprint(run / stage / "final") for stage in STAGES}
    lineage = {stage: checkpoint.verify(run / stage / "final")["lineage"] for stage in prints}
    assert lineage["s2t"]["parents"] == {"align": prints["align"]}
    assert lineage["echo"]["parents"] == {"s2t": prints["s2t"], "t2c": prints["t2c"]}
    assert lineage["t2c"]["data"]["codec"] == lineage["echo"]["data"]["codec"]
    assert checkpoint.verify(run / "echo" / "final")["recipe"]["name"] == "echo_tiny"
    kept = json.loads((run / number_format.FILE).read_text())
    assert [lineage[stage]["number_format"] for stage in prints] == [kept] * len(prints)


def test_every_stage_learns(tiny):
    for stage in STAGES:
        lines = [json.loads(line) for line in (tiny[0] / "run" / stage / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["split"] == "train"]
        assert losses[-1] < losses[0], stage


def test_a_finished_run_is_left_alone(tiny, capsys):
    before = checkpoint.fingerprint(tiny[0] / "run" / "echo" / "final")
    run_recipe(load_recipe("echo_tiny", tiny[1]))
    assert "finished already" in "".join(capsys.readouterr())
    assert checkpoint.fingerprint(tiny[0] / "run" / "echo" / "final") == before


def test_steps_in_processes_of_their_own_come_to_the_same_bits_and_two_share_a_stage(tiny, tmp_path, monkeypatch, capfd):
    steps = []
    monkeypatch.setattr(chain, "in_own_process", lambda *work, ranks: (steps.append((work[-1], ranks)), in_own_process(*work, ranks=ranks)))
    apart = [*tiny[1], f"run_dir={tmp_path}", "own_processes=true", "s2t.cpu_processes=2", "stages=[align,s2t]", "report=null"]
    run_recipe(load_recipe("echo_tiny", apart))
    assert steps == [("corpus", 1), ("align data", 1), ("align", 1), ("s2t data", 1), ("s2t", 2)]
    assert "warning" not in capfd.readouterr().err.lower()
    assert checkpoint.fingerprint(tmp_path / "align" / "final") == checkpoint.fingerprint(tiny[0] / "run" / "align" / "final")
    state, alone = (checkpoint.load(run / "s2t" / "checkpoints" / "step_000000006").state for run in (tmp_path, tiny[0] / "run"))
    assert len(state["random"]) == 2
    assert state["position"] == alone["position"], "a step takes as many rows as that of one process"
    with pytest.raises(CheckpointError, match="train the stage 'align' first"):
        run_recipe(load_recipe("echo_tiny", [*apart, f"run_dir={tmp_path / 'none'}", "stage=s2t"]))


def test_a_stage_without_its_parents_says_which_come_first(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="train the stage 'align' first"):
        run_recipe(load_recipe("echo_tiny", [*tiny[1], f"run_dir={tmp_path}", "stage=s2t"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_killed_half_way_ends_with_the_same_bits(tiny, stage):
    folder = tiny[0] / "run" / stage
    before = checkpoint.fingerprint(folder / "final")
    shutil.rmtree(folder / "final")
    for late in checkpoint.step_folders(folder / "checkpoints")[1:]:
        shutil.rmtree(late)
    assert [path.name for path in checkpoint.step_folders(folder / "checkpoints")] == ["step_000000006"]
    run_recipe(load_recipe("echo_tiny", [*tiny[1], f"stage={stage}"]))
    assert checkpoint.fingerprint(folder / "final") == before
