"""The audit's trial: a few rows run through their model, to see which targets have gradients.

The trial also shows that padding changes no loss, and which positions depend on which ids.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.core.signals import Batch, Loss, Outputs, Scored
from echox.criteria.base import Criterion
from echox.engine import precision
from echox.engine.audit_checks import fail, target_text, token_text
from echox.engine.config import Precision
from echox.models.speech_llm import IGNORE
from echox.tasks.base import AuditBatch, Task, TokenTargets

# Tolerances as shares of the largest value: two passes over one shape differ by the order of sums
# at most.
TOLERANCE_FP32, TOLERANCE_BF16 = 1e-4, 2e-2
PADDING_GARBAGE = 50.0  # replaces real-valued padding; far from any feature
# Share of the largest gradient below which the steepest score of a label may be rounding.
STEEP_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Target:
    """One label that is scored: its track and its position there."""

    track: TokenTargets
    at: int


class Trial:
    """Forward passes of a few rows: unchanged, with other padding, and with an id exchanged."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        criterion: Criterion,
        batch: Batch,
        number_format: Precision,
        device: torch.device,
    ) -> None:
        self.task, self.model, self.criterion = task, model, criterion
        self.batch, self.number_format, self.device = batch, number_format, device
        is_bf16 = precision.uses_bf16(number_format, device)
        self.tolerance = TOLERANCE_BF16 if is_bf16 else TOLERANCE_FP32
        self.view = task.audit_batch(model, batch)
        self.targets = targets_by_name(self.view)
        self.notes: list[str] = []

    def check(self) -> list[str]:
        """Run all checks.

        Returns:
            notes for people, each a sentence, of what could not be checked.

        Raises:
            TrainingError: a check fails.
        """
        with torch.enable_grad():
            outputs, loss = self._forward(self.batch)
            if not bool(loss.total.isfinite()):
                return ["the loss is not finite, so nothing could be tried on it"]
            self._check_targets(outputs.scored())
            self._check_gradients(outputs, loss)
        with torch.no_grad():
            # Once more, because other kernels may run without gradients, which round otherwise.
            outputs, loss = self._forward(self.batch)
            self._check_padding(loss)
            scored = outputs.scored()
            self._check_shift({name: valid(item, item.values) for name, item in scored.items()})
        return self.notes

    def _forward(self, batch: Batch) -> tuple[Outputs, Loss]:
        with precision.autocast(self.number_format, self.device):
            outputs = self.task.forward(self.model, batch)
            return outputs, self.criterion(outputs, batch)

    def _row(self, target: Target) -> str:
        return f"row {self.batch.row_ids[target.track.row]!r}"

    def _check_targets(self, scored: dict[str, Scored]) -> None:
        """Check that the outputs score the batch's labels, in its order."""
        for name, targets in self.targets.items():
            if name not in scored:
                fail(
                    f"the batch has targets of {name!r}, but the outputs score none of that name; "
                    "return them from `scored`"
                )
            labels = valid(scored[name], scored[name].labels).tolist()
            # A label that differs says more than a count that does, so it is reported first.
            for target, label in zip(targets, labels):
                self._check_label(name, target, label)
            if len(labels) != len(targets):
                fail(
                    f"the loss is given {len(labels)} targets of {name!r} for rows "
                    f"{', '.join(self.batch.row_ids)}, and the batch has {len(targets)}; look at "
                    "how `forward` masks labels"
                )

    def _check_label(self, name: str, target: Target, label: int) -> None:
        if label != int(target.track.scored[target.at]):
            fail(
                f"{self._row(target)}: {target_text(target.track, target.at)} at position "
                f"{target.at} of its {name} is to be scored, but the loss is given "
                f"{token_text(target.track, label)}; look at how `forward` picks labels"
            )

    def _check_gradients(self, outputs: Outputs, loss: Loss) -> None:
        """Check that every target has a gradient, and that it raises its label's score."""
        scored = {
            name: item
            for name, item in outputs.scored().items()
            if name in self.targets and item.values.requires_grad
        }
        # A stage whose scores come from frozen parts alone learns nothing from them.
        if not scored or not loss.total.requires_grad:
            return
        values = [item.values for item in scored.values()]
        gradients = torch.autograd.grad(loss.total, values, allow_unused=True)
        for (name, item), gradient in zip(scored.items(), gradients):
            if gradient is None or not bool(gradient.any()):
                self.notes.append(f"{name!r} weighs nothing in this loss")
                continue
            gradient = valid(item, gradient).float()  # [N, ...]
            self._check_each_gradient(name, gradient.flatten(1))
            if item.are_scores:
                self._check_steepest_score(name, gradient, valid(item, item.labels))

    def _check_each_gradient(self, name: str, gradient: Tensor) -> None:
        """Check that no row of the gradient [N, D] is zero."""
        for target, has_gradient in zip(self.targets[name], gradient.any(1).tolist()):
            if has_gradient:
                continue
            is_stop = int(target.track.scored[target.at]) == target.track.stop
            label = "the stop id" if is_stop else target_text(target.track, target.at)
            fail(
                f"{self._row(target)}: {label} at position {target.at} of its {name} is a target, "
                "but no gradient comes from it, so it is never learned; the criterion leaves it out"
            )

    def _check_steepest_score(self, name: str, gradient: Tensor, labels: Tensor) -> None:
        """Check that the gradient [N, V] is lowest at each label [N].

        Cross-entropy falls fastest where the score of its own label rises.
        """
        steepest_ids, steepest = gradient.argmin(-1), gradient.min(-1).values
        is_steep = steepest < -STEEP_SHARE * gradient.abs().sum(-1).max()
        results = zip(self.targets[name], labels.tolist(), steepest_ids.tolist(), is_steep.tolist())
        for target, label, learned, certain in results:
            if certain and label != learned:
                fail(
                    f"{self._row(target)}: at position {target.at} of its {name} the criterion "
                    f"learns {token_text(target.track, learned)}, and the label is "
                    f"{token_text(target.track, label)}; it scores other labels than it is given"
                )

    def _check_padding(self, loss: Loss) -> None:
        """Check that the loss stays with other values in the padding."""
        # The view's tensors share memory with the batch's, so writing them changes the batch.
        batch = copy.deepcopy(self.batch)
        padding = self.task.audit_batch(self.model, batch).padding
        for values in padding:
            values.copy_(_other_padding(values))
        if not any(values.numel() for values in padding):
            return
        before, after = float(loss.total), float(self._forward(batch)[1].total)
        if not abs(before - after) <= self.tolerance * max(1.0, abs(before)):
            fail(
                f"the loss of rows {', '.join(self.batch.row_ids)} is {before:.6g}, and "
                f"{after:.6g} with other values in their padding, which must not count; mask what "
                "stands past each length"
            )

    def _check_shift(self, before: dict[str, Tensor]) -> None:
        """Check that an exchanged id changes the prediction after it, and no earlier one.

        Args:
            before: predictions [N, ...] of each kind of target, with the batch as it is.
        """
        for exchanged in self._rounds():
            batch = copy.deepcopy(self.batch)
            tracks = self.task.audit_batch(self.model, batch).tracks
            for target in exchanged:
                # The same track in the copied batch, whose tensors are views into it.
                track = tracks[self.view.tracks.index(target.track)]
                position = target.at + track.ahead
                track.read[position] = replacement_id(track, int(track.read[position]))
            after = self._forward(batch)[0].scored()
            for target in exchanged:
                name = target.track.name
                self._check_change(target, before[name], valid(after[name], after[name].values))

    def _rounds(self) -> Iterator[list[Target]]:
        """Choose ids to exchange, one of each kind of target, in as few passes as possible.

        Those of one pass are in different rows, which do not influence each other.
        """
        waiting = []
        for name, targets in self.targets.items():
            if candidates := list(exchangeable(targets)):
                waiting.append(candidates)
            else:
                self.notes.append(
                    f"the shift of {name!r} could not be tried: the rows have no two targets one "
                    "after the other that can be exchanged"
                )
        while waiting:
            chosen: list[Target] = []
            for candidates in waiting:
                rows = {target.track.row for target in chosen}
                # The last that fits: more predictions before it are compared.
                chosen += [item for item in candidates if item.track.row not in rows][-1:]
            waiting = [
                candidates
                for candidates in waiting
                if not any(target in chosen for target in candidates)
            ]
            yield chosen

    def _check_change(self, exchanged: Target, before: Tensor, after: Tensor) -> None:
        """Compare the predictions [N, ...] up to the one after the exchanged id."""
        track = exchanged.track
        scale = float(before.abs().max())
        for number, target in enumerate(self.targets[track.name]):
            distance = exchanged.at - target.at
            if target.track is not track or distance < -1:
                continue
            gap = float((before[number] - after[number]).abs().max())
            label = (
                f"{self._row(target)}: {target_text(track, target.at)} at position {target.at} of "
                f"its {track.name}"
            )
            if distance >= 0 and not gap <= self.tolerance * scale:
                source = f"what stands {distance} later" if distance else "itself"
                fail(
                    f"{label} is predicted from {source}, by {gap / scale:.1g} of the largest "
                    "value; what is scored at i must be read at i + 1, so move labels or inputs by "
                    "one"
                )
            if distance == -1 and gap == 0:
                fail(
                    f"{label} is predicted without what stands right before it; labels are moved "
                    "too far against what is read, so move them back"
                )


