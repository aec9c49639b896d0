"""A cache of one array per key on disk: resumable, memory-mapped, deterministic.

It holds, for instance, frozen encoder features of thousands of clips. A folder per fingerprint
holds shards. A shard is a `.bin` with the arrays end to end, and a `.json` with the location of
each, written last: a shard without it was interrupted and is made again.
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

from echox.core.errors import AssetError
from echox.core.files import atomic_write
from echox.core.progress import Bar

_SUPPORTED = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _SUPPORTED}
# Batches per shard: what an interruption can lose.
SHARD_BATCHES = 16

Compute = Callable[[list[str]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class _Location:
    """Where one array is stored."""

    shard: str
    start: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class ArrayCache:
    """Arrays [F, ...] by key, each of its own length F: `fill` once, then read `cache[key]`.

    Args:
        folder: holds one folder per fingerprint, so that caches of different makers stay apart.
        fingerprint: names everything that the arrays depend on beside their key (encoder, layer,
            dtype, manifest).
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder) / fingerprint
        self._locations: dict[str, _Location] = {}
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
        """
        location = self._locations[key]
        # `frombuffer` refuses empty buffers; an array of no frames is a valid one.
        if location.size == 0:
            return torch.empty(location.shape, dtype=location.dtype)
        content = self._map(location.shard)[location.start : location.start + location.size]
        # Copied into a bytearray: a tensor over the read-only map could not be written to.
        return torch.frombuffer(bytearray(content.data), dtype=location.dtype).view(location.shape)

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
        order = sorted(zip(costs or [0] * len(keys), keys, strict=True))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Processes started together wait here for the first one's work.
            with FileLock(self.folder / ".lock"):
                # Another process may have added shards while this one waited.
                self._read_shards()
                missing = [pair for pair in dict.fromkeys(order) if pair[1] not in self]
                total = len(set(keys))
                done = total - len(missing)
                with Bar(label, total, unit="clip", initial=done, shows=progress) as bar:
                    batches = list(cost_batches(missing, batch_cost, batch_size))
                    self._compute_shards(batches, compute, bar)
        except OSError as error:
            raise AssetError(
                f"the cache {self.folder} could not be written: {error.strerror or error}; "
                "free space or choose another folder"
            ) from error

    def _compute_shards(self, batches: list[list[str]], compute: Compute, bar: Bar) -> None:
        for start in range(0, len(batches), SHARD_BATCHES):
            arrays: dict[str, Tensor] = {}
            for batch in batches[start : start + SHARD_BATCHES]:
                arrays.update(zip(batch, compute(batch), strict=True))
                bar.update(len(batch))
            self._write_shard(arrays)

    def _write_shard(self, arrays: dict[str, Tensor]) -> None:
        # Numbered by the indexes, so that a `.bin` whose index is missing is written over.
        shard = f"{len(list(self.folder.glob('*.json'))):05d}"
        index: dict[str, Any] = {}
        start = 0
        with atomic_write(self.folder / f"{shard}.bin") as unfinished, unfinished.open("wb") as out:
            for key, array in arrays.items():
                # As bytes, because NumPy has no bfloat16.
                raw = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                out.write(raw.data)
                index[key] = [start, list(array.shape), _dtype_name(array.dtype)]
                start += raw.nbytes
        # The index last: it is what makes the shard count.
        with atomic_write(self.folder / f"{shard}.json") as unfinished:
            unfinished.write_text(json.dumps(index))
        self._add_shard(shard, index)

    def _read_shards(self) -> None:
        self._locations.clear()
        self._maps.clear()
        for path in sorted(self.folder.glob("*.json")):
            self._add_shard(path.stem, json.loads(path.read_text()))

    def _add_shard(self, shard: str, index: dict[str, Any]) -> None:
        for key, (start, shape, dtype) in index.items():
            self._locations[key] = _Location(shard, start, tuple(shape), DTYPES[dtype])

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


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"the cache keeps {', '.join(DTYPES)}, not {name}")
    return name
