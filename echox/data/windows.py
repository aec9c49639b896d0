"""`echox-prepare window`: long recordings as rows of some seconds each. Nothing is copied; the rows name the seconds they mean."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echox.data.audio import AudioHeader, audio_blocks, audio_header
from echox.data.audio_ref import Audio, audio_ref
from echox.data.manifest import OnBroken, Row, read_manifest, write_manifest
from echox.data.rows import STATED_SECONDS
from echox.errors import ConfigError, ManifestError, SignalError
from echox.progress import progress

log = logging.getLogger(__name__)

SUFFIX = ".windows.jsonl"
# Loudness is measured in frames, and a pause is looked for over several.
FRAME_S, PAUSE_S, BLOCK_S = 0.02, 0.2, 60.0


@dataclass(kw_only=True, slots=True)
class WindowsConfig:
    """Cut long recordings into windows: NAME.jsonl becomes NAME.windows.jsonl, whose rows are seconds of the same files."""

    manifest: str = ""
    """Manifest whose recordings are cut; rows whose words are written down are left as they are, for words cannot be cut with the sound."""
    longest_s: float = 30.0
    """Seconds of a window at most."""
    shortest_s: float = 10.0
    """Seconds of a window that ends at a pause at least; after them the quietest place is taken."""
    overlap_s: float | None = None
    """Seconds that a window shares with the next, all of them `longest_s` long; null cuts at pauses, without overlap."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with recordings that cannot be read: skip them, each named, or stop."""
    allow_outside: bool = False
    """Allow audio outside the manifest's folder."""

    def __post_init__(self) -> None:
        if not 0 < self.shortest_s <= self.longest_s - 2 * PAUSE_S:
            raise ConfigError(f"windows of {self.shortest_s:g} to {self.longest_s:g} s leave no room to look for a pause; mend shortest_s and longest_s")
        if self.overlap_s is not None and not 0 <= self.overlap_s < self.longest_s:
            raise ConfigError(f"overlap_s is {self.overlap_s:g}; use 0 or more and less than longest_s, or null")


def write_windows(config: WindowsConfig) -> None:
    """Write the manifest of windows, and print where it is and what became of the recordings.

    Raises:
        ConfigError: no manifest is named. ManifestError: it is missing, broken beyond what the config allows, or cannot be written.
    """
    if not config.manifest:
        raise ConfigError("no manifest was named; give manifest=FILE.jsonl")
    source, counts = Path(config.manifest), {"windows": 0, "with words": 0, "broken": 0}
    target = Path(str(source).removesuffix(".jsonl") + SUFFIX)
    rows = read_manifest(source, on_broken=config.on_broken, allow_outside=config.allow_outside).rows
    write_manifest(target, (piece for row in progress(rows, "cutting", unit="row") for piece in _pieces(row, config, counts)))
    print(f"{target}: {counts['windows']} windows", end="")
    print(f"; {counts['with words']} long rows with words left as they are; {counts['broken']} recordings that cannot be read left out")


def _pieces(row: Row, config: WindowsConfig, counts: dict[str, int]) -> Iterator[Row]:
    long = [item for item in row.turns if item.audio is not None and audio_header(item.audio).duration_s > config.longest_s]
    if not long:
        yield row
        return
    if len(row.turns) > 1 or row.turns[0].text:
        counts["with words"] += 1
        yield row
        return
    (item,) = long
    try:
        spans = windows_of(item.audio, config)
    except SignalError as error:
        if config.on_broken is OnBroken.refuse:
            raise ManifestError(f"row {row.id!r}: {error}") from error
        log.warning("row %r: %s; left out", row.id, error)
        counts["broken"] += 1
        return
    offset_s = audio_ref(item.audio).start_s
    # The seconds of the whole are not those of its windows.
    extra = {key: value for key, value in item.extra.items() if key not in STATED_SECONDS}
    for number, (start_s, end_s) in enumerate(spans):
        counts["windows"] += 1
        part = audio_ref(item.audio).between(round(offset_s + start_s, 3), round(offset_s + end_s, 3))
        yield Row(f"{row.id}-{number:04d}", (dataclasses.replace(item, audio=part, extra=extra),), {**row.extra, "recording": row.id})


def windows_of(audio: Audio, config: WindowsConfig) -> list[tuple[float, float]]:
    """Start and end, seconds, of the windows of a recording; together they are all of it.

    Raises:
        SignalError: the recording cannot be read to its end.
    """
    if config.overlap_s is None:
        header = audio_header(audio)
        return _at_pauses(loudness(audio), _frame_samples(header) / header.rate_hz, header.duration_s, config)
    whole_s = audio_header(audio).duration_s
    step_s = config.longest_s - config.overlap_s
    # What is left after the last whole window and would hardly be a sound goes with it.
    starts = np.arange(0, max(whole_s - config.overlap_s - PAUSE_S, step_s / 2), step_s).tolist()
    return [*((start, start + config.longest_s) for start in starts[:-1]), (starts[-1], whole_s)]


def loudness(audio: Audio) -> np.ndarray:
    """Mean power [N] of each 20 ms, or the nearest whole samples, of a recording of any length, over the 0.2 s around them."""
    size = _frame_samples(audio_header(audio))
    powers, rest = [], np.empty(0, dtype=np.float32)
    for block in audio_blocks(audio, BLOCK_S):
        samples = np.concatenate([rest, block.numpy()])
        whole = len(samples) // size * size
        powers.append(np.square(samples[:whole].reshape(-1, size)).mean(axis=1))
        rest = samples[whole:]
    if len(rest):
        powers.append(np.square(rest).mean(keepdims=True))
    kernel = np.ones(round(PAUSE_S / FRAME_S))
    # At the ends there is less to average over, which must not look like silence.
    power = np.concatenate(powers)
    return np.convolve(power, kernel, "same") / np.convolve(np.ones_like(power), kernel, "same")


def _frame_samples(header: AudioHeader) -> int:
    return max(1, round(FRAME_S * header.rate_hz))


def _at_pauses(power: np.ndarray, frame_s: float, whole_s: float, config: WindowsConfig) -> list[tuple[float, float]]:
    # At 11,025 Hz a frame is no 20 ms, which an hour would make 8 s.
    longest, shortest = int(config.longest_s / frame_s), int(config.shortest_s / frame_s)
    cuts = [0]
    while len(power) - cuts[-1] > longest:
        # The last of the equally quiet places, so that silence makes windows long; and no rest shorter than a window should be.
        last = min(cuts[-1] + longest, max(len(power) - shortest, cuts[-1] + shortest + 1))
        quiet = power[cuts[-1] + shortest : last + 1]
        cuts.append(cuts[-1] + shortest + len(quiet) - 1 - int(np.argmin(quiet[::-1])))
    return [(start * frame_s, min(end * frame_s, whole_s)) for start, end in zip(cuts, [*cuts[1:], len(power)])]
