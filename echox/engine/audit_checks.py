"""What an audit sees of a batch without a model: masks, shifts, stops, ranges, codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from echox.errors import TrainingError
from echox.models.speech_llm import IGNORE
from echox.tasks.base import Track, View


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
                fail(f"row {row_ids[clip.row]!r}: token {at} of what its clip says is id {found}, and CTC finds {span(clip.ids)} beside its blank; look at how targets are made")
    if len(set(view.codecs.values())) > 1:
        made = ", ".join(f"{name} {fingerprint}" for name, fingerprint in view.codecs.items())
        fail(f"the codecs differ ({made}); set codec to the one that units and checkpoints were made with, or make them anew with this one")


def _padding_is_no_target(track: Track, row: str) -> None:
    beyond = (track.scored[track.length :] != IGNORE).nonzero()
    if len(beyond):
        at = track.length + int(beyond[0, 0])
        fail(f"{row}: position {at} of its {track.name} is padding ({track.length} positions are real), but {named(track, at)} is scored there; fill labels with {IGNORE} past each row's length")


def _targets_are_read_next(track: Track, row: str) -> None:
    scored = track.scored[: max(0, len(track.read) - track.ahead)]
    read = track.read[track.ahead : track.ahead + len(scored)]
    wrong = ((scored != IGNORE) & (scored != read)).nonzero()
    if len(wrong):
        at = int(wrong[0, 0])
        fail(
            f"{row}: at position {at} of its {track.name}, {named(track, at)} is scored, but {shown(track, int(read[at]))} is read next; "
            "labels must be the ids that are read, one place earlier, so look at how labels are moved"
        )


def _the_stop_is_scored(track: Track, row: str) -> None:
    targets = (track.scored != IGNORE).nonzero()
    if not len(targets):
        fail(f"{row}: none of the {track.length} positions of its {track.name} is scored, so it teaches nothing; leave the row out, or look at how labels are masked")
    last = int(targets[-1, 0])
    if track.stop is not None and int(track.scored[last]) != track.stop:
        fail(
            f"{row}: the last target of its {track.name}, at position {last}, is {named(track, last)}, and not the stop id {track.stop}, so the "
            "model would never learn to end; append the stop id to the targets, and do not mask it"
        )


def _ids_are_in_range(track: Track, row: str) -> None:
    low, high = track.ids.start, track.ids.stop
    outside = ((track.scored != IGNORE) & ((track.scored < low) | (track.scored >= high))).nonzero()
    if len(outside):
        at = int(outside[0, 0])
        fail(f"{row}: position {at} of its {track.name} is to be id {int(track.scored[at])}, and the model predicts {span(track.ids)}; the labels are of another vocabulary or codec")


def _units_are_the_codecs(track: Track, row: str, unit_count: int | None) -> None:
    for at, unit in enumerate(track.units):
        if unit_count is not None and not 0 <= unit < unit_count:
            fail(f"{row}: unit {at} is {unit}, and the codec has units {span(range(unit_count))}; encode the row with this codec ('echox-prepare units')")


def named(track: Track, at: int) -> str:
    """What is scored at a position, in an error."""
    return shown(track, int(track.scored[at]))


def shown(track: Track, token: int) -> str:
    """An id and how people read it."""
    return f"id {token} ({track.text([token])!r})"


def span(ids: range) -> str:
    """The first and the last of some ids."""
    return f"{ids.start} to {ids.stop - 1}"


def fail(sentence: str) -> NoReturn:
    """
    Raises:
        TrainingError: always, in these words.
    """
    raise TrainingError(sentence)
