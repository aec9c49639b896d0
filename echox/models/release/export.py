"""Writing a folder in the released layout: tensor by tensor, in shards, complete or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from echox.assets.tensors import specs_of, write_tensors
from echox.core.errors import CheckpointError
from echox.core.files import atomic_folder
from echox.models.release.folder import CONFIG, INDEX, WEIGHTS

SHARD_BYTES = 5_000_000_000  # as in the release


def write_release(
    folder: Path,
    tensors: Mapping[str, Tensor],
    beside: Iterable[Path],
    config: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder in the released layout, which appears only when it is complete.

    Args:
        folder: to write; it must not exist.
        tensors: by the release's names, in the order of the files; lazy ones are made one at a
            time.
        beside: files to copy (tokenizer, vocoder, and config.json where it is not rewritten).
        config: a config.json to write; None copies one of `beside`.
        shard_bytes: bytes of a file of weights at most.

    Raises:
        CheckpointError: the folder exists already.
        DiskError: the disk is full or cannot be written.
    """
    if folder.exists():
        raise CheckpointError(
            f"{folder} exists already; name another folder, or take it away first"
        )
    # From the specs, so that lazy tensors are made only when they are written.
    sizes = {name: spec.size_bytes for name, spec in specs_of(tensors).items()}
    with atomic_folder(folder, sum(sizes.values())) as partial:
        for path in beside:
            shutil.copyfile(path, partial / path.name)
        if config is not None:
            (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        _write_weights(partial, tensors, sizes, shard_bytes)


def _write_weights(
    folder: Path, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], shard_bytes: int
) -> None:
    shards = list(_shards(sizes, shard_bytes))
    if len(shards) == 1:
        # A single file needs no index.
        write_tensors(folder / WEIGHTS, tensors, shards[0])
        return
    # The names and the index are those that transformers writes and reads.
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, tensors, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _shards(sizes: Mapping[str, int], limit_bytes: int) -> Iterator[list[str]]:
    """Names in order, as many to a shard as fit; a larger tensor has a shard of its own."""
    shard: list[str] = []
    total = 0
    for name, size in sizes.items():
        if shard and total + size > limit_bytes:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += size
    yield shard
