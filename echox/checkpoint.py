"""Checkpoints: folders that are either whole or not there.

    model.safetensors   what echox learned, by parameter name
    state.pt            what resuming needs besides: optimiser, random states, place in the data (absent from a final checkpoint)
    meta.json           stage, step, recipe, lineage, metrics, and the size and sha256 of the files beside it

A folder is written under a hidden name, flushed to the disk and then renamed, so a crash at any moment leaves the checkpoints that
were there before. `fingerprint` names a checkpoint by the sha256 of its weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from echox.disk import room_for, sha256_of
from echox.errors import CheckpointError

MODEL, STATE, META = "model.safetensors", "state.pt", "meta.json"
FORMAT = 1
BLOCK_BYTES = 1 << 20  # copied at once

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back and found whole."""

    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    state: dict[str, Any] | None  # None in a final checkpoint

    def part(self, prefix: str) -> Checkpoint:
        """The same checkpoint with those tensors alone whose names begin with `prefix`."""
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)})


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint, replacing one of the same name.

    Args:
        tensors: learned tensors by name, on any device.
        meta: JSON-ready; `format` and `files` are added.
        state: values that `torch.load(weights_only=True)` reads back; None for a final checkpoint.
    Raises:
        TrainingError: the disk is full; what was there before still is.
    """
    with _appearing(folder) as partial:
        files = {MODEL: _write(partial / MODEL, safetensors.torch.save(_detached(tensors)))}
        if state is not None:
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            files[STATE] = _write(partial / STATE, buffer.getbuffer())
        _write_meta(partial, meta, files)
    return folder


def keep(folder: Path, paths: Iterable[Path], meta: Mapping[str, Any]) -> Path:
    """Make files a checkpoint as they are, weights of any size and in any number of shards among them; they are copied in blocks.

    Raises:
        TrainingError: as `save`.
    """
    with _appearing(folder) as partial:
        _write_meta(partial, meta, {path.name: _copy(path, partial / path.name) for path in paths})
    return folder


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` at the end of the block."""
    partial = folder.with_name(f".{folder.name}.partial")
    with room_for(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_partials(folder.parent)
            partial.mkdir()
            yield partial
            _put_in_place(partial, folder)
        finally:
            # Renamed if all went well; otherwise it only takes up room.
            shutil.rmtree(partial, ignore_errors=True)


def _remove_partials(parent: Path) -> None:
    for leftover in parent.glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_meta(partial: Path, meta: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    _write(partial / META, json.dumps({"format": FORMAT, **meta, "files": files}, indent=2, ensure_ascii=False).encode())


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies, because safetensors refuses tensors that share memory, as tied embeddings do.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _write(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _copy(source: Path, path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as given, path.open("wb") as file:
        while block := given.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _put_in_place(partial: Path, folder: Path) -> None:
    _sync_folder(partial)
    if folder.exists():
        # Only a damaged checkpoint is ever written again, so nothing is lost between these two lines.
        shutil.rmtree(folder)
    partial.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and check it against its own sizes and hashes.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
    """
    meta = verify(folder)
    if MODEL not in meta["files"]:
        raise CheckpointError(f"{folder} holds weights of another layout, in no {MODEL}; it was not trained by a stage of echox")
    try:
        tensors = safetensors.torch.load_file(folder / MODEL)
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True) if STATE in meta["files"] else None
    except Exception as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    return Checkpoint(folder, meta, tensors, state)


def verify(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta.json, once its files are found to be what it says.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
    """
    meta = described(folder)
    for name, facts in meta["files"].items():
        _check_file(folder / name, facts)
    return meta


def described(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta.json as it is written; its files are not looked at.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {META}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: its {META} cannot be read ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not meta.get("files"):
        raise CheckpointError(f"{folder / META} is not a checkpoint description of format {FORMAT}; it may come from another version of echox")
    return meta


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise CheckpointError(f"checkpoint {path.parent} is incomplete: {path.name} is missing")
    if size != facts["bytes"]:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} has {size} bytes instead of {facts['bytes']}")
    if sha256_of(path) != facts["sha256"]:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} does not have the sha256 it was written with")


def latest(parent: Path) -> Checkpoint | None:
    """The newest whole checkpoint in a folder of checkpoints, or None; damaged ones are passed over with a warning."""
    for folder in reversed(step_folders(parent)):
        try:
            return load(folder)
        except CheckpointError as error:
            log.warning("%s; trying the one before it", error)
    return None


def step_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands; names sort by step."""
    return parent / f"step_{step:09d}"


def step_folders(parent: Path) -> list[Path]:
    """The checkpoints in `parent`, oldest first, whole or not."""
    return sorted(folder for folder in parent.glob("step_*") if folder.is_dir())


def prune(parent: Path, *, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`, which was just written; what lies beyond it was found damaged on resuming."""
    newest = step_folder(parent, step)
    upto = [folder for folder in step_folders(parent) if folder <= newest]
    for folder in step_folders(parent):
        if folder not in upto[-keep:]:
            shutil.rmtree(folder, ignore_errors=True)


def fingerprint(folder: Path) -> str:
    """The sha256 of a checkpoint's weights, in hex.

    Raises:
        CheckpointError: there are none.
    """
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MODEL}")
    return sha256_of(folder / MODEL)


def fill(model: nn.Module, checkpoint: Checkpoint, names: set[str]) -> None:
    """Copy a checkpoint's tensors into `model`, in place.

    Args:
        names: the tensors this stage learns, all of which the checkpoint must hold.
    Raises:
        CheckpointError: names or shapes of the two differ.
    """
    if missing := sorted(names - checkpoint.tensors.keys()):
        raise CheckpointError(f"checkpoint {checkpoint.folder} lacks {len(missing)} tensors of this model, such as {missing[0]!r}; it belongs to another recipe")
    try:
        unexpected = model.load_state_dict(checkpoint.tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {checkpoint.folder} does not fit this model: {' '.join(str(error).split())}") from error
    if unexpected:
        raise CheckpointError(f"checkpoint {checkpoint.folder} holds {len(unexpected)} tensors this model lacks, such as {unexpected[0]!r}; it belongs to another recipe")
