"""A batch as its losses see it, for people: what is heard where, what is masked, what is scored, what is padding."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from echox.models.speech_llm import IGNORE
from echox.tasks.base import Hearing, Track, View

WIDTH = 132
NAME = 10  # columns of what stands before a line
TRACKS = 4  # of a row that are shown: an answer may have dozens of segments
UNITS = 24  # of a track that are shown


def page(stage: str, view: View, row_ids: Sequence[str], shown: Sequence[int]) -> str:
    """The whole batch in a line, some of its rows in full."""
    if not view.tracks and not view.heard:
        why = view.notes or ["give it a `view`"]
        return "\n".join([f"{stage}: this task shows no audit, so its labels were not checked", *(line for note in why for line in _wrapped("note", note))])
    return "\n".join([*_summary(stage, view, row_ids, shown), *(line for row in shown for line in _row(view, row, row_ids[row]))])


def passed(notes: Sequence[str]) -> str:
    """What was checked, and what is to be known beside."""
    checked = "padding is ignored, labels are what is read next, stop tokens are learned, ids and units are in range, codecs agree"
    return "\n".join(_wrapped("passed", checked) + [line for note in notes for line in _wrapped("note", note)])


def failed(fault: str) -> str:
    """What must not be."""
    return "\n".join(_wrapped("FAULT", fault))


def _summary(stage: str, view: View, row_ids: Sequence[str], shown: Sequence[int]) -> Iterator[str]:
    kinds: dict[str, list[int]] = {}
    for track in view.tracks:
        kinds.setdefault(track.name, []).append(int((track.scored != IGNORE).sum()))
    counts = [f"{sum(found)} targets of {name!r} in {len(found)} sequences" for name, found in kinds.items()]
    if view.heard:
        counts.append(f"{sum(clip.length for clip in view.heard)} tokens to be heard in {sum(clip.seconds for clip in view.heard):.1f} s of {len(view.heard)} clips")
    which = "shown are the shortest and the longest" if len(shown) > 1 else "shown is the first"
    yield f"{stage}: a batch of {len(row_ids)} rows as the loss sees it; {'; '.join(counts)}; {which}"
    for name, fingerprint in view.codecs.items():
        yield from _wrapped("codec", f"{name}: {fingerprint}")
    for note in view.notes:
        yield from _wrapped("note", note)


def _row(view: View, row: int, row_id: str) -> Iterator[str]:
    yield f"row {row_id!r}"
    for clip in view.heard:
        if clip.row == row:
            yield from _clip(clip)
    tracks = [track for track in view.tracks if track.row == row]
    for track in tracks[:TRACKS]:
        yield from _track(track)
    if len(tracks) > TRACKS:
        yield from _wrapped("", f"and {len(tracks) - TRACKS} sequences more")


def _clip(clip: Hearing) -> Iterator[str]:
    where = "" if clip.at is None else f" at position {clip.at}"
    said = clip.said[: clip.length].tolist()
    known = f"{clip.length} tokens for CTC: {clip.text(said)!r}" if said else "nothing is known of what it says, so CTC learns nothing from it"
    yield from _wrapped("audio", f"{clip.seconds:.2f} s, {clip.frames} frames{where}; {known}")


def _track(track: Track) -> Iterator[str]:
    read, scored = track.read.tolist(), track.scored.tolist()
    yield from _wrapped(track.name, f"{len(scored)} positions, {sum(label != IGNORE for label in scored)} scored, {len(scored) - track.length} of padding")
    if track.given:
        yield from _wrapped("  given", repr(track.given))
    for kind, places in groupby(range(len(scored)), lambda at: _kind(track, scored, at)):
        places = list(places)
        ids = [scored[at] for at in places] if kind == "scored" else [read[at] for at in places if at < len(read)]
        text = "" if kind == "padding" else f"  {track.text(ids)!r}"
        yield from _wrapped(f"  {kind}", f"{places[0]}-{places[-1]}{text}")
    yield from _shift(track, read, scored)
    if track.units:
        more = f" ... {len(track.units)} in all" if len(track.units) > UNITS else ""
        yield from _wrapped("  units", " ".join(map(str, track.units[:UNITS])) + more)


def _kind(track: Track, scored: Sequence[int], at: int) -> str:
    if scored[at] != IGNORE:
        return "scored"
    return "masked" if at < track.length else "padding"


def _shift(track: Track, read: Sequence[int], scored: Sequence[int]) -> Iterator[str]:
    """The first and the last target behind what is read right before each."""
    targets = [at for at, label in enumerate(scored) if label != IGNORE]
    pairs = []
    for at in dict.fromkeys((*targets[:1], *targets[-1:])):
        before = at + track.ahead - 1
        pairs.append(f"{track.text([read[before]])!r} -> {track.text([scored[at]])!r}" if before >= 0 else f"the beginning -> {track.text([scored[at]])!r}")
    if pairs:
        stop = "cut short, no stop is learned" if track.stop is None else f"the stop id is {track.stop}"
        yield from _wrapped("  shift", f"{' ... '.join(pairs)}; {stop}")


def _wrapped(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - NAME - 2, max_lines=3, placeholder=" ...") or [""]
    return [f"  {label:<{NAME}}{line}" for label, line in zip([name, *[""] * (len(lines) - 1)], lines)]
