"""The time that is left in all, from what steps cost on this machine."""

import time

import pytest

from echox.core.progress import Bar, skip, step_of
from echox.core.step_costs import PlannedStep, StepCosts, clock_of


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def plan(steps=100.0, left=1.0):
    return [
        PlannedStep("data", "features"),
        PlannedStep("train", "training", steps, left),
        PlannedStep("report", "the report"),
    ]


def run(path, now, per_step=1.0, steps=100):
    """A run whose three steps take 20 + 30 s, `steps` times `per_step`, and 50 s."""
    lines = []
    for number, (label, units, unit_s, beside_s) in enumerate(
        [
            ("encoding", 10, 2.0, 30.0),
            ("training", steps, per_step, 0.0),
            ("answering", 5, 10.0, 0.0),
        ],
        1,
    ):
        clock = clock_of(path, plan(steps), number, done=["data", "train", "report"][: number - 1])
        lines.append(clock.title())
        with step_of(clock):
            now[0] += beside_s
            with Bar(label, units, shows=False) as bar:
                now[0] += units * unit_s
                bar.update(units)
    return lines


def test_the_first_run_knows_no_time_left_and_the_next_run_knows_it(tmp_path, now):
    first = run(tmp_path / "costs.json", now)
    assert first[0] == (
        "step 1 of 3: features; time left in all is not known: 3 steps never ran here before"
    )
    assert run(tmp_path / "costs.json", now) == [
        "step 1 of 3: features; about 3 min 20 s left in all",
        "step 2 of 3: training; about 2 min 30 s left in all",
        "step 3 of 3: the report; about 50 s left in all",
    ]


def test_more_work_takes_as_much_more(tmp_path, now):
    run(tmp_path / "costs.json", now)
    title = clock_of(tmp_path / "costs.json", plan(300.0), 2).title()
    assert title == "step 2 of 3: training; about 5 min 50 s left in all"
    title = clock_of(tmp_path / "costs.json", plan(100.0, left=0.25), 2).title()
    assert title == "step 2 of 3: training; about 1 min 15 s left in all"


def test_a_slow_step_makes_the_forecast_of_later_steps_longer(tmp_path, now):
    run(tmp_path / "costs.json", now)
    slow = run(tmp_path / "costs.json", now, per_step=4.0)
    # 420 s instead of 120 so far, with 5 s more on either side against hasty conclusions.
    assert slow[2] == "step 3 of 3: the report; about 2 min 50 s left in all"


def test_a_bar_shows_the_time_left_in_all(tmp_path, now):
    run(tmp_path / "costs.json", now)
    clock = clock_of(tmp_path / "costs.json", plan(), 1)
    # 8 of 10 units are to come, 30 s beside the bar of which 10 passed, and the two later steps.
    now[0] += 10
    assert clock.left_in_all("encoding", 0.0, 16.0) == "3 min 6 s in all"
    assert clock_of(tmp_path / "none.json", plan(), 1).left_in_all("encoding", 0.0, 16.0) == ""


@pytest.mark.parametrize("ran_before", [True, False])
def test_a_resumed_step_costs_as_much_as_an_uninterrupted_one(tmp_path, now, ran_before):
    path = tmp_path / "costs.json"
    if ran_before:
        run(path, now)
    with step_of(clock_of(path, plan(left=0.2), 2)):
        with Bar("training", 100, initial=80, shows=False) as bar:
            now[0] += 40
            bar.update(20)
    assert StepCosts(path).steps["train"].seconds == pytest.approx(200)


def test_a_step_that_was_done_keeps_its_cost(tmp_path, now):
    path = tmp_path / "costs.json"
    run(path, now)
    with step_of(clock_of(path, plan(), 1)):
        skip()
        now[0] += 1
    assert StepCosts(path).steps["data"].seconds == 50


def test_a_step_that_was_done_and_has_no_cost_gets_none(tmp_path, now):
    path = tmp_path / "costs.json"
    with step_of(clock_of(path, plan(left=0.0), 2)):
        now[0] += 1
    assert "train" not in StepCosts(path).steps


def test_a_failed_step_records_no_cost_and_a_damaged_file_holds_none(tmp_path, now):
    path = tmp_path / "costs.json"
    with pytest.raises(ValueError), step_of(clock_of(path, plan(), 1)):
        raise ValueError
    assert not path.exists()
    path.write_text('{"data": 3}')
    assert clock_of(path, plan(), 1).known_s is None
