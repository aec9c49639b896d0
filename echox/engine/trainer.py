"""Training one stage from its first step, or from wherever it stopped, to its final checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from echox import checkpoint
from echox.checkpoint import Checkpoint
from echox.criteria.base import Criterion
from echox.engine import lineage as ancestry, randomness
from echox.engine.audit import Audit
from echox.engine.batching import Position
from echox.engine.config import TrainConfig
from echox.engine.distribution import World, join
from echox.engine.interruption import Interrupted, StopRequest, listening
from echox.engine.metrics import MetricsLog, finite
from echox.engine.optimisation import load_state_by_name, state_by_name
from echox.engine.setup import Setup
from echox.engine.step import StepReport, Window
from echox.progress import Bar, say
from echox.tasks.base import Task


def train(
    task: Task,
    criterion: Criterion,
    config: TrainConfig,
    *,
    run_dir: Path,
    stage: str,
    seed: int,
    device: torch.device,
    lineage: Mapping[str, Any] | None = None,
    recipe_dict: Mapping[str, Any] | None = None,
) -> Path:
    """Train one stage and return the folder of its final checkpoint; a stage that is finished already is left alone.

    The folder of a run holds `metrics.jsonl`, `checkpoints/step_*` to resume from, and in the end `final`. On a CPU, a run that is
    stopped in any way and started again reaches the same weights, bit for bit, as one that was not.

    Args:
        run_dir: this stage's own folder.
        stage: its name, for people and for the checkpoint.
        seed: decides initial weights, the order of the data and dropout.
        device: where to train; plain `cuda` is each rank's own.
        lineage: what to record beside parents, data and versions (plugins, for one), JSON-ready.
        recipe_dict: the resolved recipe as plain data, stored in the checkpoint.
    Raises:
        TrainingError: there is nothing to train on, or the loss or the gradient is not finite.
        CheckpointError: the checkpoint in `run_dir` is damaged or was made otherwise, or the disk is full.
        Interrupted: SIGTERM or Ctrl-C came; the run is saved.
    """
    world = join()
    final = run_dir / "final"
    origin = {"stage": stage, "recipe": dict(recipe_dict or {})}
    if final.exists():
        if world.is_main:
            checkpoint.verify(final)
            say(f"{stage}: finished already in {final}")
        return final
    setup = Setup(task, criterion, config, seed=seed, device=world.device(device), world=world)
    origin["lineage"] = ancestry.trace(task, lineage)
    run = _Run(setup, run_dir=run_dir, origin=origin)
    try:
        run.audit(run_dir)
        with listening() as request:
            run.loop(request)
        run.finish(final)
    finally:
        run.close()
    return final


def audit_first(task: Task, criterion: Criterion, config: TrainConfig, *, stage: str, seed: int, device: torch.device) -> Audit:
    """Audit the batch that training would begin with, without training."""
    setup = Setup(task, criterion, config, seed=seed, device=device, world=World())
    return setup.audited(Position(), stage)


class _Run:
    """A run from where its folder says it stands: the loop, and what it writes."""

    def __init__(self, setup: Setup, *, run_dir: Path, origin: Mapping[str, Any]) -> None:
        self.setup = setup
        self.config = setup.config
        self.world = setup.world
        self.origin = origin
        self.folder = run_dir / "checkpoints"
        self.step = 0
        self.position = Position()
        self.elapsed_s = 0.0
        self.scores: dict[str, float] = {}
        self.scored_step = 0
        resumed = self._resume()
        self._saved_at_s = self._ticked_s = time.monotonic()
        self.window = Window()
        self.metrics = self._open_metrics(run_dir) if self.world.is_main else None
        self.bar = Bar(f"{origin['stage']}: training", self.config.steps, unit="step", initial=self.step, shows=self.world.is_main)
        if resumed is not None:
            self._say_resumed(resumed)
        self.batches = setup.batches(self.position)

    def _open_metrics(self, run_dir: Path) -> MetricsLog:
        run_dir.mkdir(parents=True, exist_ok=True)
        return MetricsLog(run_dir, step=self.step, tensorboard=self.config.tensorboard)

    def _resume(self) -> Checkpoint | None:
        found = checkpoint.latest(self.folder)
        if found is None:
            return None
        ancestry.check_same_origin(found, self.origin["lineage"])
        model, state = self.setup.model, found.state
        checkpoint.fill(model, found, set(self.setup.task.learned(model)))
        load_state_by_name(self.setup.optimizer, model, state["optimizer"])
        self.step, self.position = state["step"], Position(**state["position"])
        self.elapsed_s, self.scores, self.scored_step = state["elapsed_s"], state["scores"], state["scored_step"]
        # A rank that was not there before keeps its own seed.
        if self.world.rank < len(state["random"]):
            randomness.restore(state["random"][self.world.rank], self.setup.device)
        return found

    def _say_resumed(self, found: Checkpoint) -> None:
        changed = ancestry.differences(found.meta["recipe"], self.origin["recipe"])
        note = f", with other settings than before ({', '.join(changed)})" if changed else ""
        self._say(f"resuming after step {self.step} from {found.folder}{note}")

    def audit(self, run_dir: Path) -> None:
        """Show and check what is learned next, on the main rank for all.

        Raises:
            TrainingError: labels are not what they must be; row, position and values are named.
        """
        if not self.config.audit:
            return
        found = self._audited(run_dir) if self.world.is_main and self.step < self.config.steps else Audit("")
        Audit("", self.world.gather(found.fault)[0]).refuse()

    def _audited(self, run_dir: Path) -> Audit:
        found = self.setup.audited(self.position, self.origin["stage"])
        say(found.page)
        found.write(run_dir)
        return found

    def loop(self, request: StopRequest) -> None:
        """Step until the steps or the time are spent.

        Raises:
            Interrupted: a signal came; the run is saved.
        """
        with self.bar:
            self._loop(request)

    def _loop(self, request: StopRequest) -> None:
        while self.step < self.config.steps and not self._out_of_time():
            self._take_step()
            stop = self.world.any(request.signum is not None)
            if self._every(self.config.log_every):
                self._write_window()
            if not stop and self._every(self.config.validate_every):
                self._validate()
            if stop or self._save_is_due():
                self._save()
            if stop:
                self._say(f"stopped and saved after step {self.step}; start it again to go on")
                raise Interrupted(request.signum or signal.SIGTERM)

    def _take_step(self) -> None:
        began_s = time.monotonic()
        report = self.setup.stepper.take(self.step, list(islice(self.batches, self.config.accumulation)))
        self.step += 1
        self.position = self.setup.advance(self.position)
        self.window.add(report, time.monotonic() - began_s)
        self.bar.update(note=self._facts(report))

    def _facts(self, report: StepReport) -> str:
        pace = self.window.throughput
        return (
            f"loss {report.loss_sum / max(1, report.targets):.4g}, lr {report.lr:.2e}, "
            f"{pace['targets_per_s']:,.0f} targets/s, {pace['examples_per_s']:,.1f} examples/s"
        )

    def _say(self, sentence: str) -> None:
        if self.world.is_main:
            say(f"{self.origin['stage']}: {sentence}")

    def _every(self, steps: int | None) -> bool:
        return steps is not None and self.step % steps == 0

    def _out_of_time(self) -> bool:
        now_s = time.monotonic()
        self.elapsed_s, self._ticked_s = self.elapsed_s + now_s - self._ticked_s, now_s
        budget_s = self.config.time_budget_s
        return budget_s is not None and self.world.any(self.elapsed_s >= budget_s)

    def _save_is_due(self) -> bool:
        late = self.config.save_seconds is not None and time.monotonic() - self._saved_at_s >= self.config.save_seconds
        return self._every(self.config.save_every) or self.world.any(late)

    def _write_window(self) -> None:
        means = self.window.means(self.world)
        if self.metrics is not None and self.window.steps:
            self.metrics.write(self.step, "train", means)
        self.window = Window()

    def _validate(self) -> None:
        self.scored_step = self.step
        if self.setup.validation is not None:
            self.scores = self.setup.validation.run(self.setup.model)
            self.metrics.write(self.step, "valid", self.scores)
            self._say(f"valid after step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()))
        self.world.barrier()

    def _save(self) -> None:
        # A line of metrics never spans a checkpoint, so that a resumed run writes the same ones.
        self._write_window()
        state = {
            "step": self.step,
            "position": {"epoch": self.position.epoch, "index": self.position.index},
            "elapsed_s": self.elapsed_s,
            "scores": self.scores,
            "scored_step": self.scored_step,
            "optimizer": state_by_name(self.setup.optimizer, self.setup.model),
            "random": self.world.gather(randomness.capture(self.setup.device)),
        }
        tensors = self.setup.task.learned(self.setup.model)
        if self.world.is_main:
            checkpoint.save(checkpoint.step_folder(self.folder, self.step), tensors, self._meta(), state)
            checkpoint.prune(self.folder, step=self.step, keep=self.config.keep_checkpoints)
        self._saved_at_s = time.monotonic()

    def _meta(self) -> dict[str, Any]:
        return {**self.origin, "step": self.step, "elapsed_s": self.elapsed_s, "metrics": finite(self.scores)}

    def finish(self, final: Path) -> None:
        """Validate what came out and write the final checkpoint."""
        self._write_window()
        if self.config.validate_every is not None and self.scored_step != self.step:
            self._validate()
        tensors = self.setup.task.learned(self.setup.model)
        if self.world.is_main:
            self.setup.task.publish(self.setup.model, final.parent, self.step)
            checkpoint.save(final, tensors, self._meta())
        self.world.barrier()
        self._say(f"finished after {self.step} steps: {final}")

    def close(self) -> None:
        """Close the files."""
        if self.metrics is not None:
            self.metrics.close()
