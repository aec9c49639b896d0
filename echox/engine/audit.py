"""The label audit: before the first step, a batch is printed and checked as its losses see it.

Checked of every row of the first batch: padding is no target; what is scored is what is read next;
the stop token is scored last; ids and units are in range; units, labels and checkpoints are of one
codec. Tried on its shortest and its longest row, in three forward passes: the targets counted are
those of the batch, and each of them, the stop token too, has a gradient; padding changes no loss;
and an id that is read changes the predictions after it, never those at or before its own position,
which proves the shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from echox.core.errors import TrainingError
from echox.core.files import atomic_write
from echox.criteria.base import Criterion
from echox.engine import audit_page, randomness
from echox.engine.audit_checks import check_batch
from echox.engine.audit_trial import Trial
from echox.engine.config import Precision
from echox.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of an audit."""

    page: str  # the batch as people read it, and the outcome of the checks
    fault: str | None = None  # the first failed check: row, position, values and the way out

    def refuse(self) -> None:
        """Stop training if a check failed.

        Raises:
            TrainingError: there is a fault.
        """
        if self.fault is not None:
            raise TrainingError(f"label audit: {self.fault} (train.audit=false trains regardless)")

    def write(self, folder: Path) -> None:
        """Write the page to `audit.txt` in a stage's folder."""
        with atomic_write(folder / "audit.txt") as unfinished:
            unfinished.write_text(f"{self.page}\n", "utf-8")


def audit(
    task: Task,
    model: nn.Module,
    criterion: Criterion,
    rows: Sequence[int],
    *,
    stage: str,
    device: torch.device,
    number_format: Precision,
) -> Audit:
    """Print and check one batch.

    The weights, random state and mode of the model stay as they are.

    Args:
        task: the stage's task, whose `audit_batch` describes the batch.
        model: on `device`.
        criterion: the stage's criterion, on `device`.
        rows: indices of the batch's training examples.
        stage: the stage's name, for the page.
        device: where the forward passes run.
        number_format: precision of the forward passes.
    """
    with randomness.preserved(device), _evaluation_mode(model):
        split = task.examples("train")
        # Without augmentation, whose draws depend on the epoch.
        examples = [split[row] for row in rows]
        batch = task.collate(examples).to(device)
        view = task.audit_batch(model, batch)
        by_cost = sorted(range(len(rows)), key=lambda row: split.cost(rows[row]))
        # The shortest and the longest row; one row where the batch has no other.
        tried = list(dict.fromkeys((by_cost[0], by_cost[-1])))
        page = audit_page.page(stage, view, batch.row_ids, tried)
        if not view.tracks and not view.ctc_targets:
            return Audit(page)
        try:
            check_batch(view, batch.row_ids)
            small_batch = task.collate([examples[row] for row in tried]).to(device)
            notes = Trial(task, model, criterion, small_batch, number_format, device).check()
        # Not raised: the page is printed first, since it shows the labels in question.
        except TrainingError as error:
            return Audit(f"{page}\n{audit_page.failed(str(error))}", str(error))
    return Audit(f"{page}\n{audit_page.passed(notes)}")


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    # Without dropout: the trial compares passes that may differ by rounding alone.
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
