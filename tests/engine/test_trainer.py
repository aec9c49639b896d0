"""A run that is stopped in any way and resumed ends where an uninterrupted one does."""

import json
import shutil
import signal

import pytest
import torch
from full_disk import fill_disk

from echox.core import checkpoint
from echox.core.errors import CheckpointError, DiskError, TrainingError
from echox.engine.distribution import World
from echox.engine.interruption import Interrupted
from echox.engine.setup import Setup

from .toy import NextLetter, toy_config, toy_task, train_toy


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The final checkpoint of a run of 12 steps."""
    torch.set_num_threads(1)
    return train_toy(tmp_path_factory.mktemp("uninterrupted"))


def metric_lines(run_dir):
    """The lines of metrics.jsonl without figures that depend on time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


def test_a_run_interrupted_three_times_ends_with_the_same_bits(tmp_path, uninterrupted):
    for at in (7, 10, 1):
        with pytest.raises(Interrupted) as stopped:
            train_toy(tmp_path, toy_task(signal_at={at: signal.SIGTERM}))
        assert stopped.value.code == 128 + signal.SIGTERM
    final = train_toy(tmp_path)
    assert checkpoint.fingerprint(final) == checkpoint.fingerprint(uninterrupted)


def test_a_run_resumed_after_sigkill_ends_with_the_same_bits(tmp_path, uninterrupted, run_toy):
    killed = run_toy(tmp_path, "--signal", signal.SIGKILL, "--at", 15)
    assert killed.returncode == -signal.SIGKILL
    assert [f.name for f in checkpoint.step_folders(tmp_path / "checkpoints")] == ["step_000000005"]
    final = train_toy(tmp_path)
    assert checkpoint.fingerprint(final) == checkpoint.fingerprint(uninterrupted)
    assert metric_lines(tmp_path) == metric_lines(uninterrupted.parent)


def test_sigterm_saves_and_exits_with_its_number(tmp_path, run_toy):
    stopped = run_toy(tmp_path, "--signal", int(signal.SIGTERM), "--at", 5)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "stopped and saved after step 3" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert next(checkpoint.newest_first(tmp_path / "checkpoints")).meta["step"] == 3


@pytest.mark.parametrize("name", ["step_000000010", "final", "metrics.jsonl"])
def test_a_run_on_a_full_disk_goes_on_to_the_same_bits(tmp_path, monkeypatch, uninterrupted, name):
    metric_writes = []

    def holds(path):
        # The checkpoint after step 5 and the first metrics are written yet.
        is_metrics = path.name == name and path.exists()
        metric_writes.extend([path] * is_metrics)
        return len(metric_writes) > 4 if is_metrics else path.parent.name.startswith(f".{name}.")

    with monkeypatch.context() as patched:
        fill_disk(patched, holds=holds)
        with pytest.raises(DiskError, match="No space left on device .* needed"):
            train_toy(tmp_path)
    assert not list(tmp_path.rglob(".*.partial")) and not (tmp_path / "final").exists()
    final = train_toy(tmp_path)
    assert checkpoint.fingerprint(final) == checkpoint.fingerprint(uninterrupted)
    assert metric_lines(tmp_path) == metric_lines(uninterrupted.parent)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, uninterrupted, caplog):
    with pytest.raises(Interrupted):
        train_toy(tmp_path, toy_task(signal_at={24: signal.SIGTERM}), steps=12)
    newest = checkpoint.step_folders(tmp_path / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"cut")
    final = train_toy(tmp_path)
    assert "is damaged: state.pt has 3 bytes" in caplog.text
    assert checkpoint.fingerprint(final) == checkpoint.fingerprint(uninterrupted)


def altered(folder, change):
    """Write a step checkpoint again, whose sizes and hashes fit what `change` made of it."""
    saved = checkpoint.load(folder)
    meta = {key: value for key, value in saved.meta.items() if key not in ("format", "files")}
    change(saved.tensors, saved.state)
    checkpoint.save(folder, saved.tensors, meta, saved.state)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was stopped after step 12, with checkpoints of steps 10 and 12."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.raises(Interrupted):
        train_toy(folder, toy_task(signal_at={24: signal.SIGTERM}), steps=14)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, state: tensors.update({"output.bias": torch.zeros(3)}),
        lambda tensors, state: tensors.pop("output.bias"),
        lambda tensors, state: state.pop("optimizer"),
        lambda tensors, state: state.update(optimizer=3),
        lambda tensors, state: state["optimizer"]["output.bias"].update(exp_avg=torch.zeros(3)),
        lambda tensors, state: state["optimizer"]["output.bias"].pop("exp_avg_sq"),
        lambda tensors, state: state.update(position={"epoch": 0, "index": 1 << 50}),
        lambda tensors, state: state.update(position={"epoch": -1, "index": 0}),
        lambda tensors, state: state.update(position=[]),
        lambda tensors, state: state.update(elapsed_s="long"),
        lambda tensors, state: state.update(scores=3),
        lambda tensors, state: state.update(random=[3]),
        lambda tensors, state: state["random"][0].update(torch=torch.zeros(3)),
        lambda tensors, state: state["random"][0]["numpy"].update(keys=torch.zeros(2)),
    ],
)
def test_what_does_not_fit_is_named_and_the_checkpoint_before_is_used(
    tmp_path, half, caplog, capsys, change
):
    shutil.copytree(half / "checkpoints", tmp_path / "checkpoints")
    newest = checkpoint.step_folder(tmp_path / "checkpoints", 12)
    altered(newest, change)
    train_toy(tmp_path, steps=14, validate_every=None)
    assert str(newest) in caplog.text and "trying the one before it" in caplog.text
    assert "resuming after step 10" in capsys.readouterr().err


