"""The label audit: before the first step, a batch is shown as the losses see it, and what must hold of it is checked.

What is checked of every row of the first batch: padding is no target; what is scored is what is read next; the stop token is scored
last; ids and units are in range; units, labels and checkpoints are of one codec. What is tried on its shortest and its longest row, in
three passes: the targets counted are those of the batch, and each of them, the stop token too, is learned; padding changes no loss; and
an id that is read changes what is predicted after it, never itself or what stands before it, which proves the shift.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from echox.criteria.base import Criterion
from echox.data.writing import appearing
from echox.engine import audit_page, precision, randomness
from echox.engine.config import Precision
from echox.errors import TrainingError
from echox.models.speech_llm import IGNORE
from echox.signals import Batch, Loss, Outputs, Scored
from echox.tasks.base import Task, Track, View

# Two passes over one shape differ by nothing but the order of sums, if at all; as a share of the largest value.
SAME_FP32, SAME_BF16 = 1e-4, 2e-2
GARBAGE = 50.0  # in place of padding that is real-valued


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
            notes = _Trial(task, model, criterion, few, number_format, device).check()
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


def check_view(view: View, row_ids: Sequence[str]) -> None:
    """What can be seen without a model.

    Raises:
        TrainingError: it names row, position, values and the way out.
    """
    for track in view.tracks:
        row = f"row {row_ids[track.row]!r}"
        for check in (_padding_is_no_target, _targets_are_read_next, _the_stop_is_scored, _ids_are_in_range):
            check(track, row)
        _units_are_the_codecs(track, row, view.unit_count)
    for clip in view.heard:
        said = clip.said[: clip.length].tolist()
        for at, found in enumerate(said):
            if found not in clip.ids:
                _fail(f"row {row_ids[clip.row]!r}: token {at} of what its clip says is id {found}, and CTC finds {_span(clip.ids)} beside its blank; look at how targets are made")
    if len(set(view.codecs.values())) > 1:
        made = ", ".join(f"{name} {fingerprint}" for name, fingerprint in view.codecs.items())
        _fail(f"the codecs differ ({made}); set codec to the one that units and checkpoints were made with, or make them anew with this one")


def _padding_is_no_target(track: Track, row: str) -> None:
    beyond = (track.scored[track.length :] != IGNORE).nonzero()
    if len(beyond):
        at = track.length + int(beyond[0, 0])
        _fail(f"{row}: position {at} of its {track.name} is padding ({track.length} positions are real), but {_named(track, at)} is scored there; fill labels with {IGNORE} past each row's length")


def _targets_are_read_next(track: Track, row: str) -> None:
    scored = track.scored[: max(0, len(track.read) - track.ahead)]
    read = track.read[track.ahead : track.ahead + len(scored)]
    wrong = ((scored != IGNORE) & (scored != read)).nonzero()
    if len(wrong):
        at = int(wrong[0, 0])
        _fail(
            f"{row}: at position {at} of its {track.name}, {_named(track, at)} is scored, but {_shown(track, int(read[at]))} is read next; "
            "labels must be the ids that are read, one place earlier, so look at how labels are moved"
        )


def _the_stop_is_scored(track: Track, row: str) -> None:
    targets = (track.scored != IGNORE).nonzero()
    if not len(targets):
        _fail(f"{row}: none of the {track.length} positions of its {track.name} is scored, so it teaches nothing; leave the row out, or look at how labels are masked")
    last = int(targets[-1, 0])
    if track.stop is not None and int(track.scored[last]) != track.stop:
        _fail(
            f"{row}: the last target of its {track.name}, at position {last}, is {_named(track, last)}, and not the stop id {track.stop}, so the "
            "model would never learn to end; append the stop id to the targets, and do not mask it"
        )


def _ids_are_in_range(track: Track, row: str) -> None:
    low, high = track.ids.start, track.ids.stop
    outside = ((track.scored != IGNORE) & ((track.scored < low) | (track.scored >= high))).nonzero()
    if len(outside):
        at = int(outside[0, 0])
        _fail(f"{row}: position {at} of its {track.name} is to be id {int(track.scored[at])}, and the model predicts {_span(track.ids)}; the labels are of another vocabulary or codec")


def _units_are_the_codecs(track: Track, row: str, unit_count: int | None) -> None:
    for at, unit in enumerate(track.units):
        if unit_count is not None and not 0 <= unit < unit_count:
            _fail(f"{row}: unit {at} is {unit}, and the codec has units {_span(range(unit_count))}; encode the row with this codec ('echox-prepare units')")


def _named(track: Track, at: int) -> str:
    return _shown(track, int(track.scored[at]))


def _shown(track: Track, token: int) -> str:
    return f"id {token} ({track.text([token])!r})"


def _span(ids: range) -> str:
    return f"{ids.start} to {ids.stop - 1}"


def _fail(sentence: str) -> None:
    raise TrainingError(sentence)


@dataclass(frozen=True, slots=True)
class _Target:
    """One thing that is scored: the track it is of, and its place there."""

    track: Track
    at: int


class _Trial:
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

    def _row(self, target: _Target) -> str:
        return f"row {self.batch.row_ids[target.track.row]!r}"

    def _counted_are_the_batchs(self, scored: dict[str, Scored]) -> None:
        for name, targets in self.targets.items():
            if name not in scored:
                _fail(f"the batch has targets of {name!r}, but the outputs score none of that name; return them from `scored`")
            found = counted(scored[name], scored[name].labels).tolist()
            for target, label in zip(targets, found):
                wanted = int(target.track.scored[target.at])
                if label != wanted:
                    _fail(f"{self._row(target)}: {_named(target.track, target.at)} at position {target.at} of its {name} is to be scored, but the loss is given {_shown(target.track, label)}; look at how `forward` picks labels")
            if len(found) != len(targets):
                _fail(f"the loss is given {len(found)} targets of {name!r} for rows {', '.join(self.batch.row_ids)}, and the batch has {len(targets)}; look at how `forward` masks labels")

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
                what = "the stop id" if int(target.track.scored[target.at]) == target.track.stop else _named(target.track, target.at)
                _fail(f"{self._row(target)}: {what} at position {target.at} of its {name} is a target, but no gradient comes from it, so it is never learned; the criterion leaves it out")

    def _its_label_is_wanted(self, name: str, gradient: Tensor, labels: Tensor) -> None:
        """Cross-entropy falls fastest where the score of its own label rises."""
        wanted, steepest = gradient.argmin(-1), gradient.min(-1).values
        sure = steepest < -1e-3 * gradient.abs().sum(-1).max()
        for target, label, found, certain in zip(self.targets[name], labels.tolist(), wanted.tolist(), sure.tolist()):
            if certain and label != found:
                _fail(f"{self._row(target)}: at position {target.at} of its {name} the criterion learns {_shown(target.track, found)}, and the label is {_shown(target.track, label)}; it scores other labels than it is given")

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
            _fail(f"the loss of rows {', '.join(self.batch.row_ids)} is {before:.6g}, and {after:.6g} with other values in their padding, which must not count; mask what stands past each length")

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

    def _rounds(self) -> Iterator[list[_Target]]:
        """Ids to exchange, one of each kind of target; those of one pass are of different rows, which do not influence each other."""
        left = []
        for name, targets in self.targets.items():
            if found := list(exchangeable(targets)):
                left.append(found)
            else:
                self.notes.append(f"the shift of {name!r} could not be tried: the rows have no two targets one after the other that can be exchanged")
        while left:
            taken: list[_Target] = []
            for found in left:
                fitting = [target for target in found if all(target.track.row != other.track.row for other in taken)]
                taken += fitting[-1:]
            left = [found for found in left if not any(target in taken for target in found)]
            yield taken

    def _only_what_follows_changed(self, swapped: _Target, before: Tensor, after: Tensor) -> None:
        track = swapped.track
        scale = float(before.abs().max())
        for number, target in enumerate(self.targets[track.name]):
            if target.track is not track or target.at > swapped.at + 1:
                continue
            gap = float((before[number] - after[number]).abs().max())
            said = f"{self._row(target)}: {_named(track, target.at)} at position {target.at} of its {track.name}"
            if target.at <= swapped.at and not gap <= self.same * scale:
                itself = "itself" if target.at == swapped.at else f"what stands {swapped.at - target.at} later"
                _fail(f"{said} is predicted from {itself}, by {gap / scale:.1g} of the largest value; what is scored at i must be read at i + 1, so move labels or inputs by one")
            if target.at == swapped.at + 1 and gap == 0:
                _fail(f"{said} is predicted without what stands right before it; labels are moved too far against what is read, so move them back")


def counted(scored: Scored, values: Tensor) -> Tensor:
    """Of values [N, ...] that stand beside labels, those of labels that count."""
    return values[scored.labels != IGNORE]


def targets_of(view: View) -> dict[str, list[_Target]]:
    """What is scored, by its name, in the order of the outputs."""
    found: dict[str, list[_Target]] = {}
    for track in view.tracks:
        found.setdefault(track.name, []).extend(_Target(track, at) for at in (track.scored != IGNORE).nonzero()[:, 0].tolist())
    return found


def exchangeable(targets: Sequence[_Target]) -> Iterator[_Target]:
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
