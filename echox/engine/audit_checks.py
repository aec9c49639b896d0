"""The audit's checks of a batch without a model: masks, shifts, stop tokens, ranges, codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from echox.core.errors import TrainingError
from echox.models.speech_llm import IGNORE
from echox.tasks.base import AuditBatch, CtcTargets, TokenTargets


def check_batch(view: AuditBatch, row_ids: Sequence[str]) -> None:
    """Check all that can be seen without a model.

    Args:
        view: the batch's token and CTC targets.
        row_ids: manifest ids of the batch's rows, for the error.

    Raises:
        TrainingError: a check fails; the sentence names row, position, values and the way out.
    """
    # Padding first: the other checks assume that every scored position is real.
    checks = (_check_padding, _check_shift, _check_stop_token, _check_id_range)
    for track in view.tracks:
        row = f"row {row_ids[track.row]!r}"
        for check in checks:
            check(track, row)
        _check_units(track, row, view.unit_count)
    for clip in view.ctc_targets:
        _check_ctc_ids(clip, f"row {row_ids[clip.row]!r}")
    # Fingerprints of the codec in use, of the one behind the units, and of each checkpoint's.
    if len(set(view.codecs.values())) > 1:
        codecs = ", ".join(f"{name} {fingerprint}" for name, fingerprint in view.codecs.items())
        fail(
            f"the codecs differ ({codecs}); set codec to the one that units and checkpoints were "
            "made with, or make them anew with this one"
        )


def _check_padding(track: TokenTargets, row: str) -> None:
    beyond = (track.scored[track.length :] != IGNORE).nonzero()
    if len(beyond):
        at = track.length + int(beyond[0, 0])
        fail(
            f"{row}: position {at} of its {track.name} is padding ({track.length} positions are "
            f"real), but {target_text(track, at)} is scored there; fill labels with {IGNORE} past "
            "each row's length"
        )


def _check_shift(track: TokenTargets, row: str) -> None:
    """Check that each label is the id read `ahead` positions later."""
    # The last `ahead` labels may be of ids that are never read, such as the stop token.
    scored = track.scored[: max(0, len(track.read) - track.ahead)]
    read = track.read[track.ahead : track.ahead + len(scored)]
    wrong = ((scored != IGNORE) & (scored != read)).nonzero()
    if len(wrong):
        at = int(wrong[0, 0])
        fail(
            f"{row}: at position {at} of its {track.name}, {target_text(track, at)} is scored, but "
            f"{token_text(track, int(read[at]))} is read next; labels must be the ids that are "
            "read, one place earlier, so look at how labels are moved"
        )


def _check_stop_token(track: TokenTargets, row: str) -> None:
    targets = (track.scored != IGNORE).nonzero()
    if not len(targets):
        fail(
            f"{row}: none of the {track.length} positions of its {track.name} is scored, so it "
            "teaches nothing; leave the row out, or look at how labels are masked"
        )
    last = int(targets[-1, 0])
    # A sequence that is cut short has no stop token.
    if track.stop is not None and int(track.scored[last]) != track.stop:
        fail(
            f"{row}: the last target of its {track.name}, at position {last}, is "
            f"{target_text(track, last)}, and not the stop id {track.stop}, so the model would "
            "never learn to end; append the stop id to the targets, and do not mask it"
        )


def _check_id_range(track: TokenTargets, row: str) -> None:
    low, high = track.ids.start, track.ids.stop
    outside = ((track.scored != IGNORE) & ((track.scored < low) | (track.scored >= high))).nonzero()
    if len(outside):
        at = int(outside[0, 0])
        # The bare id: a tokenizer may fail on one it does not have.
        fail(
            f"{row}: position {at} of its {track.name} is to be id {int(track.scored[at])}, and "
            f"the model predicts {range_text(track.ids)}; the labels are of another vocabulary or "
            "codec"
        )


def _check_units(track: TokenTargets, row: str, unit_count: int | None) -> None:
    # Without a codec the number of units is not known.
    for at, unit in enumerate(track.units):
        if unit_count is not None and not 0 <= unit < unit_count:
            fail(
                f"{row}: unit {at} is {unit}, and the codec has units "
                f"{range_text(range(unit_count))}; encode the row with this codec ('echox-prepare "
                "units')"
            )


def _check_ctc_ids(clip: CtcTargets, row: str) -> None:
    for at, token in enumerate(clip.labels[: clip.length].tolist()):
        if token not in clip.ids:
            fail(
                f"{row}: token {at} of its clip's transcript is id {token}, and CTC predicts "
                f"{range_text(clip.ids)} beside its blank; look at how targets are made"
            )


def target_text(track: TokenTargets, at: int) -> str:
    """Describe the label at a position, for an error."""
    return token_text(track, int(track.scored[at]))


def token_text(track: TokenTargets, token: int) -> str:
    """Describe a token id and its text, for an error."""
    return f"id {token} ({track.text([token])!r})"


def range_text(ids: range) -> str:
    """Describe a range of ids by its first and its last."""
    return f"{ids.start} to {ids.stop - 1}"


def fail(sentence: str) -> NoReturn:
    """Report a failed check.

    Raises:
        TrainingError: always, with this sentence.
    """
    raise TrainingError(sentence)
