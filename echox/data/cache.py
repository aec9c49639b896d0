"""A cache of one array per key on disk (frozen encoder features of thousands of clips): resumable, memory-mapped, deterministic.

A folder per fingerprint holds shards. A shard is a `.bin` with the arrays end to end, and a `.json` with the place of each, written
last: a shard without it was interrupted and is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from echox.data.writing import appearing
from echox.errors import AssetError
from echox.progress import Bar

_KEPT = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _KEPT}
# What an interruption can lose, in batches.
SHARD_BATCHES = 16

Compute = Callable[[list[str]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one array lies."""

    shard: str
    start: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class ArrayCache:
    """Arrays by key, each of its own length: `fill` once, then `cache[key]`.

    Args:
        folder: holds one folder per fingerprint, so that caches of other makers stay apart.
        fingerprint: names everything the arrays depend on beside their key (encoder, layer, dtype, manifest).
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder) / fingerprint
        self._places: dict[str, _Place] = {}
        self._maps: dict[str, np.memmap] = {}
        self._read_shards()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Tensor:
        """The array of a key, as `fill` was given it: a copy, on the CPU.

        Raises:
            KeyError: it was never computed.
        """
        place = self._places[key]
        if place.size == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        raw = bytearray(self._map(place.shard)[place.start : place.start + place.size].data)
        return torch.frombuffer(raw, dtype=place.dtype).view(place.shape)

    def length(self, key: str) -> int:
        """Size of the first axis of a key's array, without reading it."""
        return self._places[key].shape[0]

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
        """Compute what is missing, in batches of similar cost; safe to kill and call again, and to call from several processes.

        The batches are a function of keys and costs alone, and finished ones are whole shards from the front, so an interrupted
        run ends with the same bytes as an uninterrupted one.

        Args:
            keys: what must be there afterwards.
            compute: keys of a batch -> one array [F_i, ...] each.
            costs: length of each key in any unit; None for all alike.
            batch_cost: longest cost times keys, at most, in a batch of more than one.
            batch_size: keys at most in a batch.
            label: words beside the progress bar.
        Raises:
            AssetError: the disk is full or the folder cannot be written.
        """
        order = sorted(zip(costs or [0] * len(keys), keys, strict=True))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Processes started together wait here for the first one's work.
            with FileLock(self.folder / ".lock"):
                self._read_shards()
                missing = [pair for pair in dict.fromkeys(order) if pair[1] not in self]
                bar = Bar(label, len(set(keys)), unit="clip", initial=len(set(keys)) - len(missing), shows=progress)
                with bar:
                    self._fill(list(cost_batches(missing, batch_cost, batch_size)), compute, bar)
        except OSError as error:
            reason = error.strerror or error
            raise AssetError(f"the cache {self.folder} could not be written: {reason}; free space or choose another folder") from error

    def _fill(self, batches: list[list[str]], compute: Compute, bar: Bar) -> None:
        for start in range(0, len(batches), SHARD_BATCHES):
            arrays: dict[str, Tensor] = {}
            for batch in batches[start : start + SHARD_BATCHES]:
                arrays.update(zip(batch, compute(batch), strict=True))
                bar.update(len(batch))
            self._write_shard(arrays)

    def _write_shard(self, arrays: dict[str, Tensor]) -> None:
        shard = f"{len(list(self.folder.glob('*.json'))):05d}"
        index: dict[str, Any] = {}
        start = 0
        with appearing(self.folder / f"{shard}.bin") as unfinished, unfinished.open("wb") as out:
            for key, array in arrays.items():
                raw = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                out.write(raw.data)
                index[key] = [start, list(array.shape), _name_of(array.dtype)]
                start += raw.nbytes
        with appearing(self.folder / f"{shard}.json") as unfinished:
            unfinished.write_text(json.dumps(index))
        self._add(shard, index)

    def _read_shards(self) -> None:
        self._places.clear()
        self._maps.clear()
        for path in sorted(self.folder.glob("*.json")):
            self._add(path.stem, json.loads(path.read_text()))

    def _add(self, shard: str, index: dict[str, Any]) -> None:
        for key, (start, shape, dtype) in index.items():
            self._places[key] = _Place(shard, start, tuple(shape), DTYPES[dtype])

    def _map(self, shard: str) -> np.memmap:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / f"{shard}.bin", dtype=np.uint8, mode="r")
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would travel to a loading process as a copy of the whole shard.
        return self.__dict__ | {"_maps": {}}


def cost_batches(order: Iterable[tuple[int, str]], batch_cost: int | None, batch_size: int, padding: float = 1.0) -> Iterator[list[str]]:
    """Cut (cost, key) pairs, cheapest first, into batches: the last one added is the longest and decides the padding.

    Args:
        batch_cost: longest cost times keys, at most, in a batch of more than one.
        batch_size: keys at most in a batch.
        padding: share of a batch, at most, that may be padding.
    """
    batch: list[str] = []
    filled = 0
    for cost, key in order:
        whole = cost * (len(batch) + 1)
        too_dear = batch_cost is not None and whole > batch_cost
        if batch and (too_dear or len(batch) == batch_size or whole - filled - cost > padding * whole):
            yield batch
            batch, filled = [], 0
        batch.append(key)
        filled += cost
    if batch:
        yield batch


def _name_of(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"the cache keeps {', '.join(DTYPES)}, not {name}")
    return name
