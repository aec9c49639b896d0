"""`echox-prepare units`: encode the speech of manifests into units, in several processes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.config import from_plain, to_plain
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import ConfigError, EchoxError
from echox.core.number_format import NumberFormat, adopt, adopted, kept_in
from echox.core.processes import spawn_context
from echox.corpora.units import (
    SHOWN_EVERY_S,
    UnitsBar,
    UnitsConfig,
    shard_numbers,
    unit_shards,
    write_units,
)
from echox.engine.distribution import World
from echox.pipeline.plugins import discover

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class EncodeUnitsConfig(UnitsConfig):
    """Encode the assistant's audio of manifests: NAME.jsonl becomes NAME.units.jsonl beside it."""

    codec: CodecConfig = MISSING
    """Codec to encode with."""
    device: str = "auto"
    """Device to encode on: auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Processes on this machine, which are spread over its GPUs or share its processors; null is
    one for each GPU, and one on a CPU. Those of torchrun work together without it."""

    def __post_init__(self) -> None:
        UnitsConfig.__post_init__(self)
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; use 1 or more, or null")


def encode_units(config: EncodeUnitsConfig) -> None:
    """Write manifests with units, and print the paths of those that are complete.

    Raises:
        ConfigError: no manifest is named.
        CheckpointError: the codec is not fitted.
        ManifestError: a manifest is missing or broken.
        AssetError: the disk is full.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    device = device_named(config.device)
    # In the cache, because several processes and machines may encode one manifest together.
    with kept_in(config.cache_dir, device):
        _encode(config, device)


def _encode(config: EncodeUnitsConfig, device: torch.device) -> None:
    world = _world()
    # Built here first, so that an error is printed once and not by every process.
    codec = CODECS.build(config.codec)
    workers = 1 if world.size > 1 else _workers(config, device)
    if workers > 1:
        with _spawned(config, workers) as processes:
            _watch(processes, config, codec, multiplies_bf16_fast(device))
    # Alone, this process encodes everything; after others it encodes the shards that they left.
    device = world.device(device)
    paths = write_units(
        config,
        codec.to(device),
        device=device,
        bf16=multiplies_bf16_fast(device),
        # Where in the list of shards it begins, so that ranks seldom meet.
        first=world.rank / world.size,
        shows=world.is_main,
    )
    for path in paths:
        if world.is_main:
            print(path)


def _world() -> World:
    """Return the rank among torchrun's processes, without joining a process group."""
    # They share the folder of shards alone, so one may fail or come later without the others.
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    return World(*(int(os.environ.get(name, default)) for name, default in defaults.items()))


def _workers(config: EncodeUnitsConfig, device: torch.device) -> int:
    if config.workers is not None:
        return config.workers
    # `cuda:1` asks for one GPU, `cuda` for all.
    uses_all_gpus = device.type == "cuda" and device.index is None
    return max(1, torch.cuda.device_count()) if uses_all_gpus else 1


@contextmanager
def _spawned(config: EncodeUnitsConfig, workers: int) -> Iterator[Sequence[BaseProcess]]:
    """Start processes that encode; they end with the block, killed if it is left by an error."""
    # Spawned, since CUDA cannot be used in a forked process.
    context = spawn_context()
    plain = to_plain(config)
    processes = [
        context.Process(target=_work, args=(plain, adopted(), number, workers))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    # Ctrl-C too, which the processes ignore.
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
    # A negative exit code is the signal that killed the process.
    if killed := sum((process.exitcode or 0) < 0 for process in processes):
        log.warning(
            "%d of %d processes were killed, perhaps for their memory; what they left is made by "
            "one. Use fewer workers",
            killed,
            workers,
        )


def _work(
    settings: Mapping[str, Any], number_format: NumberFormat | None, number: int, workers: int
) -> None:
    """Encode shards in a spawned process; an error is left to the first process to print.

    Args:
        settings: an `EncodeUnitsConfig` as plain data.
        number_format: of the first process, so that all compute the same units.
        number: of this process, from 0.
        workers: number of processes.
    """
    # Ctrl-C reaches all processes of a terminal, and the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt(number_format)
    discover()
    config = from_plain(EncodeUnitsConfig, settings)
    device = device_named(config.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", number % torch.cuda.device_count())
    # Otherwise every process would use all cores.
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        codec = CODECS.build(config.codec).to(device)
        write_units(
            config,
            codec,
            device=device,
            bf16=multiplies_bf16_fast(device),
            first=number / workers,
            shows=False,
        )
    except EchoxError:
        raise SystemExit(2) from None


def _watch(
    processes: Sequence[BaseProcess], config: EncodeUnitsConfig, codec: Codec, bf16: bool
) -> None:
    """Draw the progress of the processes, until they have ended or a manifest is complete."""
    for name in config.manifests:
        shards = unit_shards(Path(name), config, codec, bf16)
        numbers = set(shard_numbers(shards, config.part))
        with UnitsBar(shards, Path(name).name, shows=True) as bar:
            while any(process.is_alive() for process in processes):
                if shards.done().keys() >= numbers:
                    break
                time.sleep(SHOWN_EVERY_S)
                bar.update()
