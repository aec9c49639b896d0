"""Training one stage, from its first step or its last checkpoint to its final checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.core.memory import is_out_of_memory
from echox.core.progress import Bar, print_message
from echox.criteria.base import Criterion
from echox.engine import lineage as ancestry
from echox.engine import randomness
from echox.engine.audit import Audit
from echox.engine.batching import Position
from echox.engine.config import TrainConfig
from echox.engine.distribution import World, join
from echox.engine.interruption import Interrupted, StopRequest, listening
from echox.engine.metrics import MetricsLog, finite
from echox.engine.optimisation import load_state_by_name, state_by_name
from echox.engine.setup import Setup
from echox.engine.step import StepReport, Window
from echox.tasks.base import Task

SettingsCompared = Callable[[Mapping[str, Any]], Sequence[ancestry.Change]]
"""From the metadata of a checkpoint to the settings that differ now and decide the weights."""


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
    compare: SettingsCompared | None = None,
    takes_new_settings: bool = False,
) -> Path:
    """Train one stage; a stage that is finished already is left as it is.

    The folder of a run contains `metrics.jsonl`, `checkpoints/step_*` to resume from, and in the
    end `final`. On a CPU, a run that is stopped in any way and started again reaches the same
    weights, bit for bit, as one that was not.

    Args:
        task, criterion, config: the stage's task, objective and settings.
        run_dir: this stage's own folder.
        stage: its name, for people and for the checkpoint.
        seed: decides initial weights, the order of the data and dropout.
        device: where to train; plain `cuda` is each rank's own.
        lineage: JSON-ready entries to record beside parents, data and versions.
        recipe_dict: the resolved recipe as plain data, stored in the checkpoint.
        compare: tells which settings differ from those in a checkpoint's metadata; None compares
            all of `recipe_dict`.
        takes_new_settings: resume where settings differ, and record them in the lineage.

    Returns:
        the folder of the final checkpoint.

    Raises:
        TrainingError: there is nothing to train on, or the loss or the gradient is not finite.
        DiskError: the disk is full or cannot be written.
        CheckpointError: the final checkpoint in `run_dir` or all that it could resume from are
            damaged, or were made of other data or with other settings.
        Interrupted: SIGTERM or Ctrl-C came; the run is saved.
    """
    world = join()
    final = run_dir / "final"
    origin = {"stage": stage, "recipe": dict(recipe_dict or {})}
    # It appears by a rename, so it is complete where it exists.
    if final.exists():
        if world.is_main:
            checkpoint.verify(final)
            print_message(f"{stage}: finished already in {final}")
        return final
    setup = Setup(task, criterion, config, seed=seed, device=world.device(device), world=world)
    # After the setup, which prepares the data that is fingerprinted here.
    origin["lineage"] = ancestry.trace(task, lineage)
    compare = compare or partial(_changed_recipe, recipe_dict or {})
    resuming = _Resuming(compare, takes_new_settings)
    run = _Run(setup, run_dir=run_dir, origin=origin, resuming=resuming)
    try:
        run.audit(run_dir)
        with listening() as request:
            run.loop(request)
        run.finish(final)
    finally:
        run.close()
    return final


def _changed_recipe(now: Mapping[str, Any], meta: Mapping[str, Any]) -> list[ancestry.Change]:
    return ancestry.changes(meta.get("recipe") or {}, now)


def audit_first(
    task: Task,
    criterion: Criterion,
    config: TrainConfig,
    *,
    stage: str,
    seed: int,
    device: torch.device,
) -> Audit:
    """Audit the batch that training would begin with, without training."""
    setup = Setup(task, criterion, config, seed=seed, device=device, world=World())
    return setup.audited(Position(), stage)


@dataclass(frozen=True, slots=True)
class _Resuming:
    """How a run goes on from checkpoints of other settings."""

    compare: SettingsCompared
    takes_new_settings: bool


class _Run:
    """A training run from the position its folder records: the loop, and the files it writes."""

    def __init__(
        self, setup: Setup, *, run_dir: Path, origin: Mapping[str, Any], resuming: _Resuming
    ) -> None:
        self.setup, self.config, self.world = setup, setup.config, setup.world
        self.origin, self.resuming = origin, resuming
        self.folder = run_dir / "checkpoints"
        self.step, self.position = 0, Position()
        self.elapsed_s = 0.0
        # The last validation, and the step after which it was run.
        self.scores: dict[str, float] = {}
        self.scored_step = 0
        resumed = self._resume()
        # After loading the checkpoint, whose time is not training.
        self._saved_at_s = self._ticked_s = time.monotonic()
        self.window = Window()
        # After resuming, since the log drops the lines after its step.
        self.metrics = None
        if self.world.is_main:
            self.metrics = MetricsLog(run_dir, step=self.step, tensorboard=self.config.tensorboard)
        self.bar = self._open_bar()
        if resumed is not None:
            self._say_resumed(resumed)
        self.batches = setup.batches(self.position)

    def _open_bar(self) -> Bar:
        label, shows = f"{self.origin['stage']}: training", self.world.is_main
        return Bar(label, self.config.steps, unit="step", initial=self.step, shows=shows)

    def _resume(self) -> Checkpoint | None:
        """Load the latest sound checkpoint; None where there is none at all.

        Raises:
            CheckpointError: all are damaged, or the latest is of other data or settings.
        """
        for saved in checkpoint.newest_first(self.folder):
            # First, because weights of another parent may not fit.
            ancestry.check_same_origin(saved, self.origin["lineage"])
            lineage = self._lineage_after(saved)
            try:
                self._restore(saved)
            except CheckpointError as error:
                checkpoint.warn_skipped(error)
                continue
            self.origin = {**self.origin, "lineage": lineage}
            return saved
        # Days of work may be in them, so nothing is trained over them.
        if folders := checkpoint.step_folders(self.folder):
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} can be resumed from, as "
                "said above; delete that folder to train anew, or choose another run folder"
            )
        return None

    def _lineage_after(self, saved: Checkpoint) -> dict[str, Any]:
        """Return the lineage of what is trained from a checkpoint on.

        Raises:
            CheckpointError: its settings differ, which was not asked for, or no step is left.
        """
        changed = self.resuming.compare(saved.meta)
        names, done = ", ".join(item.name for item in changed), saved.meta["step"]
        if changed and not self.resuming.takes_new_settings:
            raise CheckpointError(
                f"{saved.folder} was trained with other settings ({names}); delete "
                f"{self.folder} to train anew, or set resume=with_new_settings to go on from it"
            )
        # The final checkpoint would name settings that no step was trained with.
        if changed and done >= self.config.steps:
            raise CheckpointError(
                f"{saved.folder} has done all {self.config.steps} steps, so none would be trained "
                f"with the new settings ({names}); set more steps, or delete {self.folder} to "
                "train anew"
            )
        return ancestry.with_new_settings(saved, changed, self.origin["lineage"])

    def _restore(self, saved: Checkpoint) -> None:
        """Take weights, optimizer, position and random states from a checkpoint.

        Raises:
            CheckpointError: they do not fit.
        """
        model, state = self.setup.model, saved.require_state()
        checkpoint.fill(model, saved, set(self.setup.task.trained_state_dict(model)))
        try:
            load_state_by_name(self.setup.optimizer, model, state["optimizer"])
            self.position = Position.recorded(state["position"], len(self.setup.examples))
            self.step = state["step"]
            self.elapsed_s = float(state["elapsed_s"])
            self.scores, self.scored_step = dict(state["scores"]), int(state["scored_step"])
            # A rank that was not there before keeps its own seed.
            if self.world.rank < len(state["random"]):
                randomness.restore(state["random"][self.world.rank], self.setup.device)
        # What a damaged file holds may be of any type.
        except (CheckpointError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise self._damaged(saved, error) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._damaged(saved, error) from error

    @staticmethod
    def _damaged(saved: Checkpoint, error: Exception) -> CheckpointError:
        reason = " ".join(str(error).split())
        return CheckpointError(
            f"checkpoint {saved.folder} is damaged: its {checkpoint.STATE} cannot be resumed from "
            f"({type(error).__name__}: {reason})"
        )

    def _say_resumed(self, resumed: Checkpoint) -> None:
        changed = ancestry.differences(resumed.meta["recipe"], self.origin["recipe"])
        note = f", with other settings than before ({', '.join(changed)})" if changed else ""
        self._say(f"resuming after step {self.step} from {resumed.folder}{note}")

    def audit(self, run_dir: Path) -> None:
        """Audit the next batch, on the main rank for all.

        Raises:
            TrainingError: a label is wrong; row, position and values are named.
        """
        if not self.config.audit:
            return
        fault = None
        if self.world.is_main and self.step < self.config.steps:
            fault = self._audit_fault(run_dir)
        # Every rank must stop with the main one, or it would wait for it.
        Audit("", self.world.gather(fault)[0]).refuse()

    def _audit_fault(self, run_dir: Path) -> str | None:
        audit = self.setup.audited(self.position, self.origin["stage"])
        print_message(audit.page)
        audit.write(run_dir)
        return audit.fault

    def loop(self, request: StopRequest) -> None:
        """Run steps until their number or the time budget is reached; see `train`."""
        with self.bar:
            self._loop(request)

    def _loop(self, request: StopRequest) -> None:
        while self.step < self.config.steps and not self._out_of_time():
            self._run_step()
            # A signal may reach one rank only, and the others must stop at the same step.
            stop = self.world.any(request.signum is not None)
            if self._every(self.config.log_every):
                self._write_window()
            if not stop and self._every(self.config.validate_every):
                self._validate()
            if stop or self._save_is_due():
                self._save()
            if stop:
                self._say(f"stopped and saved after step {self.step}; start it again to go on")
                # A rank that received no signal itself ends as by SIGTERM.
                raise Interrupted(request.signum or signal.SIGTERM)

    def _run_step(self) -> None:
        # Before reading the batches, which is part of the throughput.
        began_s = time.monotonic()
        batches = list(islice(self.batches, self.config.accumulation))
        report = self.setup.stepper.run_step(self.step, batches)
        self.step += 1
        self.position = self.setup.advance(self.position)
        self.window.add(report, time.monotonic() - began_s)
        self.bar.update(note=self._figures(report))

    def _figures(self, report: StepReport) -> str:
        pace = self.window.throughput
        return (
            f"loss {report.loss_sum / max(1, report.targets):.4g}, lr {report.lr:.2e}, "
            f"{pace['targets_per_s']:,.0f} targets/s, {pace['examples_per_s']:,.1f} examples/s"
        )

    def _say(self, sentence: str) -> None:
        if self.world.is_main:
            print_message(f"{self.origin['stage']}: {sentence}")

    def _every(self, steps: int | None) -> bool:
        return steps is not None and self.step % steps == 0

    def _out_of_time(self) -> bool:
        """Add the time since the last call, and return whether any rank has spent its budget."""
        now_s = time.monotonic()
        self.elapsed_s, self._ticked_s = self.elapsed_s + now_s - self._ticked_s, now_s
        budget_s = self.config.time_budget_s
        return budget_s is not None and self.world.any(self.elapsed_s >= budget_s)

    def _save_is_due(self) -> bool:
        limit_s = self.config.save_seconds
        late = limit_s is not None and time.monotonic() - self._saved_at_s >= limit_s
        # The clocks of ranks differ, but a checkpoint needs all of them.
        return self._every(self.config.save_every) or self.world.any(late)

    def _write_window(self) -> None:
        # On every rank, because the means gather from all.
        means = self.window.means(self.world)
        if self.metrics is not None and self.window.steps:
            self.metrics.write(self.step, "train", means)
        self.window = Window()

    def _validate(self) -> None:
        self.scored_step = self.step
        # Both are on the main rank alone.
        if self.setup.validation is not None and self.metrics is not None:
            self.scores = self.setup.validation.run(self.setup.model)
            self.metrics.write(self.step, "valid", self.scores)
            scores = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
            self._say(f"valid after step {self.step}: {scores}")
        self.world.barrier()

    def _save(self) -> None:
        # A line of metrics never spans a checkpoint, so that a resumed run writes the same ones.
        self._write_window()
        state = self._state()
        tensors = self.setup.task.trained_state_dict(self.setup.model)
        if self.world.is_main:
            folder = checkpoint.step_folder(self.folder, self.step)
            checkpoint.save(folder, tensors, self._meta(), state)
            checkpoint.prune(self.folder, step=self.step, keep=self.config.keep_checkpoints)
        self._saved_at_s = time.monotonic()

    def _state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the weights."""
        return {
            "step": self.step,
            "position": {"epoch": self.position.epoch, "index": self.position.index},
            "elapsed_s": self.elapsed_s,
            "scores": self.scores,
            "scored_step": self.scored_step,
            "optimizer": state_by_name(self.setup.optimizer, self.setup.model),
            "random": self.world.gather(randomness.capture(self.setup.device)),
        }

    def _meta(self) -> dict[str, Any]:
        return {
            **self.origin,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "metrics": finite(self.scores),
        }

    def finish(self, final: Path) -> None:
        """Validate the trained model, and write the final checkpoint."""
        self._write_window()
        if self.config.validate_every is not None and self.scored_step != self.step:
            self._validate()
        tensors = self.setup.task.trained_state_dict(self.setup.model)
        if self.world.is_main:
            # Before the checkpoint, whose existence says that the stage is finished.
            self.setup.task.publish(self.setup.model, final.parent, self.step)
            checkpoint.save(final, tensors, self._meta())
        self.world.barrier()
        self._say(f"finished after {self.step} steps: {final}")

    def close(self) -> None:
        """Close the metrics."""
        if self.metrics is not None:
            self.metrics.close()
