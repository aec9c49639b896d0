"""The label audit: before the first step, a batch is shown as the losses see it, and what must hold of it is checked.

What is checked of every row of the first batch: padding is no target; what is scored is what is read next; the stop token is scored
last; ids and units are in range; units, labels and checkpoints are of one codec. What is tried on its shortest and its longest row, in
three passes: the targets counted are those of the batch, and each of them, the stop token too, is learned; padding changes no loss; and
an id that is read changes what is predicted after it, never itself or what stands before it, which proves the shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from echox.criteria.base import Criterion
from echox.data.writing import appearing
from echox.engine import audit_page, randomness
from echox.engine.audit_checks import check_view
from echox.engine.audit_trial import Trial
from echox.engine.config import Precision
from echox.errors import TrainingError
from echox.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    page: str  # the batch as people read it, and what was checked
    fault: str | None = None  # the first thing that must not be: row, position, values and the way out

    def refuse(self) -> None:
        """
        Raises:
            TrainingError: there is a fault.
        """
        if self.fault is not None:
            raise TrainingError(f"label audit: {self.fault} (train.audit=false trains regardless)")

    def write(self, folder: Path) -> None:
        """Keep the page in a stage's folder."""
        with appearing(folder / "audit.txt") as unfinished:
            unfinished.write_text(f"{self.page}\n", "utf-8")


def audit(
    task: Task, model: nn.Module, criterion: Criterion, rows: Sequence[int], *, stage: str, device: torch.device, number_format: Precision
) -> Audit:
    """Show and check one batch; no weight, no random state and no mode of the model is changed.

    Args:
        rows: the batch's training examples by their index.
    """
    with randomness.preserved(device), _evaluated(model):
        every = task.examples("train")
        examples = [every[row] for row in rows]
        batch = task.collate(examples).to(device)
        view = task.view(model, batch)
        by_cost = sorted(range(len(rows)), key=lambda number: every.cost(rows[number]))
        chosen = list(dict.fromkeys((by_cost[0], by_cost[-1])))
        page = audit_page.page(stage, view, batch.row_ids, chosen)
        if not view.tracks and not view.heard:
            return Audit(page)
        try:
            check_view(view, batch.row_ids)
            few = task.collate([examples[index] for index in chosen]).to(device)
            notes = Trial(task, model, criterion, few, number_format, device).check()
        except TrainingError as error:
            return Audit(f"{page}\n{audit_page.failed(str(error))}", str(error))
    return Audit(f"{page}\n{audit_page.passed(notes)}")


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
