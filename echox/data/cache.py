"""A cache of one array per key on disk: resumable, memory-mapped, deterministic.

It holds, for instance, frozen encoder features of thousands of clips. A folder per fingerprint
holds shards. A shard is a `.bin` with the arrays end to end, and a `.json` with the location of
each, written last: a shard without it was interrupted and is made again. So is a shard that was
damaged since, with a line that says so; see `ArrayCache` for when that is noticed.
"""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from echox.core.errors import AssetError
from echox.core.files import atomic_write
from echox.core.progress import Bar
from echox.data.cache_index import (
    DTYPES,
    DamagedShard,
    Entry,
    Location,
    ShardIndex,
    index_text,
    read_index,
    verify,
)

log = logging.getLogger(__name__)

# Batches per shard: what an interruption can lose.
SHARD_BATCHES = 16
# Caches of at most so many bytes are compared with their checksums when they are opened, which
# takes a fraction of a second.
VERIFIED_BYTES = 256 << 20

Compute = Callable[[list[str]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class _Shard:
    """An index as it was read, and what its file was then."""

    index: ShardIndex
    stamp: tuple[int, int, int]


class ArrayCache:
    """Arrays [F, ...] by key, each of its own length F: `fill` once, then read `cache[key]`.

    Opening it compares every index with its hash and the length of every data file, and the data
    with their checksums up to `VERIFIED_BYTES`: a shard that does not fit is left out, and the next
    `fill` makes its arrays again, to the same bits. Of larger caches, which can be terabytes, each
    array is compared when it is first read; one that does not fit ends the command, because the
    models that made it have been trained further by then, and is made again at the next start.

    Args:
        folder: holds one folder per fingerprint, so that caches of different makers stay apart.
        fingerprint: names everything that the arrays depend on beside their key (encoder, layer,
            dtype, manifest).
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder) / fingerprint
        self._shards: dict[str, _Shard] = {}
        self._damaged: dict[str, str] = {}  # shard -> why, for one line each
        self._verified: set[str] = set()  # shards whose data were compared
        self._compared: set[str] = set()  # keys of other shards whose data were
        self._locations: dict[str, Location] = {}
        self._maps: dict[str, np.memmap] = {}
        self._read_shards()

    def __contains__(self, key: str) -> bool:
        return key in self._locations

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, key: str) -> Tensor:
        """Return a copy of a key's array on the CPU, in the shape and dtype it was computed in.

        Raises:
            KeyError: the key was never computed.
            AssetError: the array was damaged since the cache was opened, or it was not noticed
                then, see above.
        """
        location = self._locations[key]
        # `frombuffer` refuses empty buffers; an array of no frames is a valid one.
        if location.size == 0:
            return torch.empty(location.shape, dtype=location.dtype)
        stored = self._map(location.shard)[location.start : location.start + location.size]
        # Copied into a bytearray: a tensor over the read-only map could not be written to.
        content = bytearray(stored.data)
        if location.shard not in self._verified and key not in self._compared:
            self._compare(key, location, content)
        return torch.frombuffer(content, dtype=location.dtype).view(location.shape)

    def length(self, key: str) -> int:
        """Return the size F of the first axis of a key's array [F, ...], without reading it.

        Raises:
            KeyError: the key was never computed.
        """
        return self._locations[key].shape[0]

    def fill(
        self,
        keys: Sequence[str],
        compute: Compute,
        *,
        costs: Sequence[int] | None = None,
        batch_cost: int | None = None,
        batch_size: int = 32,
        label: str = "caching",
        progress: bool = True,
    ) -> None:
        """Compute the arrays that are missing, in batches of similar cost.

        It may be killed and called again, and called from several processes. The batches are a
        function of keys and costs alone, and finished ones are whole shards from the front, so an
        interrupted run ends with the same bytes as an uninterrupted one.

        Args:
            keys: keys that are present afterwards.
            compute: keys of a batch -> one array [F_i, ...] each.
            costs: length of each key in any unit; None where all are alike.
            batch_cost: longest cost times keys, at most, in a batch of more than one.
            batch_size: keys at most in a batch.
            label: words beside the progress bar.
            progress: show the progress bar.

        Raises:
            AssetError: the disk is full or the folder cannot be written.
        """
        # By cost and then by key, so that batches do not depend on the order of the keys.
        order = list(dict.fromkeys(sorted(zip(costs or [0] * len(keys), keys, strict=True))))
        try:
            with self._locked_unless_complete(keys):
                missing = [pair for pair in order if pair[1] not in self]
                total = len(set(keys))
                done = total - len(missing)
                with Bar(label, total, unit="clip", initial=done, shows=progress) as bar:
                    batches = list(cost_batches(missing, batch_cost, batch_size))
                    self._compute_shards(batches, compute, bar)
        except OSError as error:
            raise AssetError(
                f"the cache {self.folder} could not be written: {error.strerror or error}; "
                f"{self._need(keys)}free space or choose another folder; finished shards are kept"
            ) from error

    @contextmanager
    def _locked_unless_complete(self, keys: Sequence[str]) -> Iterator[None]:
        # A complete cache may be on a disk that cannot be written.
        if all(key in self for key in keys):
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Processes started together wait here for the first one's work.
        with FileLock(self.folder / ".lock"):
            # Another process may have added shards while this one waited.
            self._read_shards()
            self._delete_damaged()
            yield

    def _need(self, keys: Sequence[str]) -> str:
        """The bytes that the missing arrays will take, by those that are there."""
        missing = sum(key not in self for key in set(keys))
        stored = sum(shard.index.size for shard in self._shards.values())
        if not stored:
            return ""
        return f"about {missing * stored / len(self) / 1e9:.2g} GB more are needed: "

    def _compute_shards(self, batches: list[list[str]], compute: Compute, bar: Bar) -> None:
        # From the front, so that a damaged shard gets the name that it had.
        taken = set(self._shards)
        names = (name for name in map("{:05d}".format, itertools.count()) if name not in taken)
        for start in range(0, len(batches), SHARD_BATCHES):
            arrays: dict[str, Tensor] = {}
            for batch in batches[start : start + SHARD_BATCHES]:
                arrays.update(zip(batch, compute(batch), strict=True))
                bar.update(len(batch))
            self._write_shard(next(names), arrays)

    def _write_shard(self, shard: str, arrays: dict[str, Tensor]) -> None:
        entries: dict[str, Entry] = {}
        size = 0
        with atomic_write(self.folder / f"{shard}.bin") as unfinished, unfinished.open("wb") as out:
            for key, array in arrays.items():
                # As bytes, because NumPy has no bfloat16.
                raw = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                out.write(raw.data)
                dtype = _dtype_name(array.dtype)
                entries[key] = (size, list(array.shape), dtype, zlib.crc32(raw.data))
                size += raw.nbytes
        # The index last: it is what makes the shard count.
        path = self.folder / f"{shard}.json"
        with atomic_write(path) as unfinished:
            unfinished.write_text(index_text(entries, size), "utf-8")
        self._shards[shard] = _Shard(read_index(path), _stamp(path))
        self._locations.update(self._shards[shard].index.locations)
        self._verified.add(shard)

    def _read_shards(self) -> None:
        """Read what was added or changed since it was read last, and forget what is gone."""
        known, self._shards = self._shards, {}
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                stamp = _stamp(path)
                if path.stem in known and known[path.stem].stamp == stamp:
                    self._shards[path.stem] = known[path.stem]
                else:
                    self._shards[path.stem] = _Shard(read_index(path), stamp)
                    self._verified.discard(path.stem)
            except FileNotFoundError:
                continue  # another process deleted it, because it is damaged
            except DamagedShard as damage:
                self._report(path.stem, damage)
        self._verify_small()
        self._maps.clear()
        self._locations = {
            key: location
            for shard in self._shards.values()
            for key, location in shard.index.locations.items()
        }

    def _verify_small(self) -> None:
        if sum(shard.index.size for shard in self._shards.values()) > VERIFIED_BYTES:
            return
        for name in self._shards.keys() - self._verified:
            try:
                verify(self.folder / f"{name}.bin", self._shards[name].index)
                self._verified.add(name)
            except DamagedShard as damage:
                self._report(name, damage)
                del self._shards[name]

    def _report(self, shard: str, damage: DamagedShard) -> None:
        if shard not in self._damaged:
            log.warning("the cache %s is damaged: %s; it is made again", self.folder, damage)
        self._damaged[shard] = str(damage)

    def _delete_damaged(self) -> None:
        # Before other data are written under the same name, to which the index would not belong.
        for shard in self._damaged:
            if shard not in self._shards:
                (self.folder / f"{shard}.json").unlink(missing_ok=True)
        self._damaged.clear()

    def _compare(self, key: str, location: Location, content: bytearray) -> None:
        """Compare an array with its checksum at its first read.

        Raises:
            AssetError: it differs; the shard's index is deleted, so that it is made again.
        """
        if not location.fits(content):
            path = self.folder / f"{location.shard}.bin"
            # A folder that cannot be written is no reason for another message.
            with suppress(OSError):
                path.with_suffix(".json").unlink()
            raise AssetError(
                f"{path} is damaged: it does not have the checksum of {key!r}; start again, and "
                "it is made again"
            )
        self._compared.add(key)

    def _map(self, shard: str) -> np.memmap:
        # Mapped at first use: a process that loads data may need few of the shards.
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / f"{shard}.bin", dtype=np.uint8, mode="r")
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled for a loading process as a copy of the whole shard.
        return self.__dict__ | {"_maps": {}}


def cost_batches(
    order: Iterable[tuple[int, str]], batch_cost: int | None, batch_size: int, padding: float = 1.0
) -> Iterator[list[str]]:
    """Cut (cost, key) pairs, cheapest first, into batches of keys.

    The last key of a batch is its longest, to which the others are padded.

    Args:
        order: pairs by ascending cost.
        batch_cost: longest cost times keys, at most, in a batch of more than one; None is no limit.
        batch_size: keys at most in a batch.
        padding: share of a batch, at most, that may be padding.

    Yields:
        keys [B] of a batch, at least one.
    """
    batch: list[str] = []
    filled = 0  # cost of the batch without its padding
    for cost, key in order:
        padded = cost * (len(batch) + 1)  # cost of the batch if this key joins it
        exceeds_cost = batch_cost is not None and padded > batch_cost
        exceeds_padding = padded - filled - cost > padding * padded
        if batch and (exceeds_cost or len(batch) == batch_size or exceeds_padding):
            yield batch
            batch, filled = [], 0
        batch.append(key)
        filled += cost
    if batch:
        yield batch


def _stamp(path: Path) -> tuple[int, int, int]:
    """What tells whether a file was replaced or changed."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"the cache keeps {', '.join(DTYPES)}, not {name}")
    return name
