"""`echox-prepare window`: long recordings as rows of some seconds each.

Nothing is copied; the rows name the seconds of the recordings.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echox.core.errors import ConfigError, ManifestError, SignalError
from echox.core.progress import progress
from echox.data.audio import AudioHeader, audio_blocks, audio_header
from echox.data.audio_ref import Audio, audio_ref
from echox.data.manifest import Item, OnBroken, Row, read_manifest, write_manifest
from echox.data.rows import STATED_SECONDS

log = logging.getLogger(__name__)

SUFFIX = ".windows.jsonl"
# Power is measured in frames, and a pause is searched for over several.
FRAME_S, PAUSE_S = 0.02, 0.2
# Seconds decoded at once.
BLOCK_S = 60.0


@dataclass(kw_only=True, slots=True)
class WindowsConfig:
    """Cut long recordings into windows: NAME.jsonl becomes NAME.windows.jsonl.

    Its rows are seconds of the same files.
    """

    manifest: str = ""
    """Manifest whose recordings are cut; rows whose words are written down are left as they are,
    for words cannot be cut with the sound."""
    longest_s: float = 30.0
    """Seconds of a window at most."""
    shortest_s: float = 10.0
    """Seconds of a window that ends at a pause at least; after them the quietest place is taken."""
    overlap_s: float | None = None
    """Seconds that a window shares with the next, all of them `longest_s` long; null cuts at
    pauses, without overlap."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with recordings that cannot be read: skip them, each named, or stop."""
    allow_outside: bool = False
    """Allow audio outside the manifest's folder."""

    def __post_init__(self) -> None:
        if not 0 < self.shortest_s <= self.longest_s - 2 * PAUSE_S:
            raise ConfigError(
                f"windows of {self.shortest_s:g} to {self.longest_s:g} s leave no room to look for "
                "a pause; mend shortest_s and longest_s"
            )
        if self.overlap_s is not None and not 0 <= self.overlap_s < self.longest_s:
            raise ConfigError(
                f"overlap_s is {self.overlap_s:g}; use 0 or more and less than longest_s, or null"
            )


def write_windows(config: WindowsConfig) -> None:
    """Write the manifest of windows, and print its path and counts of recordings.

    Raises:
        ConfigError: no manifest is named.
        ManifestError: the manifest is missing, broken beyond what the config allows, or the new one
            cannot be written.
    """
    if not config.manifest:
        raise ConfigError("no manifest was named; give manifest=FILE.jsonl")
    source, counts = Path(config.manifest), {"windows": 0, "with words": 0, "broken": 0}
    target = Path(str(source).removesuffix(".jsonl") + SUFFIX)
    manifest = read_manifest(source, on_broken=config.on_broken, allow_outside=config.allow_outside)
    rows = progress(manifest.rows, "cutting", unit="row")
    write_manifest(target, (window for row in rows for window in _windows(row, config, counts)))
    print(
        f"{target}: {counts['windows']} windows; "
        f"{counts['with words']} long rows with words left as they are; "
        f"{counts['broken']} recordings that cannot be read left out"
    )


def _windows(row: Row, config: WindowsConfig, counts: dict[str, int]) -> Iterator[Row]:
    """Rows that stand for a row: its windows, or itself where it is short or has words."""
    long = [
        (item, item.audio)
        for item in row.turns
        if item.audio is not None and audio_header(item.audio).duration_s > config.longest_s
    ]
    if not long:
        yield row
        return
    # Words cannot be cut with the sound.
    if len(row.turns) > 1 or row.turns[0].text:
        counts["with words"] += 1
        yield row
        return
    # The row is this one turn.
    ((item, audio),) = long
    try:
        spans = window_spans(audio, config)
    except SignalError as error:
        if config.on_broken is OnBroken.refuse:
            raise ManifestError(f"row {row.id!r}: {error}") from error
        log.warning("row %r: %s; left out", row.id, error)
        counts["broken"] += 1
        return
    for number, (start_s, end_s) in enumerate(spans):
        counts["windows"] += 1
        extra = {**row.extra, "recording": row.id}
        yield Row(f"{row.id}-{number:04d}", (_window(item, audio, start_s, end_s),), extra)


