"""The folder of a fitted codec: tensors, small files, and a config.json that vouches for them.

config.json is written last and holds the hashes of the other files, so an unfinished or changed
folder is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echox.core.errors import CheckpointError
from echox.core.files import atomic_write, json_hash, sha256_of, translate_disk_faults

FORMAT = 1
MODEL_FILE, LANGUAGE_FILE, CONFIG_FILE = "model.safetensors", "language.model", "config.json"
UNNAMED = "kmeans"  # the codec of folders that do not say theirs


@dataclass(frozen=True, slots=True)
class FittedFolder:
    """Content of a fitted folder, read and checked."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, Any]  # measured at the end of the fit
    fingerprint: str


def write_fitted(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    metrics: Mapping[str, Any],
) -> str:
    """Write a fitted codec so that an unfinished folder is never taken for a finished one.

    Args:
        folder: created where it does not exist.
        settings: everything that decides the codec beside the files; JSON-ready.
        tensors: content of model.safetensors by name.
        files: content of small files by name.
        metrics: measurements to record; JSON-ready.

    Returns:
        the fingerprint: a hash of settings and files, not of metrics.
    """
    # First of all, so that a config never vouches for files that are being replaced.
    with translate_disk_faults(folder / CONFIG_FILE):
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    # safetensors stores contiguous tensors alone.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(folder / MODEL_FILE) as path:
        save_file(plain, path)
    for name, content in files.items():
        with atomic_write(folder / name) as path:
            path.write_bytes(content)
    hashes = {name: sha256_of(folder / name) for name in (MODEL_FILE, *files)}
    decisive = {"format": FORMAT, **settings, "files": hashes}
    # Metrics hold seconds, which differ in every fit, so they are not hashed.
    document = {**decisive, "fingerprint": json_hash(decisive), "metrics": metrics}
    with atomic_write(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return document["fingerprint"]


def read_fitted(folder: Path, codec: str, keys: Sequence[str]) -> FittedFolder:
    """Read and check what `write_fitted` wrote.

    Args:
        folder: of the codec.
        codec: its registered name.
        keys: names of the settings.

    Raises:
        CheckpointError: the folder is missing, incomplete, changed, or of another version or codec.
    """
    decisive, fingerprint, metrics = _read_document(folder, codec, keys)
    _check(folder, decisive, fingerprint)
    try:
        tensors = load_file(folder / MODEL_FILE)
    except SafetensorError as error:
        raise CheckpointError(
            f"the codec in {folder} has an unreadable {MODEL_FILE} ({error}); fit it again"
        ) from error
    return FittedFolder({key: decisive[key] for key in keys}, tensors, metrics, fingerprint)


def _check(folder: Path, decisive: Mapping[str, Any], fingerprint: str) -> None:
    """Raise where version, fingerprint or files differ from what config.json records."""
    if decisive["format"] != FORMAT:
        raise CheckpointError(
            f"the codec in {folder} has format {decisive['format']}, this version reads {FORMAT}; "
            "fit it again"
        )
    if json_hash(decisive) != fingerprint:
        raise CheckpointError(
            f"the codec in {folder} was changed after fitting: {CONFIG_FILE} does not match its "
            "fingerprint; fit it again"
        )
    # The fingerprint covers these hashes, so the files are checked against it too.
    for name, digest in decisive["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(
                f"the codec in {folder} is incomplete: {name} is missing; copy the whole folder "
                "or fit it again"
            )
        if sha256_of(folder / name) != digest:
            raise CheckpointError(
                f"the codec in {folder} is damaged: {name} is not the file that was fitted; copy "
                "it again or fit it again"
            )


def codec_name_in(folder: Path) -> str:
    """Return the registered name of the codec that a folder was fitted for.

    Raises:
        CheckpointError: the folder holds no fitted codec.
    """
    try:
        return str(json.loads((folder / CONFIG_FILE).read_text("utf-8")).get("codec", UNNAMED))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"there is no fitted codec in {folder}") from error


def _read_document(
    folder: Path, codec: str, keys: Sequence[str]
) -> tuple[dict[str, Any], str, Mapping[str, Any]]:
    """The settings that decide the codec, its fingerprint, and its metrics, from config.json."""
    try:
        document = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        # Before the keys are read, because another codec has other ones.
        if (name := document.get("codec", UNNAMED)) != codec:
            raise CheckpointError(
                f"the codec in {folder} is a {name}, not a {codec}; set codec={name}, or "
                "codec.folder to another"
            )
        decisive = {key: document[key] for key in ("format", *keys, "files")}
        return decisive, document["fingerprint"], document.get("metrics", {})
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no codec in {folder}: {CONFIG_FILE} is missing; fit one with "
            "echox-prepare codec"
        ) from None
    # A file that was edited by hand can hold any JSON, so any look-up in it can fail.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the codec in {folder} has a damaged {CONFIG_FILE} "
            f"({type(error).__name__}: {error}); fit it again"
        ) from error
