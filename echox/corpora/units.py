"""Writing a codec's units into manifests: shard by shard, by any number of processes, in batches of like length."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import Codec
from echox.corpora.unit_shards import Finished, Made, UnitShards
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.cache import cost_batches
from echox.data.line_shards import LineShards
from echox.data.manifest import OnBroken, Problem, Row, manifest_fingerprint, with_units
from echox.errors import ConfigError, ManifestError, SignalError
from echox.number_format import name_of
from echox.progress import Bar

log = logging.getLogger(__name__)

SUFFIX = ".units.jsonl"
BATCH_CLIPS = 32
# Share of a batch that may be padding. A CPU gains nothing from batches that would pay for more of it, and in a shard of hundreds of clips
# there are enough of like length for a GPU.
PADDING = 0.1
# Batches whose audio is read while the codec is busy with one.
READ_AHEAD = 2
SHOWN_EVERY_S = 1.0


@dataclass(kw_only=True, slots=True)
class UnitsConfig:
    """Encode the assistant's audio of manifests with a fitted codec; NAME.jsonl becomes NAME.units.jsonl beside it."""

    manifests: list[str] = field(default_factory=list)
    """Manifests to read."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with broken rows: skip them, each named with its line in NAME.units.broken.jsonl, or stop at the first shard with one."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""
    cache_dir: str = "runs/cache"
    """Folder of finished shards, so that a killed run goes on; shared by all processes that work together."""
    batch_s: float = 120.0
    """Audio encoded at once, seconds with padding."""
    rows_per_shard: int = 512
    """Lines of a manifest that are one piece of work, which a killed process loses at most."""
    part: str = "1/1"
    """Which of so many equal parts of the shards this job makes: 2/8 is the second of eight. Jobs that see the same cache_dir need no parts,
    for each takes what is left; the last to finish writes the manifest."""
    reading_threads: int = 2
    """Threads that read audio while the codec works."""

    def __post_init__(self) -> None:
        for name in ("batch_s", "rows_per_shard", "reading_threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use more than 0")
        _part(self.part)


def write_units(config: UnitsConfig, codec: Codec, *, device: torch.device, bf16: bool, first: float = 0.0, shows: bool = True) -> list[Path]:
    """Encode and write what no other process has; safe to kill and call again, and to call from any number of processes.

    Args:
        codec: on `device`.
        bf16: encode under bfloat16 autocast.
        first: where among the shards to begin, 0 to 1, so that processes started together meet at few.
        shows: draw a bar.
    Returns:
        the manifests that are complete; every row names the codec's fingerprint as "codec".
    Raises:
        ManifestError: a manifest is missing, has no usable row, or has a broken one and `on_broken` is refuse. AssetError: the disk is full.
    """
    return [path for name in config.manifests if (path := _write(Path(name), config, codec, device, bf16, first, shows)) is not None]


def units_path(manifest: str | Path) -> Path:
    """Where the manifest with units stands."""
    return Path(str(manifest).removesuffix(".jsonl") + SUFFIX)


def unit_shards(path: Path, config: UnitsConfig, codec_fingerprint: str, bf16: bool) -> UnitShards:
    """The shards of one manifest; finished ones are found by the manifest's content, which audio is accepted, the codec, the
    number format it is computed in and the size of shards."""
    source = LineShards(path, config.rows_per_shard, allow_outside=config.allow_outside)
    name = f"{codec_fingerprint}-{name_of(bf16)}-{manifest_fingerprint(path)}-{config.rows_per_shard}"
    name += "-outside" if config.allow_outside else ""
    return UnitShards(source, Path(config.cache_dir) / "units" / name, units_path(path))


def shard_numbers(shards: UnitShards, part: str, first: float = 0.0) -> list[int]:
    """The shards of a job's part, beginning at `first` of them."""
    index, count = _part(part)
    mine = list(range(index - 1, len(shards), count))
    begin = int(first * len(mine))
    return mine[begin:] + mine[:begin]


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"part is {text!r}; write it as 1/8 to 8/8")
    return int(match[1]), int(match[2])


def _write(path: Path, config: UnitsConfig, codec: Codec, device: torch.device, bf16: bool, first: float, shows: bool) -> Path | None:
    shards = unit_shards(path, config, codec.fingerprint(), bf16)
    with UnitsBar(shards, path.name, shows) as bar:
        shards.make(shard_numbers(shards, config.part, first), _Encoding(shards.source, config, codec, device, bf16, bar))
    if not shards.merge():
        log.warning("%s: %d of %d shards are finished; the others are other jobs' parts", shards.target, len(shards.done()), len(shards))
        return None
    if shows and shards.broken_path.exists():
        log.warning("%s: rows without units are named in %s; once they are mended, delete %s to try them again", shards.target, shards.broken_path, shards.folder)
    return shards.target