def _window(item: Item, audio: Audio, start_s: float, end_s: float) -> Item:
    """The turn with some seconds of its recording as its clip."""
    ref = audio_ref(audio)
    # The recording may itself be a part of a file; milliseconds keep the manifest readable.
    part = ref.between(round(ref.start_s + start_s, 3), round(ref.start_s + end_s, 3))
    # The seconds of the recording are not those of its windows.
    extra = {key: value for key, value in item.extra.items() if key not in STATED_SECONDS}
    return dataclasses.replace(item, audio=part, extra=extra)


def window_spans(audio: Audio, config: WindowsConfig) -> list[tuple[float, float]]:
    """Cut a recording into windows that cover all of it.

    Args:
        audio: recording of any length.
        config: lengths of windows, and whether they overlap.

    Returns:
        windows [N], start and end of each in seconds.

    Raises:
        SignalError: the recording cannot be read to its end.
    """
    if config.overlap_s is None:
        power, header = smoothed_power(audio), audio_header(audio)
        frame_s = _frame_samples(header) / header.rate_hz
        return _spans_at_pauses(power, frame_s, header.duration_s, config)
    recording_s = audio_header(audio).duration_s
    step_s = config.longest_s - config.overlap_s
    # A rest after the last full window that is shorter than a pause joins that window.
    end_s = max(recording_s - config.overlap_s - PAUSE_S, step_s / 2)
    starts = np.arange(0, end_s, step_s).tolist()
    full = [(start_s, start_s + config.longest_s) for start_s in starts[:-1]]
    return [*full, (starts[-1], recording_s)]


def smoothed_power(audio: Audio) -> np.ndarray:
    """Measure the mean power [F] of a recording of any length, in frames of 20 ms.

    Each value is the mean over the 0.2 s around its frame. At rates that have no whole samples in
    20 ms a frame is the nearest number of samples.

    Raises:
        SignalError: the recording cannot be read to its end.
    """
    size = _frame_samples(audio_header(audio))
    powers, rest = [], np.empty(0, dtype=np.float32)
    for block in audio_blocks(audio, BLOCK_S):
        samples = np.concatenate([rest, block.numpy()])
        # Samples of complete frames; the others wait for the next block.
        framed = len(samples) // size * size
        powers.append(np.square(samples[:framed].reshape(-1, size)).mean(axis=1))
        rest = samples[framed:]
    if len(rest):
        powers.append(np.square(rest).mean(keepdims=True))
    kernel = np.ones(round(PAUSE_S / FRAME_S))
    power = np.concatenate(powers)
    # At the ends there is less to average over, which must not look like silence.
    weights = np.convolve(np.ones_like(power), kernel, "same")
    return np.convolve(power, kernel, "same") / weights


def _frame_samples(header: AudioHeader) -> int:
    return max(1, round(FRAME_S * header.rate_hz))


def _spans_at_pauses(
    power: np.ndarray, frame_s: float, recording_s: float, config: WindowsConfig
) -> list[tuple[float, float]]:
    # At 11,025 Hz a frame is no 20 ms, which an hour would make 8 s.
    longest, shortest = int(config.longest_s / frame_s), int(config.shortest_s / frame_s)
    cuts = [0]  # frames
    while len(power) - cuts[-1] > longest:
        first = cuts[-1] + shortest
        # The rest after the cut is no shorter than a window should be, where that is possible.
        last = min(cuts[-1] + longest, max(len(power) - shortest, first + 1))
        candidates = power[first : last + 1]
        # The last of the equally quiet places, so that silence makes windows long.
        quietest = len(candidates) - 1 - int(np.argmin(candidates[::-1]))
        cuts.append(first + quietest)
    return [
        (start * frame_s, min(end * frame_s, recording_s))
        for start, end in zip(cuts, [*cuts[1:], len(power)])
    ]
