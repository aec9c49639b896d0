"""What an audit tries on a few rows with their model: what is learned, that padding is silent, and what reads what."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.criteria.base import Criterion
from echox.engine import precision
from echox.engine.audit_checks import fail, named, shown
from echox.engine.config import Precision
from echox.models.speech_llm import IGNORE
from echox.signals import Batch, Loss, Outputs, Scored
from echox.tasks.base import Task, Track, View

# Two passes over one shape differ by nothing but the order of sums, if at all; as a share of the largest value.
SAME_FP32, SAME_BF16 = 1e-4, 2e-2
GARBAGE = 50.0  # in place of padding that is real-valued


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is scored: the track it is of, and its place there."""

    track: Track
    at: int


class Trial:
    """Passes of a few rows: as they are, with other padding, and with an id exchanged."""

    def __init__(self, task: Task, model: nn.Module, criterion: Criterion, batch: Batch, number_format: Precision, device: torch.device) -> None:
        self.task, self.model, self.criterion, self.batch, self.device = task, model, criterion, batch, device
        self.number_format = number_format
        self.same = SAME_BF16 if precision.uses_bf16(number_format, device) else SAME_FP32
        self.view = task.view(model, batch)
        self.targets = targets_of(self.view)
        self.notes: list[str] = []

    def check(self) -> list[str]:
        """What a person should know beside that nothing is wrong.

        Raises:
            TrainingError: something is.
        """
        with torch.enable_grad():
            outputs, loss = self._passed(self.batch)
            if not bool(loss.total.isfinite()):
                return ["the loss is not finite, so nothing could be tried on it"]
            self._counted_are_the_batchs(outputs.scored())
            self._all_are_learned(outputs, loss)
        with torch.no_grad():
            # Once more, for without gradients other kernels may run, which round otherwise.
            outputs, loss = self._passed(self.batch)
            self._padding_changes_nothing(loss)
            self._reading_changes_what_follows({name: counted(found, found.values) for name, found in outputs.scored().items()})
        return self.notes

    def _passed(self, batch: Batch) -> tuple[Outputs, Loss]:
        with precision.autocast(self.number_format, self.device):
            outputs = self.task.forward(self.model, batch)
            return outputs, self.criterion(outputs, batch)

    def _row(self, target: Target) -> str:
        return f"row {self.batch.row_ids[target.track.row]!r}"

    def _counted_are_the_batchs(self, scored: dict[str, Scored]) -> None:
        for name, targets in self.targets.items():
            if name not in scored:
                fail(f"the batch has targets of {name!r}, but the outputs score none of that name; return them from `scored`")
            found = counted(scored[name], scored[name].labels).tolist()
            for target, label in zip(targets, found):
                wanted = int(target.track.scored[target.at])
                if label != wanted:
                    fail(f"{self._row(target)}: {named(target.track, target.at)} at position {target.at} of its {name} is to be scored, but the loss is given {shown(target.track, label)}; look at how `forward` picks labels")
            if len(found) != len(targets):
                fail(f"the loss is given {len(found)} targets of {name!r} for rows {', '.join(self.batch.row_ids)}, and the batch has {len(targets)}; look at how `forward` masks labels")

    def _all_are_learned(self, outputs: Outputs, loss: Loss) -> None:
        scored = {name: found for name, found in outputs.scored().items() if name in self.targets and found.values.requires_grad}
        if not scored or not loss.total.requires_grad:
            return
        gradients = torch.autograd.grad(loss.total, [found.values for found in scored.values()], allow_unused=True)
        for (name, found), gradient in zip(scored.items(), gradients):
            if gradient is None or not bool(gradient.any()):
                self.notes.append(f"{name!r} weighs nothing in this loss")
                continue
            gradient = counted(found, gradient).float()
            self._each_has_a_gradient(name, gradient.flatten(1))
            if found.are_scores:
                self._its_label_is_wanted(name, gradient, counted(found, found.labels))

    def _each_has_a_gradient(self, name: str, gradient: Tensor) -> None:
        for target, learned in zip(self.targets[name], gradient.any(1).tolist()):
            if not learned:
                what = "the stop id" if int(target.track.scored[target.at]) == target.track.stop else named(target.track, target.at)
                fail(f"{self._row(target)}: {what} at position {target.at} of its {name} is a target, but no gradient comes from it, so it is never learned; the criterion leaves it out")

    def _its_label_is_wanted(self, name: str, gradient: Tensor, labels: Tensor) -> None:
        """Cross-entropy falls fastest where the score of its own label rises."""
        wanted, steepest = gradient.argmin(-1), gradient.min(-1).values
        sure = steepest < -1e-3 * gradient.abs().sum(-1).max()
        for target, label, found, certain in zip(self.targets[name], labels.tolist(), wanted.tolist(), sure.tolist()):
            if certain and label != found:
                fail(f"{self._row(target)}: at position {target.at} of its {name} the criterion learns {shown(target.track, found)}, and the label is {shown(target.track, label)}; it scores other labels than it is given")

    def _padding_changes_nothing(self, loss: Loss) -> None:
        batch = copy.deepcopy(self.batch)
        padding = self.task.view(self.model, batch).padding
        for values in padding:
            # One less is an id too; one more may be none, or the audio placeholder that stands behind the last of a small vocabulary.
            values.copy_(torch.full_like(values, GARBAGE) if values.is_floating_point() else values + torch.where(values > 0, -1, 1))
        if not any(values.numel() for values in padding):
            return
        before, after = float(loss.total), float(self._passed(batch)[1].total)
        if not abs(before - after) <= self.same * max(1.0, abs(before)):
            fail(f"the loss of rows {', '.join(self.batch.row_ids)} is {before:.6g}, and {after:.6g} with other values in their padding, which must not count; mask what stands past each length")

    def _reading_changes_what_follows(self, before: dict[str, Tensor]) -> None:
        for swapped in self._rounds():
            batch = copy.deepcopy(self.batch)
            tracks = self.task.view(self.model, batch).tracks
            for target in swapped:
                twin = tracks[self.view.tracks.index(target.track)]
                twin.read[target.at + twin.ahead] = another(twin, int(twin.read[target.at + twin.ahead]))
            after = self._passed(batch)[0].scored()
            for target in swapped:
                found = after[target.track.name]
                self._only_what_follows_changed(target, before[target.track.name], counted(found, found.values))

    def _rounds(self) -> Iterator[list[Target]]:
        """Ids to exchange, one of each kind of target; those of one pass are of different rows, which do not influence each other."""
        left = []
        for name, targets in self.targets.items():
            if found := list(exchangeable(targets)):
                left.append(found)
            else:
                self.notes.append(f"the shift of {name!r} could not be tried: the rows have no two targets one after the other that can be exchanged")
        while left:
            taken: list[Target] = []
            for found in left:
                fitting = [target for target in found if all(target.track.row != other.track.row for other in taken)]
                taken += fitting[-1:]
            left = [found for found in left if not any(target in taken for target in found)]
            yield taken

    def _only_what_follows_changed(self, swapped: Target, before: Tensor, after: Tensor) -> None:
        track = swapped.track
        scale = float(before.abs().max())
        for number, target in enumerate(self.targets[track.name]):
            if target.track is not track or target.at > swapped.at + 1:
                continue
            gap = float((before[number] - after[number]).abs().max())
            said = f"{self._row(target)}: {named(track, target.at)} at position {target.at} of its {track.name}"
            if target.at <= swapped.at and not gap <= self.same * scale:
                itself = "itself" if target.at == swapped.at else f"what stands {swapped.at - target.at} later"
                fail(f"{said} is predicted from {itself}, by {gap / scale:.1g} of the largest value; what is scored at i must be read at i + 1, so move labels or inputs by one")
            if target.at == swapped.at + 1 and gap == 0:
                fail(f"{said} is predicted without what stands right before it; labels are moved too far against what is read, so move them back")


def counted(scored: Scored, values: Tensor) -> Tensor:
    """Of values [N, ...] that stand beside labels, those of labels that count."""
    return values[scored.labels != IGNORE]


def targets_of(view: View) -> dict[str, list[Target]]:
    """What is scored, by its name, in the order of the outputs."""
    found: dict[str, list[Target]] = {}
    for track in view.tracks:
        found.setdefault(track.name, []).extend(Target(track, at) for at in (track.scored != IGNORE).nonzero()[:, 0].tolist())
    return found


def exchangeable(targets: Sequence[Target]) -> Iterator[Target]:
    """Targets that are read, in every row by itself, and followed by another."""
    for target, following in zip(targets, targets[1:]):
        track, at = target.track, target.at + target.track.ahead
        is_followed = following.track is track and following.at == target.at + 1
        if is_followed and at >= track.shared and int(track.read[at]) in track.swaps:
            yield target


def another(track: Track, token: int) -> int:
    """Some other id that may stand in a token's place."""
    place = token - track.swaps.start
    following = (track.swaps[(place + step) % len(track.swaps)] for step in range(1, len(track.swaps)))
    return next((found for found in following if found != track.stop), token)
