"""The folder of a fitted k-means codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from echox.codecs.kmeans.acoustic_model import AcousticModelSizes
from echox.codecs.quantization.folder import LANGUAGE_FILE, read_fitted, write_fitted
from echox.core.config import from_plain


@dataclass(frozen=True, slots=True)
class CodecFolder:
    """Content of a fitted folder, read and checked."""

    encoder: Mapping[str, Any]  # as `ENCODERS.describe` wrote it
    vocoder: str
    sizes: AcousticModelSizes
    tensors: Mapping[str, Tensor]  # as `codec_tensors` names them
    language: bytes  # sentencepiece model, empty where a word is a unit
    metrics: Mapping[str, Any]
    fingerprint: str


def codec_tensors(centroids: Tensor, acoustic_model: nn.Module) -> dict[str, Tensor]:
    """Name the tensors of model.safetensors: centroids [V, D] and the acoustic model's weights."""
    # "speaker." is the model's attribute in `KMeansCodec`, and part of the file format.
    weights = acoustic_model.state_dict()
    return {
        "centroids": centroids,
        **{f"speaker.{name}": tensor for name, tensor in weights.items()},
    }


def write_folder(
    folder: Path,
    *,
    encoder: Mapping[str, Any],
    vocoder: str,
    sizes: Mapping[str, Any],
    centroids: Tensor,
    acoustic_model: nn.Module,
    language: bytes,
    metrics: Mapping[str, Any],
) -> str:
    """Write a fitted codec and return its fingerprint.

    The arguments are as in `CodecFolder`, but sizes are JSON-ready and centroids are [V, D].
    """
    settings = {"encoder": encoder, "vocoder": vocoder, "sizes": sizes}
    tensors = codec_tensors(centroids, acoustic_model)
    return write_fitted(folder, settings, tensors, {LANGUAGE_FILE: language}, metrics)


def read_folder(folder: Path) -> CodecFolder:
    """Read and check a fitted codec.

    Raises:
        CheckpointError: the folder is missing, incomplete, changed or of another version.
    """
    fitted = read_fitted(folder, "kmeans", ("encoder", "vocoder", "sizes"))
    return CodecFolder(
        encoder=fitted.settings["encoder"],
        vocoder=fitted.settings["vocoder"],
        language=(folder / LANGUAGE_FILE).read_bytes(),
        sizes=from_plain(AcousticModelSizes, fitted.settings["sizes"]),
        tensors=fitted.tensors,
        metrics=fitted.metrics,
        fingerprint=fitted.fingerprint,
    )
