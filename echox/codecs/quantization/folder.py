"""The folder of a fitted codec: tensors, small files, and a config.json that comes last and vouches for the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echox.data.writing import appearing
from echox.disk import sha256_of
from echox.errors import CheckpointError

FORMAT = 1
MODEL_FILE, LANGUAGE_FILE, CONFIG_FILE = "model.safetensors", "language.model", "config.json"
UNNAMED = "kmeans"  # the codec of folders that do not say theirs


@dataclass(frozen=True, slots=True)
class FittedFolder:
    """What a fitted folder holds, read and checked."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, Any]  # what fitting measured
    fingerprint: str


def write_fitted(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], files: Mapping[str, bytes], metrics: Mapping[str, Any]) -> str:
    """Write a fitted codec; an unfinished folder is never taken for one.

    Args:
        settings: what decides the codec beside the files; JSON-ready.
        files: small files by name.
    Returns:
        the fingerprint: of settings and files, not of metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    with appearing(folder / MODEL_FILE) as path:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    for name, content in files.items():
        with appearing(folder / name) as path:
            path.write_bytes(content)
    decisive = {"format": FORMAT, **settings, "files": {name: sha256_of(folder / name) for name in (MODEL_FILE, *files)}}
    document = {**decisive, "fingerprint": hash_of(decisive), "metrics": metrics}
    with appearing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return document["fingerprint"]


def read_fitted(folder: Path, codec: str, keys: Sequence[str]) -> FittedFolder:
    """Read and check what `write_fitted` wrote.

    Args:
        codec: its registered name; keys: of the settings.
    Raises:
        CheckpointError: the folder is missing, incomplete, changed, of another version or another codec.
    """
    decisive, recorded, metrics = _document(folder, codec, keys)
    if decisive["format"] != FORMAT:
        raise CheckpointError(f"the codec in {folder} has format {decisive['format']}, this version reads {FORMAT}; fit it again")
    if hash_of(decisive) != recorded:
        raise CheckpointError(f"the codec in {folder} was changed after fitting: {CONFIG_FILE} does not match its fingerprint; fit it again")
    for name, digest in decisive["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"the codec in {folder} is incomplete: {name} is missing; copy the whole folder or fit it again")
        if sha256_of(folder / name) != digest:
            raise CheckpointError(f"the codec in {folder} is damaged: {name} is not the file that was fitted; copy it again or fit it again")
    try:
        tensors = load_file(folder / MODEL_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"the codec in {folder} has an unreadable {MODEL_FILE} ({error}); fit it again") from error
    return FittedFolder({key: decisive[key] for key in keys}, tensors, metrics, recorded)


def _document(folder: Path, codec: str, keys: Sequence[str]) -> tuple[dict[str, Any], str, Mapping[str, Any]]:
    """What decides the codec, its fingerprint, and the metrics."""
    try:
        document = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        if (found := document.get("codec", UNNAMED)) != codec:
            raise CheckpointError(f"the codec in {folder} is a {found}, not a {codec}; set codec={found}, or codec.folder to another")
        return {key: document[key] for key in ("format", *keys, "files")}, document["fingerprint"], document.get("metrics", {})
    except FileNotFoundError:
        raise CheckpointError(f"there is no codec in {folder}: {CONFIG_FILE} is missing; fit one with echox-prepare codec") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the codec in {folder} has a damaged {CONFIG_FILE} ({type(error).__name__}: {error}); fit it again") from error


def hash_of(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
