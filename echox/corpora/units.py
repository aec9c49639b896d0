"""Encoding of manifests' audio into a codec's units.

The work is done shard by shard, by any number of processes, in batches of clips of similar length.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import Codec, encode_checked
from echox.core.durations import duration_text
from echox.core.errors import ConfigError, ManifestError, SignalError
from echox.core.number_format import name_of
from echox.core.progress import Bar
from echox.core.sources import code_of
from echox.corpora.unit_shards import EncodedShard, ShardSummary, UnitShards
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.cache import cost_batches
from echox.data.code_caches import adopt
from echox.data.line_shards import LineShards
from echox.data.manifest import OnBroken, Problem, Row, manifest_fingerprint, with_units

log = logging.getLogger(__name__)

SUFFIX = ".units.jsonl"
BATCH_CLIPS = 32
# Share of a batch that may be padding. A CPU gains nothing from batches that would pay for more of
# it, and in a shard of hundreds of clips there are enough of similar length for a GPU.
PADDING = 0.1
# Batches whose audio is read while the codec is busy with one.
READ_AHEAD = 2
SHOWN_EVERY_S = 1.0  # between updates of the bar, each of which lists a folder
COSTS_PER_S = 100  # costs of clips are hundredths of seconds, because batches are cut by integers


@dataclass(kw_only=True, slots=True)
class UnitsConfig:
    """Encode the assistant's audio of manifests; NAME.jsonl becomes NAME.units.jsonl beside it.

    Raises:
        ConfigError: a number is out of range, or `part` is written otherwise.
    """

    manifests: list[str] = field(default_factory=list)
    """Manifests to read."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with broken rows: skip them, each named with its line in NAME.units.broken.jsonl,
    or stop at the first shard with one."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""
    cache_dir: str = "runs/cache"
    """Folder of finished shards, so that a killed run goes on; shared by all processes that work
    together."""
    batch_s: float = 120.0
    """Audio encoded at once, seconds with padding."""
    rows_per_shard: int = 512
    """Lines of a manifest that are one piece of work, which a killed process loses at most."""
    part: str = "1/1"
    """Which of so many equal parts of the shards this job makes: 2/8 is the second of eight. Jobs
    that see the same cache_dir need no parts, for each takes what is left; the last to finish
    writes the manifest."""
    reading_threads: int = 2
    """Threads that read audio while the codec works."""

    def __post_init__(self) -> None:
        for name in ("batch_s", "rows_per_shard", "reading_threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use more than 0")
        _part(self.part)


def write_units(
    config: UnitsConfig,
    codec: Codec,
    *,
    device: torch.device,
    bf16: bool,
    first: float = 0.0,
    shows: bool = True,
) -> list[Path]:
    """Encode the shards that no other process has, and merge the manifests that are complete.

    It may be killed and called again, and called from any number of processes.

    Args:
        config: manifests and how to read them.
        codec: on `device`.
        device: of the codec.
        bf16: encode under bfloat16 autocast.
        first: where among the shards to begin, 0 to 1, so that processes started together meet at
            few of them.
        shows: draw a bar.

    Returns:
        the manifests that are complete; every row names the codec's fingerprint as "codec".

    Raises:
        ManifestError: a manifest is missing, has no usable row, or has a broken row while
            `on_broken` is refuse.
        ConfigError: the codec gives units beyond the vocabulary that it states.
        AssetError: the disk is full.
    """
    paths = [
        _write(Path(name), config, codec, device, bf16, first, shows) for name in config.manifests
    ]
    return [path for path in paths if path is not None]


def units_path(manifest: str | Path) -> Path:
    """Return the path of the manifest with units: NAME.units.jsonl for NAME.jsonl."""
    return Path(str(manifest).removesuffix(".jsonl") + SUFFIX)


def unit_shards(path: Path, config: UnitsConfig, codec: Codec, bf16: bool) -> UnitShards:
    """Return the shards of one manifest.

    Finished shards are found again by everything that their content depends on: the manifest's
    content, which audio is accepted, the codec and its code, its number format, and the lines of a
    shard.

    Args:
        path: of the manifest.
        config: of the encoding.
        codec: to encode with.
        bf16: encode under bfloat16 autocast.

    Raises:
        ManifestError: the manifest is missing, unreadable or empty.
    """
    source = LineShards(path, config.rows_per_shard, allow_outside=config.allow_outside)
    name = (
        f"{codec.fingerprint()}-{name_of(bf16)}-{manifest_fingerprint(path)}"
        f"-{config.rows_per_shard}"
    )
    # A shard in which rows were refused for their paths must not serve a run that accepts them.
    earlier = name + ("-outside" if config.allow_outside else "")
    code, folder = code_of(codec), Path(config.cache_dir) / "units"
    name = f"{earlier}-{code.digest}"
    # Earlier versions did not name the code.
    if code.is_own:
        adopt(folder, earlier, name)
    return UnitShards(source, folder / name, units_path(path))


