"""Checkpoints: folders that exist completely or not at all.

    model.safetensors   trained tensors by parameter name
    state.pt            what resuming needs besides: optimiser, random states, position in the
                        data (absent from a final checkpoint)
    meta.json           stage, step, recipe, lineage, metrics, and of each file beside it the
                        size in bytes and the SHA-256; `checksum` is the SHA-256 of all the rest

A folder is written under a hidden name, flushed to the disk and then renamed, so a crash at
any moment leaves the earlier checkpoints as they were. `fingerprint` identifies a checkpoint
by the SHA-256 of its weights.
"""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from echox.core.errors import CheckpointError
from echox.core.files import atomic_folder, copy_synced, json_hash, sha256_of, write_synced
from echox.core.memory import is_out_of_memory

MODEL, STATE, META = "model.safetensors", "state.pt", "meta.json"
FORMAT = 1  # of meta.json; a checkpoint of another number is refused
CHECKSUM = "checksum"  # key in meta.json; checkpoints of earlier versions have none
META_BYTES = 64 << 20  # of meta.json at most; a recipe takes some kilobytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and whose files were verified."""

    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    state: dict[str, Any] | None  # None in a final checkpoint

    def require_state(self) -> dict[str, Any]:
        """Return what resuming needs beside the tensors.

        Raises:
            CheckpointError: this is a final checkpoint, which has none.
        """
        if self.state is None:
            raise CheckpointError(
                f"{self.folder} is a final checkpoint, from which training cannot be resumed; "
                "delete it, or train in another run_dir"
            )
        return self.state

    def part(self, prefix: str) -> Checkpoint:
        """Return the same checkpoint, limited to the tensors whose names begin with `prefix`."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return replace(self, tensors=tensors)


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, replacing one of the same name.

    Args:
        folder: where the checkpoint appears.
        tensors: trained tensors by parameter name, on any device.
        meta: JSON-ready; `format` and `files` are added.
        state: values that `torch.load(weights_only=True)` reads; None for a final checkpoint.

    Returns:
        `folder`.

    Raises:
        DiskError: the disk is full or cannot be written; what stood at `folder` before stays.
    """
    with atomic_folder(folder, _bytes_of(tensors) + _bytes_of(state)) as partial:
        # Serialised in memory, because the libraries' own writers neither hash nor fsync.
        files = {MODEL: write_synced(partial / MODEL, safetensors.torch.save(_on_cpu(tensors)))}
        if state is not None:
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            files[STATE] = write_synced(partial / STATE, buffer.getbuffer())
        _write_meta(partial, meta, files)
    return folder


def keep(folder: Path, paths: Iterable[Path], meta: Mapping[str, Any]) -> Path:
    """Make a checkpoint of existing files, such as the shards of a release.

    The files are copied block by block, so weights larger than memory are fine.

    Args:
        folder: where the checkpoint appears.
        paths: files to copy, each under its own name.
        meta: JSON-ready; `format` and `files` are added.

    Returns:
        `folder`.

    Raises:
        DiskError: the disk is full or cannot be written; what stood at `folder` before stays.
    """
    paths = list(paths)
    with atomic_folder(folder, sum(path.stat().st_size for path in paths)) as partial:
        files = {path.name: copy_synced(path, partial / path.name) for path in paths}
        _write_meta(partial, meta, files)
    return folder


def _bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in a nesting of mappings and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, Mapping) else value
    return sum(map(_bytes_of, items)) if isinstance(value, (Mapping, list, tuple)) else 0


