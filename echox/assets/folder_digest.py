"""Digest of a folder of weights, which tells two folders apart without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
# Settings and tokenizers decide what a model computes too; texts for people do not.
ENDINGS = WEIGHTS | {".json", ".model", ".txt", ".jinja"}
WHOLE_BYTES = 32 << 20  # files up to this are read whole: all but large weights
SAMPLE_BYTES = 256  # of each tensor of larger ones, or of as many places as below
SAMPLES = 4096
HEADER_BYTES = 64 << 20  # of a safetensors file at most; larger models have less


def folder_digest(folder: Path) -> str:
    """Hash names and sizes of a folder's files, small files whole and the begin of each tensor.

    Training changes all values of a tensor, so its begin tells. A copy of the folder elsewhere has
    the same digest.

    Args:
        folder: of a model as transformers reads it.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in ENDINGS and path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            for content in _samples(path):
                digest.update(content)
    return digest.hexdigest()[:16]


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        yield path.read_bytes()
        return
    places: Sequence[int] = range(0, size, max(1, size // SAMPLES))
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            header = file.read(min(HEADER_BYTES, int.from_bytes(file.read(8), "little")))
            yield header
            places = _tensor_places(header) or places
        for place in places:
            file.seek(place)
            yield file.read(SAMPLE_BYTES)


def _tensor_places(header: bytes) -> list[int]:
    """Return where the tensors of a safetensors file begin; none where its header is damaged."""
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return sorted(8 + len(header) + entry["data_offsets"][0] for entry in entries)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []  # whoever loads the weights says so