def shard_numbers(shards: UnitShards, part: str, first: float = 0.0) -> list[int]:
    """Return the numbers of the shards of a job.

    Args:
        shards: of a manifest.
        part: such as "2/8", the second of eight equal parts.
        first: where to begin, as a share of the job's shards, 0 to 1; those before come last.

    Raises:
        ConfigError: `part` is written otherwise.
    """
    index, count = _part(part)
    # Every `count`-th, so that all parts are of the same size wherever the long clips are.
    mine = list(range(index - 1, len(shards), count))
    begin = int(first * len(mine))
    return mine[begin:] + mine[:begin]


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"part is {text!r}; write it as 1/8 to 8/8")
    return int(match[1]), int(match[2])


def _write(
    path: Path,
    config: UnitsConfig,
    codec: Codec,
    device: torch.device,
    bf16: bool,
    first: float,
    shows: bool,
) -> Path | None:
    shards = unit_shards(path, config, codec, bf16)
    with UnitsBar(shards, path.name, shows) as bar:
        encoder = _ShardEncoder(shards.source, config, codec, device, bf16, bar)
        numbers = shard_numbers(shards, config.part, first)
        shards.encode(numbers, encoder)
        # Whichever process finishes the last shard merges; here it may be another's.
        merged = shards.merge()
        # Merging may have met shards that were damaged since they were written.
        if not merged and not shards.done().keys() >= set(numbers):
            shards.encode(numbers, encoder)
            merged = shards.merge()
    if not merged:
        log.warning(
            "%s: %d of %d shards are finished; the others are other jobs' parts",
            shards.target,
            len(shards.done()),
            len(shards),
        )
        return None
    if shows:
        _warn_of_broken_rows(shards)
    return shards.target


def _warn_of_broken_rows(shards: UnitShards) -> None:
    if shards.broken_path.exists():
        log.warning(
            "%s: rows without units are named in %s; once they are mended, delete %s to try them "
            "again",
            shards.target,
            shards.broken_path,
            shards.folder,
        )


class UnitsBar:
    """Progress of a manifest over all processes: rows, hours of audio per hour, time left.

    Args:
        shards: of the manifest.
        label: name of the manifest.
        shows: draw the bar.
    """

    def __init__(self, shards: UnitShards, label: str, shows: bool) -> None:
        self._shards = shards
        done = shards.done()
        self._before_s = _audio_s(done)  # encoded by earlier runs, which do not count for the pace
        self._began_s = self._shown_s = time.monotonic()
        self._bar = Bar(
            f"units of {label}", shards.source.lines, initial=self._rows(done), shows=shows
        )

    def __enter__(self) -> UnitsBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        # Without a shard in progress, so that the last line shows what is on the disk.
        self.update()
        self._bar.__exit__(*raised)

    def update(self, rows: int = 0, audio_s: float = 0.0) -> None:
        """Show all finished shards and the progress in an unfinished one.

        Args:
            rows: done of the unfinished shard; with 0 the bar is drawn at once, otherwise at most
                every `SHOWN_EVERY_S`.
            audio_s: seconds encoded of the unfinished shard.
        """
        if not self._bar.shows or (rows and time.monotonic() - self._shown_s < SHOWN_EVERY_S):
            return
        self._shown_s = time.monotonic()
        done = self._shards.done()
        # Other processes' shards count too: the pace is that of all together.
        encoded_s = _audio_s(done) - self._before_s + audio_s
        pace = encoded_s / max(time.monotonic() - self._began_s, 1e-3)
        broken = sum(summary.broken for summary in done.values())
        done_s = self._before_s + encoded_s
        note = f"{pace:,.0f} h of audio per h, {duration_text(done_s)} done"
        # Another process may have finished the very shard whose rows are added here.
        now = self._bar.within_total(self._rows(done) + rows)
        self._bar.update(now - self._bar.n, note + (f", {broken} rows broken" if broken else ""))

    def _rows(self, done: dict[int, ShardSummary]) -> int:
        # By lines, not by rows with units: the last shard may have fewer than the others.
        size, lines = self._shards.source.size, self._shards.source.lines
        return sum(min(size, lines - number * size) for number in done)