def test_nothing_is_trained_over_checkpoints_that_are_all_damaged(tmp_path, half):
    shutil.copytree(half / "checkpoints", tmp_path / "checkpoints")
    for folder in checkpoint.step_folders(tmp_path / "checkpoints"):
        (folder / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .*delete that folder"):
        train_toy(tmp_path, steps=14)


def test_a_resume_under_other_settings_is_refused_or_recorded(tmp_path, half):
    shutil.copytree(half / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"other settings \(steps\); delete .*checkpoints to"):
        train_toy(tmp_path, steps=16)
    with pytest.raises(CheckpointError, match="has done all 12 steps, so none would be trained"):
        train_toy(tmp_path, steps=12, takes_new_settings=True)
    final = train_toy(tmp_path, steps=13, takes_new_settings=True)
    first = {"after_step": 12, "changes": {"steps": {"before": 14, "after": 13}}}
    assert checkpoint.verify(final)["lineage"]["settings"] == [first]


def test_a_record_of_other_settings_is_carried_on(tmp_path, half):
    shutil.copytree(half / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(Interrupted):
        task = toy_task(signal_at={1: signal.SIGTERM})
        train_toy(tmp_path, task, steps=16, takes_new_settings=True)
    final = train_toy(tmp_path, steps=17, takes_new_settings=True)
    settings = checkpoint.verify(final)["lineage"]["settings"]
    assert [(item["after_step"], item["changes"]["steps"]["after"]) for item in settings] == [
        (12, 16),
        (13, 17),
    ]


def test_a_finished_stage_is_not_trained_again(tmp_path, uninterrupted, capsys):
    before = (uninterrupted / "meta.json").stat().st_mtime_ns
    assert train_toy(uninterrupted.parent, steps=20) == uninterrupted
    assert (uninterrupted / "meta.json").stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().err


def test_the_final_checkpoint_records_its_lineage(uninterrupted):
    assert sorted(path.name for path in uninterrupted.iterdir()) == [
        "meta.json",
        "model.safetensors",
    ]
    meta = checkpoint.verify(uninterrupted)
    assert (meta["stage"], meta["step"], meta["recipe"]) == ("toy", 12, {"steps": 12})
    assert meta["lineage"]["data"] == {"letters": "letters-1"}
    assert meta["lineage"]["versions"]["torch"] and meta["metrics"]["rows"] == 8.0


def test_other_data_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        train_toy(tmp_path, toy_task(signal_at={3: signal.SIGTERM}))
    with pytest.raises(CheckpointError, match="trained with other data .letters changed"):
        train_toy(tmp_path, toy_task(fingerprint="letters-2"))


def test_a_loss_that_is_not_finite_names_its_rows(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+, on rows .*\brow-3\b"):
        train_toy(tmp_path, toy_task(poisoned_row="row-3"))


def test_no_examples_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="no training examples"):
        train_toy(tmp_path, toy_task(rows=0))


def test_a_spent_time_budget_ends_the_stage(tmp_path):
    final = train_toy(tmp_path, time_budget_s=1e-6, steps=1000)
    assert checkpoint.verify(final)["step"] < 1000


def test_metrics_and_old_checkpoints(uninterrupted):
    lines = metric_lines(uninterrupted.parent)
    assert [line["step"] for line in lines if line["split"] == "valid"] == [4, 8, 12]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 5, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"] and 0 <= lines[-1]["accuracy"] <= 1
    assert [f.name for f in checkpoint.step_folders(uninterrupted.parent / "checkpoints")] == [
        "step_000000005",
        "step_000000010",
    ]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, run_toy):
    """Runs of two steps by two processes, with smaller batches of their own or shared batches."""
    folder = tmp_path_factory.mktemp("two_ranks")
    options = ["--dropout", 0, "--steps", 2, "--save-every", 1, "--no-clip"]
    own, shared = (
        [folder / "own", *options, "--accumulation", 2],
        [folder / "shared", *options, "--accumulation", 4, "--split-batches"],
    )
    process = run_toy(*own, "then", *shared, ranks=2)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("batches", ["own", "shared"])
def test_two_ranks_have_the_gradients_of_one(tmp_path, two_ranks, batches):
    # Sharing batches, they take as many as one alone; the rows have different lengths, so the
    # shares do too.
    train_toy(
        tmp_path, toy_task(dropout=0.0), steps=2, save_every=1, grad_clip=None, accumulation=4
    )
    one, two = (
        checkpoint.load(run / "checkpoints" / "step_000000001").state
        for run in (tmp_path, two_ranks / batches)
    )
    assert two["position"] == one["position"]
    assert two["optimizer"].keys() == one["optimizer"].keys()
    for name, state in one["optimizer"].items():
        # After one step, AdamW's mean is (1 - beta1) times the gradient.
        torch.testing.assert_close(
            two["optimizer"][name]["exp_avg"] / 0.1, state["exp_avg"] / 0.1, atol=1e-6, rtol=0
        )


def test_a_batch_that_is_too_small_to_share_is_refused(monkeypatch):
    monkeypatch.setattr(World, "barrier", lambda world: None)
    world = World(rank=0, size=5)
    with pytest.raises(TrainingError, match="5 processes cannot share a batch of 4; start fewer"):
        Setup(
            toy_task(),
            NextLetter(),
            toy_config(split_batches=True),
            seed=1,
            device=torch.device("cpu"),
            world=world,
        )
