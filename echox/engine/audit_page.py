"""The audit's page: a batch as its losses see it, printed for people.

It shows which audio stands where, what is masked, what is scored, and what is padding.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from echox.models.speech_llm import IGNORE
from echox.tasks.base import AuditBatch, CtcTargets, TokenTargets

LINE_COLUMNS = 132
NAME_COLUMNS = 10  # of the name before a line
MAX_TRACKS = 4  # shown of a row: an answer may have dozens of segments
MAX_UNITS = 24  # shown of a track


def page(stage: str, view: AuditBatch, row_ids: Sequence[str], shown: Sequence[int]) -> str:
    """Print the batch as a whole in a line, and some of its rows in full.

    Args:
        stage: the stage's name.
        view: the batch's token and CTC targets.
        row_ids: manifest ids of the batch's rows.
        shown: indices of the rows to print.
    """
    if not view.tracks and not view.ctc_targets:
        reasons = view.notes or ["give it an `audit_batch`"]
        lines = [f"{stage}: this task shows no audit, so its labels were not checked"]
        return "\n".join([*lines, *(line for note in reasons for line in _wrapped("note", note))])
    rows = (line for row in shown for line in _row(view, row, row_ids[row]))
    return "\n".join([*_summary(stage, view, row_ids, shown), *rows])


def passed(notes: Sequence[str]) -> str:
    """Print the checks that were passed, and the notes of the trial."""
    checks = (
        "padding is ignored, labels are what is read next, stop tokens are learned, ids and units "
        "are in range, codecs agree"
    )
    lines = [line for note in notes for line in _wrapped("note", note)]
    return "\n".join(_wrapped("passed", checks) + lines)


def failed(fault: str) -> str:
    """Print the sentence of a failed check."""
    return "\n".join(_wrapped("FAULT", fault))


def _summary(
    stage: str, view: AuditBatch, row_ids: Sequence[str], shown: Sequence[int]
) -> Iterator[str]:
    counts = "; ".join(_target_counts(view))
    which = "shown are the shortest and the longest" if len(shown) > 1 else "shown is the first"
    yield f"{stage}: a batch of {len(row_ids)} rows as the loss sees it; {counts}; {which}"
    for name, fingerprint in view.codecs.items():
        yield from _wrapped("codec", f"{name}: {fingerprint}")
    for note in view.notes:
        yield from _wrapped("note", note)


def _target_counts(view: AuditBatch) -> Iterator[str]:
    """Count the targets of each kind in the whole batch."""
    counts_by_name: dict[str, list[int]] = {}
    for track in view.tracks:
        count = int((track.scored != IGNORE).sum())
        counts_by_name.setdefault(track.name, []).append(count)
    for name, counts in counts_by_name.items():
        yield f"{sum(counts)} targets of {name!r} in {len(counts)} sequences"
    if view.ctc_targets:
        tokens = sum(clip.length for clip in view.ctc_targets)
        seconds = sum(clip.seconds for clip in view.ctc_targets)
        yield f"{tokens} tokens for CTC in {seconds:.1f} s of {len(view.ctc_targets)} clips"


def _row(view: AuditBatch, row: int, row_id: str) -> Iterator[str]:
    yield f"row {row_id!r}"
    for clip in view.ctc_targets:
        if clip.row == row:
            yield from _clip(clip)
    tracks = [track for track in view.tracks if track.row == row]
    for track in tracks[:MAX_TRACKS]:
        yield from _track(track)
    if len(tracks) > MAX_TRACKS:
        yield from _wrapped("", f"and {len(tracks) - MAX_TRACKS} sequences more")


def _clip(clip: CtcTargets) -> Iterator[str]:
    position = "" if clip.at is None else f" at position {clip.at}"
    transcript = clip.labels[: clip.length].tolist()
    if transcript:
        targets = f"{clip.length} tokens for CTC: {clip.text(transcript)!r}"
    else:
        targets = "its transcript is not known, so it has no CTC loss"
    text = f"{clip.seconds:.2f} s, {clip.frames} frames{position}; {targets}"
    yield from _wrapped("audio", text)


def _track(track: TokenTargets) -> Iterator[str]:
    read, scored = track.read.tolist(), track.scored.tolist()
    targets = sum(label != IGNORE for label in scored)
    padding = len(scored) - track.length
    counts = f"{len(scored)} positions, {targets} scored, {padding} of padding"
    yield from _wrapped(track.name, counts)
    if track.given:
        # As repr, which shows spaces at the ends and special characters.
        yield from _wrapped("  given", repr(track.given))
    yield from _runs(track, read, scored)
    yield from _shift(track, read, scored)
    if track.units:
        count = len(track.units)
        more = f" ... {count} in all" if count > MAX_UNITS else ""
        yield from _wrapped("  units", " ".join(map(str, track.units[:MAX_UNITS])) + more)


def _runs(track: TokenTargets, read: Sequence[int], scored: Sequence[int]) -> Iterator[str]:
    """Print each run of positions of one kind: scored, masked or padding."""
    for kind, run in groupby(range(len(scored)), lambda at: _kind(track, scored, at)):
        positions = list(run)
        if kind == "scored":
            ids = [scored[at] for at in positions]
        else:
            # A track may have more labels than ids that are read.
            ids = [read[at] for at in positions if at < len(read)]
        text = "" if kind == "padding" else f"  {track.text(ids)!r}"
        yield from _wrapped(f"  {kind}", f"{positions[0]}-{positions[-1]}{text}")


def _kind(track: TokenTargets, scored: Sequence[int], at: int) -> str:
    if scored[at] != IGNORE:
        return "scored"
    return "masked" if at < track.length else "padding"


def _shift(track: TokenTargets, read: Sequence[int], scored: Sequence[int]) -> Iterator[str]:
    """Print the first and the last target, each after the id that is read right before it."""
    targets = [at for at, label in enumerate(scored) if label != IGNORE]
    pairs = []
    # Once where the first target is the last one too.
    for at in dict.fromkeys((*targets[:1], *targets[-1:])):
        before = at + track.ahead - 1
        previous = repr(track.text([read[before]])) if before >= 0 else "the beginning"
        pairs.append(f"{previous} -> {track.text([scored[at]])!r}")
    if not pairs:
        return
    if track.stop is None:
        stop = "cut short, no stop is learned"
    else:
        stop = f"the stop id is {track.stop}"
    yield from _wrapped("  shift", f"{' ... '.join(pairs)}; {stop}")


def _wrapped(name: str, text: str) -> list[str]:
    """Wrap a text over three lines at most, the first after its name."""
    width = LINE_COLUMNS - NAME_COLUMNS - 2
    # Cut there, because answers and lists of ids may be long.
    lines = textwrap.wrap(text, width, max_lines=3, placeholder=" ...") or [""]
    names = [name, *[""] * (len(lines) - 1)]
    return [f"  {label:<{NAME_COLUMNS}}{line}" for label, line in zip(names, lines)]