def _audio_s(done: dict[int, ShardSummary]) -> float:
    return sum(summary.audio_s for summary in done.values())


class _ShardEncoder:
    """Reads the rows of a shard and encodes their answers in batches of similar length."""

    def __init__(
        self,
        source: LineShards,
        config: UnitsConfig,
        codec: Codec,
        device: torch.device,
        bf16: bool,
        bar: UnitsBar,
    ) -> None:
        self.source = source
        self.config = config
        self.codec = codec
        self.device = device
        self.bf16 = bf16
        self.bar = bar

    def __call__(self, number: int) -> EncodedShard:
        lines = list(self.source.rows(number))
        problems = [row for _, row in lines if isinstance(row, Problem)]
        rows = {
            row.id: (line, row)
            for line, row in lines
            if isinstance(row, Row) and row.answer is not None and row.answer.audio is not None
        }
        units: dict[str, list[int]] = {}
        audio_s = 0.0  # encoded
        for ids, clips in self._read(self._batches(rows), rows):
            waves = {row_id: clip for row_id, clip in zip(ids, clips) if isinstance(clip, Tensor)}
            problems += [
                Problem(rows[row_id][0], row_id, reason)
                for row_id, reason in zip(ids, clips)
                if isinstance(reason, str)
            ]
            # Before the codec runs: a refused manifest should not take the time of a batch.
            self._refuse(problems)
            units.update(zip(waves, self._encode(list(waves.values())) if waves else []))
            audio_s += sum(map(len, waves.values())) / self.codec.rate_hz
            self.bar.update(len(units), audio_s)
        # Once more, for a shard without any batch.
        self._refuse(problems)
        # In the manifest's order, not in that of the batches.
        encoded = [
            (line, _with_units(row, units[row_id], self.codec))
            for row_id, (line, row) in rows.items()
            if row_id in units
        ]
        return EncodedShard(encoded, sorted(problems, key=lambda problem: problem.line), audio_s)

    def _batches(self, rows: dict[str, tuple[int, Row]]) -> Iterator[list[str]]:
        """Ids of the rows of each batch, the shortest clips first."""
        order = sorted((_cost(row), row_id) for row_id, (_, row) in rows.items())
        batch_cost = round(self.config.batch_s * COSTS_PER_S)
        return cost_batches(order, batch_cost, BATCH_CLIPS, PADDING)

    def _read(
        self, batches: Iterable[list[str]], rows: dict[str, tuple[int, Row]]
    ) -> Iterator[tuple[list[str], list[Tensor | str]]]:
        """Each batch with its clips [T] or the reasons why they cannot be read, read in threads."""
        with ThreadPoolExecutor(self.config.reading_threads) as pool:
            ahead: deque[tuple[list[str], list[Future]]] = deque()
            for ids in batches:
                clips = [pool.submit(_clip, rows[row_id][1], self.codec.rate_hz) for row_id in ids]
                ahead.append((ids, clips))
                if len(ahead) > READ_AHEAD:
                    yield _results(ahead.popleft())
            yield from map(_results, ahead)

    @torch.no_grad()
    def _encode(self, clips: Sequence[Tensor]) -> list[list[int]]:
        """Units of each clip [T]."""
        wave = pad_waveforms(clips, self.codec.rate_hz).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            units = encode_checked(self.codec, wave)
        return units.rows()

    def _refuse(self, problems: Sequence[Problem]) -> None:
        if problems and self.config.on_broken is OnBroken.refuse:
            raise ManifestError(
                f"a broken row in {self.source.path}: {problems[0]}; "
                "mend it, or leave it out by on_broken=skip"
            )


def _cost(row: Row) -> int:
    # From the header: lengths are needed before any audio is read.
    return round(audio_header(row.require_answer().require_audio()).duration_s * COSTS_PER_S)


def _clip(row: Row, rate_hz: int) -> Tensor | str:
    """The answer's samples [T], or the reason why they cannot be read."""
    try:
        return load_audio(row.require_answer().require_audio(), rate_hz)
    except SignalError as error:
        # Returned, not raised: the other clips of the batch are still encoded.
        return str(error)


def _results(batch: tuple[list[str], list[Future]]) -> tuple[list[str], list[Tensor | str]]:
    ids, futures = batch
    return ids, [future.result() for future in futures]


def _with_units(row: Row, units: list[int], codec: Codec) -> Row:
    # The fingerprint keeps later steps from reading the units with another codec.
    extra = {**row.extra, "codec": codec.fingerprint()}
    return dataclasses.replace(with_units(row, units, codec.codebooks), extra=extra)
