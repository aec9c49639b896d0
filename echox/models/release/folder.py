"""Reading a folder in the released layout, of EchoX or of Soundwave, which has no speech output.

    config.json                          sizes; `audio_tower` says where Whisper lies
    model.safetensors, or shards + index the weights, by the release's names; Soundwave's Whisper is
                                         among them
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json
    g_00500000, vocoder_config.json      the vocoder

Weights are read by safetensors and `torch.load(weights_only=True)` alone; no code is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.assets.tensors import StoredTensors, specs_of
from echox.core.checkpoint import META
from echox.core.errors import CheckpointError
from echox.models.compatibility import Compatibility, form_of
from echox.models.release.adapter import released_adapter
from echox.models.release.causal import restore_rotary
from echox.models.release.language import LanguageModel
from echox.models.release.model import PublishedEchoX
from echox.models.release.names import (
    DENOISER,
    EMBEDDING,
    HEAD,
    INNER_WHISPER,
    TEXT_ROWS,
    our_name,
    their_name,
)
from echox.models.release.sizes import (
    check_config_keys,
    layer_count,
    llama_config,
    tensor_shape,
    translator_size,
)
from echox.models.release.tokens import ReleaseTokens
from echox.models.release.translator import UnitTranslator

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = ("EchoX", "Soundwave")
HASH_BLOCK_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Release:
    """A released checkpoint whose weights are still on the disk."""

    folder: Path  # of the tokenizer and the vocoder
    config: dict[str, Any]  # its config.json
    tensors: Mapping[str, Tensor]  # by the release's names, as stored

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors."""
        return {name: spec.shape for name, spec in specs_of(self.tensors).items()}

    @property
    def speaks(self) -> bool:
        """Whether config.json describes a unit translator; Soundwave has none."""
        return "unit_vocab_size" in self.config

    @property
    def compatibility(self) -> Compatibility:
        """The form in which the weights were trained."""
        return form_of(self.config)


def is_release(folder: str | Path) -> bool:
    """Whether a folder holds an EchoX or a Soundwave in the released layout."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False  # no config.json, or one of something else
    return isinstance(config, dict) and config.get("model_type") in MODEL_TYPES


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder.

    Raises:
        CheckpointError: it is missing or broken.
        ConfigError: it describes another model.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no published EchoX: it has no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the folder again") from error
    check_config_keys(config, path)
    return config


def weight_files(folder: Path) -> list[Path]:
    """Files that hold the weights of a folder.

    Raises:
        CheckpointError: there are none, or some are missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; copy the weights beside config.json"
        )
    try:
        # The index names a file for each tensor; sorted, so that fingerprints do not depend on it.
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is no index of shards ({error}); copy the folder again"
        ) from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks the weights {', '.join(missing)}, which its index names; "
            "copy them beside it"
        )
    return [folder / name for name in names]


