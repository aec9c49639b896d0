"""A published folder, written: tensor by tensor, in shards, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.assets.tensors import specs_of, write_tensors
from echox.errors import CheckpointError
from echox.models.published.folder import CONFIG, INDEX, WEIGHTS
from echox.models.published.model import PublishedEchoX
from echox.models.published.names import their_name

SHARD_BYTES = 5_000_000_000  # of the release's shards


def release_tensors(model: PublishedEchoX, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A model's weights by the release's names, on the CPU; `dtype` None keeps what they are."""
    return {their_name(name): tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}


def write_release(
    folder: Path,
    tensors: Mapping[str, Tensor],
    beside: Iterable[Path],
    config: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a published folder that appears only when complete.

    Args:
        tensors: by the release's names, in the order they are to lie; lazy ones are made one at a time.
        beside: files to copy (tokenizer, vocoder, and config.json where it stays as it is).
        config: a config.json that is written anew.
        shard_bytes: size of a file of weights at most.
    Raises:
        CheckpointError: the folder exists already.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; name another folder, or take it away first")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for path in beside:
            shutil.copyfile(path, partial / path.name)
        if config is not None:
            (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        _write_weights(partial, tensors, shard_bytes)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    sizes = {name: spec.size_bytes for name, spec in specs_of(tensors).items()}
    shards = list(_shards(sizes, shard_bytes))
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, tensors, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, tensors, shard)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    total = 0
    for name, size in sizes.items():
        if shard and total + size > limit:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += size
    yield shard
