"""A published folder, read: EchoX's, and Soundwave's, which hears and writes but does not speak.

    config.json                          sizes; `audio_tower` says where Whisper lies
    model.safetensors, or shards + index the weights, by the release's names; Soundwave's Whisper is among them
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
from echox.checkpoint import META
from echox.errors import CheckpointError
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.causal import LanguageModel, restore_rotary
from echox.models.published.compatibility import Compatibility, form_of
from echox.models.published.model import PublishedEchoX
from echox.models.published.names import DENOISER, EMBEDDING, HEAD, INNER_WHISPER, TEXT_ROWS, our_name, their_name
from echox.models.published.sizes import layer_count, llama_config, tensor_shape, translator_size, wanted_keys
from echox.models.published.tokens import ReleaseTokens
from echox.models.published.translator import UnitTranslator

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = ("EchoX", "Soundwave")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Release:
    """A published checkpoint, its weights still on the disk."""

    folder: Path  # where the tokenizer and the vocoder lie
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]  # by the release's names, as stored

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors."""
        return {name: spec.shape for name, spec in specs_of(self.tensors).items()}

    @property
    def speaks(self) -> bool:
        """Whether it has, or ought to have, a unit translator; Soundwave has none."""
        return "unit_vocab_size" in self.config

    @property
    def compatibility(self) -> Compatibility:
        """The form its weights were trained in."""
        return form_of(self.config)


def is_release(folder: str | Path) -> bool:
    """Whether a folder holds an EchoX or a Soundwave in the published format."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in MODEL_TYPES


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        CheckpointError: it is missing or broken. ConfigError: it describes another model.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no published EchoX: it has no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the folder again") from error
    wanted_keys(config, path)
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights.

    Raises:
        CheckpointError: there are none, or some are missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}; copy the weights beside config.json")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} is no index of shards ({error}); copy the folder again") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks the weights {', '.join(missing)}, which its index names; copy them beside it")
    return [folder / name for name in names]


def read_release(folder: str | Path) -> Release:
    """Config and weights of a published folder; of the weights, their names and shapes.

    Raises:
        CheckpointError: a file is missing or damaged. ConfigError: it is another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    return Release(folder, config, StoredTensors(weight_files(folder)))


def weights_fingerprint(folder: Path) -> str:
    """The sha256 of a folder's weights, in hex.

    Raises:
        CheckpointError: there are none, or some are missing.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def release_files(folder: Path) -> list[Path]:
    """All that a published folder holds, without sub-folders and without what echox put beside it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != META)


def files_beside(folder: Path) -> list[Path]:
    """What a published folder holds beside its weights: config, tokenizer, vocoder and whatever else lies there; no sub-folders."""
    weights = {path.name for path in weight_files(folder)} | {INDEX, META}
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in weights)


def build(
    release: Release,
    *,
    compatibility: Compatibility | None = None,
    dtype: torch.dtype | None = torch.float32,
    tokens: ReleaseTokens | None = None,
) -> PublishedEchoX:
    """The model of a published checkpoint, its weights filled in, in eval mode on the CPU.

    Args:
        compatibility: None takes the checkpoint's own.
        dtype: of the weights; None keeps what is stored. Rotary tables are float32 in any case, for rounding them changes what is said.
    Raises:
        CheckpointError: a tensor is missing or has another shape than its neighbours and config.json ask for.
    """
    model = outline(release, compatibility=compatibility, tokens=tokens)
    for part in (model.language, model.translator):
        if part is not None:
            restore_rotary(part.body)
    stored = _origins(release)
    origins = {name: stored[their_name(name)] for name in model.state_dict()}
    # Each is rounded as soon as it is read, so that stored and rounded weights are never in memory together.
    filled = {origin: _as(release.tensors[origin], dtype) for origin in dict.fromkeys(origins.values())}
    model.load_state_dict({name: filled[origin] for name, origin in origins.items()}, assign=True)
    return model.eval()


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def outline(release: Release, *, compatibility: Compatibility | None = None, tokens: ReleaseTokens | None = None) -> PublishedEchoX:
    """The model on the meta device, once every tensor of the checkpoint is found to fit it; no weight is read.

    Raises:
        CheckpointError: as `build`.
    """
    tokens = tokens or ReleaseTokens.of(release.folder)
    with torch.device("meta"):
        model = _empty(release, tokens, compatibility or release.compatibility)
    _check(model, release)
    return model


def _empty(release: Release, tokens: ReleaseTokens, compatibility: Compatibility) -> PublishedEchoX:
    """The model, its sizes taken from config.json and from the tensors' shapes."""
    config, shapes = release.config, release.shapes
    text = llama_config(config)
    layers = "model.asr_transformer_encoder.layers."
    adapter = AdapterShape(
        feature_dim=config["adapter_size"],
        width=text.hidden_size,
        vocab_size=text.vocab_size,
        heads=text.num_attention_heads,
        blank_id=tokens.audio_id,
        feed_forward=tensor_shape(shapes, f"{layers}0.linear1.weight", 2)[0],
        layers=layer_count(shapes, layers),
    )
    translator = _empty_translator(release, tokens) if release.speaks else None
    return PublishedEchoX(ShrinkingAdapter(adapter, compatibility), LanguageModel(text), translator, tokens, compatibility)


def _empty_translator(release: Release, tokens: ReleaseTokens) -> UnitTranslator:
    config, shapes = release.config, release.shapes
    denoises = any(name.startswith(DENOISER) for name in shapes)
    return UnitTranslator(
        llama_config(config, **translator_size(config, shapes).changes()),
        config["hidden_size"],
        config["vocab_size"],
        config["unit_vocab_size"],
        tensor_shape(shapes, f"{DENOISER}0.weight", 2)[0] if denoises else None,
        tokens.end_id,
    )


def _origins(release: Release) -> dict[str, str]:
    """Name of each tensor -> the name it is stored under, where tensors that share their memory were saved once.

    The release trains with the unit translator's text rows tied to the head; saving such a model drops the head.
    """
    stored = {name: name for name in release.tensors}
    if HEAD not in stored:
        other = EMBEDDING if release.config.get("tie_word_embeddings") or not release.speaks else TEXT_ROWS
        if other in stored:
            stored[HEAD] = other
    if release.speaks and TEXT_ROWS not in stored and HEAD in stored:
        stored[TEXT_ROWS] = stored[HEAD]
    return stored


def _check(model: PublishedEchoX, release: Release) -> None:
    wanted, shapes, folder = model.state_dict(), release.shapes, release.folder
    filled = {our_name(name): shapes[stored] for name, stored in _origins(release).items() if not name.startswith(INNER_WHISPER)}
    if missing := [their_name(name) for name in wanted if name not in filled]:
        kind = release.config.get("model_type", "EchoX")
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of {kind}, such as {missing[0]}; it is incomplete: copy the folder again"
        )
    for name, shape in filled.items():
        if name in wanted and shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"tensor {their_name(name)} in {folder} has shape {list(shape)}, but config.json and the other tensors ask for "
                f"{list(wanted[name].shape)}; the files do not belong together: copy the folder again"
            )
    if unknown := [their_name(name) for name in filled if name not in wanted]:
        log.warning("%s holds %d tensors that EchoX does not use, such as %s; they are left out", folder, len(unknown), unknown[0])