class UnitsBar:
    """Rows done of a manifest, by whomever; hours of audio encoded per hour; time left."""

    def __init__(self, shards: UnitShards, label: str, shows: bool) -> None:
        self._shards = shards
        done = shards.done()
        self._found_s = _audio_s(done)
        self._began_s = self._shown_s = time.monotonic()
        self._bar = Bar(f"units of {label}", shards.source.lines, initial=self._rows(done), shows=shows)

    def __enter__(self) -> UnitsBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.update()
        self._bar.__exit__(*raised)

    def update(self, rows: int = 0, audio_s: float = 0.0) -> None:
        """Show all finished shards, and so many rows and seconds of one that is not; now and then, for it looks through a folder."""
        if not self._bar.shows or (rows and time.monotonic() - self._shown_s < SHOWN_EVERY_S):
            return
        self._shown_s = time.monotonic()
        done = self._shards.done()
        encoded_s = _audio_s(done) - self._found_s + audio_s
        pace = encoded_s / max(time.monotonic() - self._began_s, 1e-3)
        broken = sum(finished.broken for finished in done.values())
        note = f"{pace:,.0f} h of audio per h, {(self._found_s + encoded_s) / 3600:,.2f} h done"
        now = min(self._rows(done) + rows, self._bar.total)
        self._bar.update(now - self._bar.n, note + (f", {broken} rows broken" if broken else ""))

    def _rows(self, done: dict[int, Finished]) -> int:
        size, lines = self._shards.source.size, self._shards.source.lines
        return sum(min(size, lines - number * size) for number in done)


def _audio_s(done: dict[int, Finished]) -> float:
    return sum(finished.audio_s for finished in done.values())


class _Encoding:
    """What makes a shard: its rows read, their answers encoded in batches of like length."""

    def __init__(self, source: LineShards, config: UnitsConfig, codec: Codec, device: torch.device, bf16: bool, bar: UnitsBar) -> None:
        self.source, self.config, self.codec, self.device, self.bf16, self.bar = source, config, codec, device, bf16, bar

    def __call__(self, number: int) -> Made:
        found = list(self.source.rows(number))
        problems = [row for _, row in found if isinstance(row, Problem)]
        spoken = {row.id: (line, row) for line, row in found if isinstance(row, Row) and row.answer is not None and row.answer.audio is not None}
        costs = {row_id: _cost(row) for row_id, (_, row) in spoken.items()}
        batches = cost_batches(sorted((costs[row_id], row_id) for row_id in spoken), round(self.config.batch_s * 100), BATCH_CLIPS, PADDING)
        units: dict[str, list[int]] = {}
        audio_s = 0.0
        for ids, clips in self._read(batches, spoken):
            heard = {row_id: clip for row_id, clip in zip(ids, clips) if isinstance(clip, Tensor)}
            problems += [Problem(spoken[row_id][0], row_id, clip) for row_id, clip in zip(ids, clips) if isinstance(clip, str)]
            self._refuse(problems)
            units.update(zip(heard, self._encode(list(heard.values())) if heard else []))
            audio_s += sum(map(len, heard.values())) / self.codec.rate_hz
            self.bar.update(len(units), audio_s)
        self._refuse(problems)
        rows = [(line, _with_units(row, units[row_id], self.codec)) for row_id, (line, row) in spoken.items() if row_id in units]
        return Made(rows, sorted(problems, key=lambda problem: problem.line), audio_s)

    def _read(self, batches: Iterable[list[str]], spoken: dict[str, tuple[int, Row]]) -> Iterator[tuple[list[str], list[Tensor | str]]]:
        """Every batch with its clips, or why one cannot be heard, read ahead in threads."""
        with ThreadPoolExecutor(self.config.reading_threads) as pool:
            ahead: deque = deque()
            for ids in batches:
                ahead.append((ids, [pool.submit(_clip, spoken[row_id][1], self.codec.rate_hz) for row_id in ids]))
                if len(ahead) > READ_AHEAD:
                    yield _finished(ahead.popleft())
            yield from map(_finished, ahead)

    @torch.no_grad()
    def _encode(self, clips: Sequence[Tensor]) -> list[list[int]]:
        wave = pad_waveforms(clips, self.codec.rate_hz).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            units = self.codec.encode(wave)
        return units.rows()

    def _refuse(self, problems: Sequence[Problem]) -> None:
        if problems and self.config.on_broken is OnBroken.refuse:
            raise ManifestError(f"a broken row in {self.source.path}: {problems[0]}; mend it, or leave it out by on_broken=skip")


def _cost(row: Row) -> int:
    return round(audio_header(row.answer.audio).duration_s * 100)


def _clip(row: Row, rate_hz: int) -> Tensor | str:
    try:
        return load_audio(row.answer.audio, rate_hz)
    except SignalError as error:
        return str(error)


def _finished(batch: tuple[list[str], list]) -> tuple[list[str], list[Tensor | str]]:
    ids, futures = batch
    return ids, [future.result() for future in futures]


def _with_units(row: Row, units: list[int], codec: Codec) -> Row:
    return dataclasses.replace(with_units(row, units, codec.codebooks), extra={**row.extra, "codec": codec.fingerprint()})