def read_release(folder: str | Path) -> Release:
    """Read the config of a released folder, and names and shapes of its weights.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the folder holds another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    return Release(folder, config, StoredTensors(weight_files(folder)))


def weights_fingerprint(folder: Path) -> str:
    """Sha256 of the weights of a folder, in hex.

    Raises:
        CheckpointError: there are no weights, or some are missing.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            # In blocks, because a shard may be larger than the memory.
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def release_files(folder: Path) -> list[Path]:
    """Files of a released folder, without sub-folders and without echox's own metadata."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != META)


def files_beside(folder: Path) -> list[Path]:
    """Files of a released folder beside its weights: config, tokenizer, vocoder and others.

    Raises:
        CheckpointError: the folder has no weights, or some are missing.
    """
    weights = {path.name for path in weight_files(folder)} | {INDEX, META}
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in weights)


def build(
    release: Release,
    *,
    compatibility: Compatibility | None = None,
    dtype: torch.dtype | None = torch.float32,
    tokens: ReleaseTokens | None = None,
) -> PublishedEchoX:
    """Build the model of a released checkpoint with its weights, in eval mode on the CPU.

    Args:
        release: the checkpoint.
        compatibility: the form to compute in; None takes the checkpoint's own.
        dtype: of the weights; None keeps what is stored. Rotary tables are float32 in any case,
            because rounding them changes the generated tokens.
        tokens: the tokenizer; None reads the folder's.

    Raises:
        CheckpointError: a tensor is missing or has another shape than its neighbours and
            config.json ask for.
    """
    model = outline(release, compatibility=compatibility, tokens=tokens)
    for part in (model.language, model.translator):
        # Soundwave has no translator.
        if part is not None:
            restore_rotary(part.body)
    stored = _stored_names(release)
    sources = {name: stored[their_name(name)] for name in model.state_dict()}
    # Each is rounded as soon as it is read, so that stored and rounded weights are never in
    # memory together. A tensor that is stored once under two names is read once.
    weights = {
        source: _cast(release.tensors[source], dtype) for source in dict.fromkeys(sources.values())
    }
    # By assignment: the model is on the meta device, where nothing can be copied to.
    model.load_state_dict({name: weights[source] for name, source in sources.items()}, assign=True)
    return model.eval()


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def outline(
    release: Release,
    *,
    compatibility: Compatibility | None = None,
    tokens: ReleaseTokens | None = None,
) -> PublishedEchoX:
    """Build the model on the meta device and check that every stored tensor fits it.

    No weight is read.

    Raises:
        CheckpointError: as `build`.
    """
    tokens = tokens or ReleaseTokens.of(release.folder)
    with torch.device("meta"):
        model = _empty_model(release, tokens, compatibility or release.compatibility)
    _check_shapes(model, release)
    return model


def _empty_model(
    release: Release, tokens: ReleaseTokens, compatibility: Compatibility
) -> PublishedEchoX:
    """The model, its sizes taken from config.json and from the shapes of the tensors."""
    config, shapes = release.config, release.shapes
    layers = "model.asr_transformer_encoder.layers."  # the adapter's alignment layers
    # Soundwave has no unit translator.
    translator = _empty_translator(release) if release.speaks else None
    adapter = released_adapter(
        config,
        tokens.audio_id,
        compatibility,
        layers=layer_count(shapes, layers),
        feed_forward=tensor_shape(shapes, f"{layers}0.linear1.weight", 2)[0],
    )
    language = LanguageModel(llama_config(config), tokens)
    return PublishedEchoX(adapter, language, translator, tokens, compatibility)


def _empty_translator(release: Release) -> UnitTranslator:
    config, shapes = release.config, release.shapes
    # A translator after T2C pretraining alone has no denoising adapter.
    denoises = any(name.startswith(DENOISER) for name in shapes)
    width = tensor_shape(shapes, f"{DENOISER}0.weight", 2)[0] if denoises else None
    return UnitTranslator.of(config, translator_size(config, shapes), width)


def _stored_names(release: Release) -> dict[str, str]:
    """Name of each tensor -> the name it is stored under.

    Tensors that share their memory are saved once. The release trains with the unit translator's
    text rows tied to the head, and saving such a model drops the head.
    """
    stored = {name: name for name in release.tensors}
    if HEAD not in stored:
        tied = release.config.get("tie_word_embeddings") or not release.speaks
        other = EMBEDDING if tied else TEXT_ROWS
        if other in stored:
            stored[HEAD] = other
    if release.speaks and TEXT_ROWS not in stored and HEAD in stored:
        stored[TEXT_ROWS] = stored[HEAD]
    return stored


def _check_shapes(model: PublishedEchoX, release: Release) -> None:
    """Check that every tensor of the model is stored, in its shape.

    Raises:
        CheckpointError: one is not.
    """
    expected, shapes, folder = model.state_dict(), release.shapes, release.folder
    # Soundwave's Whisper is read by the encoder, not by this model.
    stored = {
        our_name(name): shapes[source]
        for name, source in _stored_names(release).items()
        if not name.startswith(INNER_WHISPER)
    }
    if missing := [their_name(name) for name in expected if name not in stored]:
        kind = release.config.get("model_type", "EchoX")
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of {kind}, such as {missing[0]}; "
            "it is incomplete: copy the folder again"
        )
    for name, shape in stored.items():
        if name in expected and shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"tensor {their_name(name)} in {folder} has shape {list(shape)}, "
                f"but config.json and the other tensors ask for {list(expected[name].shape)}; "
                "the files do not belong together: copy the folder again"
            )
    if unknown := [their_name(name) for name in stored if name not in expected]:
        log.warning(
            "%s holds %d tensors that EchoX does not use, such as %s; they are left out",
            folder,
            len(unknown),
            unknown[0],
        )