def _other_padding(values: Tensor) -> Tensor:
    """Return other values of the same shape and type, which a model may read without failing."""
    if values.is_floating_point():
        return torch.full_like(values, PADDING_GARBAGE)
    # One less is an id too; one more may be none, or the audio placeholder that follows the last
    # id of a small vocabulary.
    return values + torch.where(values > 0, -1, 1)


def valid(scored: Scored, values: Tensor) -> Tensor:
    """Select those of values [N, ...] whose label is not ignored."""
    return values[scored.labels != IGNORE]


def targets_by_name(view: AuditBatch) -> dict[str, list[Target]]:
    """List the labels that are scored, by the name of their kind, in the order of the outputs."""
    targets: dict[str, list[Target]] = {}
    for track in view.tracks:
        positions = (track.scored != IGNORE).nonzero()[:, 0].tolist()
        targets.setdefault(track.name, []).extend(Target(track, at) for at in positions)
    return targets


def exchangeable(targets: Sequence[Target]) -> Iterator[Target]:
    """Select the targets that the model reads in each row by itself and that another follows."""
    for target, following in zip(targets, targets[1:]):
        track, position = target.track, target.at + target.track.ahead
        is_followed = following.track is track and following.at == target.at + 1
        # A shared prefix is computed from the first row, so an exchange in another has no effect.
        if is_followed and position >= track.shared and int(track.read[position]) in track.swaps:
            yield target


def replacement_id(track: TokenTargets, token: int) -> int:
    """Return an id that may replace `token`; `token` itself where there is no other."""
    place = token - track.swaps.start
    size = len(track.swaps)
    following = (track.swaps[(place + step) % size] for step in range(1, size))
    # The stop token ends a sequence, which would change more than one prediction.
    return next((other for other in following if other != track.stop), token)