def _write_meta(partial: Path, meta: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    # `files` comes last: a `meta` read from another checkpoint must not bring its hashes along.
    content = {"format": FORMAT, **meta, "files": files}
    # Of the data as it is read back, in which every key is a string.
    content[CHECKSUM] = _checksum(json.loads(json.dumps(content)))
    write_synced(partial / META, json.dumps(content, indent=2, ensure_ascii=False).encode())


def _checksum(meta: Mapping[str, Any]) -> str:
    return json_hash({key: value for key, value in meta.items() if key != CHECKSUM}, digits=64)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies, because safetensors refuses tensors that share memory, as tied embeddings do.
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify its files against the recorded sizes and hashes.

    Returns:
        The checkpoint with all tensors on the CPU.

    Raises:
        CheckpointError: it is missing, incomplete or damaged, or has no `model.safetensors`.
    """
    meta = verify(folder)
    if MODEL not in meta["files"]:
        raise CheckpointError(
            f"{folder} holds weights of another layout, in no {MODEL}; "
            "it was not trained by a stage of echox"
        )
    try:
        tensors = safetensors.torch.load_file(folder / MODEL)
        state = _load_state(folder) if STATE in meta["files"] else None
    # Both libraries raise errors of many types for content that they cannot read.
    except Exception as error:
        # The files may be sound.
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {folder} is damaged: {reason}") from error
    for file, values in ((MODEL, tensors), (STATE, state)):
        if (name := _name_of_nan(values)) is not None:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} in {file} holds NaN")
    return Checkpoint(folder, meta, tensors, state)


def _name_of_nan(value: Any, name: str = "") -> str | None:
    """Return the dotted name of the first tensor that holds NaN in a nesting of dicts and lists."""
    if isinstance(value, Tensor):
        return name if value.is_floating_point() and bool(value.isnan().any()) else None
    if not isinstance(value, (dict, list, tuple)):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    names = (_name_of_nan(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next((found for found in names if found is not None), None)


def _load_state(folder: Path) -> dict[str, Any]:
    # weights_only: a checkpoint from a stranger must not run code by being read.
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def verify(folder: Path) -> dict[str, Any]:
    """Check a checkpoint's files against the recorded sizes and hashes.

    Returns:
        The content of its meta.json.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
    """
    meta = described(folder)
    for name, facts in meta["files"].items():
        _check_file(folder / name, facts)
    return meta


def described(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's meta.json without looking at the other files.

    Raises:
        CheckpointError: there is no meta.json, it cannot be read, or its format is another one.
    """
    path = folder / META
    # Not opened where it is no regular file: reading a pipe would wait for ever.
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {META}")
    try:
        if path.stat().st_size > META_BYTES:
            raise ValueError(f"it is larger than {META_BYTES >> 20} MiB")
        meta = json.loads(path.read_text("utf-8"))
        fault = _fault_of(meta)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: its {META} cannot be read ({error})"
        ) from error
    if not _is_description(meta):
        raise CheckpointError(
            f"{path} is not a checkpoint description of format {FORMAT}; "
            "it may come from another version of echox"
        )
    if fault is not None:
        raise CheckpointError(f"checkpoint {folder} is damaged: its {META} {fault}")
    return meta


def _is_description(meta: Any) -> bool:
    return isinstance(meta, dict) and meta.get("format") == FORMAT and bool(meta.get("files"))


def _fault_of(meta: Any) -> str | None:
    """Return what is wrong with the content of a meta.json of this format, or None."""
    if not _is_description(meta):
        return None
    if CHECKSUM in meta and meta[CHECKSUM] != _checksum(meta):
        return f"has been changed since it was written, for its {CHECKSUM} does not fit"
    if not isinstance(meta["files"], dict) or not all(map(_describes_file, meta["files"].items())):
        return "does not state the size and the sha256 of each file"
    for key, kind in {"stage": str, "step": int, "recipe": dict, "lineage": dict}.items():
        # A checkpoint that no stage of a recipe wrote has some of them only.
        if meta.get(key) is not None and not isinstance(meta[key], kind):
            return f"has a value of {key!r} that is none"
    for key in ("parents", "data", "assets", "weight_folders"):
        if not isinstance((meta.get("lineage") or {}).get(key, {}), dict):
            return f"has a value of 'lineage.{key}' that is none"
    return None


def _describes_file(entry: tuple[str, Any]) -> bool:
    name, facts = entry
    # A plain name: a path could lead out of the checkpoint's folder.
    is_plain = name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)
    return (
        is_plain
        and isinstance(facts, dict)
        and isinstance(facts.get("bytes"), int)
        and isinstance(facts.get("sha256"), str)
    )


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise CheckpointError(f"checkpoint {path.parent} is incomplete: {path.name} is missing")
    # Size before hash: a file that was cut short is found without reading gigabytes.
    if size != facts["bytes"]:
        raise CheckpointError(
            f"checkpoint {path.parent} is damaged: {path.name} has {size} bytes "
            f"instead of {facts['bytes']}"
        )
    if sha256_of(path) != facts["sha256"]:
        raise CheckpointError(
            f"checkpoint {path.parent} is damaged: {path.name} does not have the sha256 "
            "it was written with"
        )


def newest_first(parent: Path) -> Iterator[Checkpoint]:
    """Yield the sound checkpoints in a folder of checkpoints, the newest first.

    Damaged ones are named in a warning and left out.
    """
    for folder in reversed(step_folders(parent)):
        try:
            yield _load_step(folder)
        except CheckpointError as error:
            warn_skipped(error)


def warn_skipped(error: CheckpointError) -> None:
    """Say why a checkpoint is not resumed from."""
    log.warning("%s; trying the one before it", error)


def _load_step(folder: Path) -> Checkpoint:
    loaded = load(folder)
    steps = loaded.meta.get("step"), loaded.require_state().get("step")
    # Checksums hold in a folder that was renamed to another step, too.
    if any(step != _step_of(folder) for step in steps):
        raise CheckpointError(
            f"checkpoint {folder} is damaged: its {META} is of step {steps[0]}, and its {STATE} "
            f"of step {steps[1]}"
        )
    return loaded


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    # Padded with zeros, so that names sort by step.
    return parent / f"step_{step:09d}"


def step_folders(parent: Path) -> list[Path]:
    """Return the checkpoint folders in `parent`, oldest first, damaged ones included."""
    folders = (folder for folder in parent.glob("step_*") if folder.is_dir())
    return sorted(folder for folder in folders if re.fullmatch("step_[0-9]{9,18}", folder.name))


def prune(parent: Path, *, step: int, keep: int) -> None:
    """Delete all checkpoints in `parent` but the newest `keep` up to `step`.

    Args:
        parent: the folder of checkpoints.
        step: optimisation step of the checkpoint that was just written.
        keep: number of checkpoints that stay.
    """
    newest = step_folder(parent, step)
    candidates = [folder for folder in step_folders(parent) if folder <= newest]
    for folder in step_folders(parent):
        # Folders beyond `step` are in no list of candidates: resuming found them damaged.
        if folder not in candidates[-keep:]:
            shutil.rmtree(folder, ignore_errors=True)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights in hex.

    Raises:
        CheckpointError: it has no `model.safetensors`.
    """
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MODEL}")
    return sha256_of(folder / MODEL)


def fill(model: nn.Module, checkpoint: Checkpoint, names: set[str]) -> None:
    """Copy a checkpoint's tensors into `model`, in place.

    Args:
        model: may have further parameters, such as those of a frozen backbone.
        checkpoint: the source; every one of its tensors must have a place in `model`.
        names: parameters that are trained, all of which the checkpoint must hold.

    Raises:
        CheckpointError: names or shapes of the two differ.
    """
    if missing := sorted(names - checkpoint.tensors.keys()):
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} lacks {len(missing)} tensors of this model, "
            f"such as {missing[0]!r}; it belongs to another recipe"
        )
    try:
        # Not strict, because frozen parameters are in no checkpoint; the rest is checked here.
        unexpected = model.load_state_dict(checkpoint.tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        # PyTorch lists the shapes that differ over several lines; an error here is one line.
        differences = " ".join(str(error).split())
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} does not fit this model: {differences}"
        ) from error
    if unexpected:
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} holds {len(unexpected)} tensors this model lacks, "
            f"such as {unexpected[0]!r}; it belongs to another recipe"
        )
