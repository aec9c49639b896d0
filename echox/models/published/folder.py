"""A published EchoX folder, read and written.

    config.json                          sizes; `audio_tower` says where Whisper lies
    model.safetensors, or shards + index the weights, by the release's names
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json
    g_00500000, vocoder_config.json      the vocoder

Weights are read by safetensors and `torch.load(weights_only=True)` alone; no code is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from echox.checkpoint import META
from echox.errors import CheckpointError
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.causal import LanguageModel, restore_rotary
from echox.models.published.compatibility import RELEASE, Compatibility
from echox.models.published.model import PublishedEchoX
from echox.models.published.sizes import layer_count, llama_config, tensor_shape, translator_size, wanted_keys
from echox.models.published.tokens import ReleaseTokens
from echox.models.published.translator import UnitTranslator

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE = "EchoX"
SHARD_BYTES = 5_000_000_000  # of the release's shards

# The release's prefixes and ours; the first that fits holds.
PREFIXES = (
    ("model.mm_projector1.", "adapter.projector."),
    ("model.asr_transformer_encoder.layers.", "adapter.layers."),
    ("model.out_norm.", "adapter.out_norm."),
    ("model.audio_feature_head.", "adapter.ctc_head."),
    ("model.lbm.encoder_attn.", "adapter.look_back."),
    ("model.lbm.atten_layer_norm.", "adapter.look_back_norm."),
    ("unit_translator.model.embed_tokens.", "translator.text_rows."),
    ("unit_translator.model.", "translator.body."),
    ("unit_translator.unit_embedding.", "translator.unit_rows."),
    ("unit_translator.adapter.", "translator.adapter."),
    ("unit_translator.lm_head.", "translator.head."),
    ("unit_translator.aligner_MLP.", "translator.denoiser."),
    ("lm_head.", "language.head."),
    ("model.", "language.body."),
)
HEAD, EMBEDDING, TEXT_ROWS = "lm_head.weight", "model.embed_tokens.weight", "unit_translator.model.embed_tokens.weight"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Release:
    """A published checkpoint, read but not yet built."""

    folder: Path  # where the tokenizer and the vocoder lie
    config: dict[str, Any]
    tensors: dict[str, Tensor]  # by the release's names, as stored


def is_release(folder: str | Path) -> bool:
    """Whether a folder holds an EchoX in the published format."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


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
    """Config and weights of a published folder.

    Raises:
        CheckpointError: a file is missing or damaged. ConfigError: it is another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    return Release(folder, config, tensors)


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


def files_beside(folder: Path) -> list[Path]:
    """What a published folder holds beside its weights: config, tokenizer, vocoder and whatever else lies there; no sub-folders."""
    weights = {path.name for path in weight_files(folder)} | {INDEX, META}
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in weights)


def our_name(name: str) -> str:
    """The name in `PublishedEchoX` of a tensor of the release."""
    for theirs, ours in PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def their_name(name: str) -> str:
    """The release's name of a tensor in `PublishedEchoX`; the inverse of `our_name`."""
    for theirs, ours in PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def build(
    release: Release,
    *,
    compatibility: Compatibility = RELEASE,
    dtype: torch.dtype | None = torch.float32,
    tokens: ReleaseTokens | None = None,
) -> PublishedEchoX:
    """The model of a published checkpoint, its weights filled in, in eval mode on the CPU.

    Args:
        dtype: of the weights; None keeps what is stored. Rotary tables are float32 in any case, for rounding them changes what is said.
    Raises:
        CheckpointError: a tensor is missing or has another shape than its neighbours and config.json ask for.
    """
    tokens = tokens or ReleaseTokens(release.folder)
    with torch.device("meta"):
        model = _empty(release, tokens, compatibility)
    restore_rotary(model.language.body)
    restore_rotary(model.translator.body)
    filled = {our_name(name): tensor for name, tensor in _with_shared(release).items()}
    _check(model, filled, release.folder)
    wanted = model.state_dict().keys()
    model.load_state_dict(
        {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in filled.items() if name in wanted}, assign=True
    )
    return model.eval()


def _empty(release: Release, tokens: ReleaseTokens, compatibility: Compatibility) -> PublishedEchoX:
    """The model without memory for its weights."""
    config = release.config
    shapes = {name: tuple(tensor.shape) for name, tensor in release.tensors.items()}
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
    size = translator_size(config, shapes)
    aligner = "unit_translator.aligner_MLP."
    translator = UnitTranslator(
        llama_config(config, **size.changes()),
        text.hidden_size,
        text.vocab_size,
        config["unit_vocab_size"],
        tensor_shape(shapes, f"{aligner}0.weight", 2)[0] if any(name.startswith(aligner) for name in shapes) else None,
        tokens.end_id,
    )
    return PublishedEchoX(ShrinkingAdapter(adapter, compatibility), LanguageModel(text), translator, tokens, compatibility)


def _with_shared(release: Release) -> dict[str, Tensor]:
    """The tensors, and those that were saved under one name because they share their memory.

    The release trains with the unit translator's text rows tied to the head; saving such a model drops the head.
    """
    tensors = dict(release.tensors)
    if HEAD not in tensors:
        other = EMBEDDING if release.config.get("tie_word_embeddings") else TEXT_ROWS
        if other in tensors:
            tensors[HEAD] = tensors[other]
    if TEXT_ROWS not in tensors and HEAD in tensors:
        tensors[TEXT_ROWS] = tensors[HEAD]
    return tensors


def _check(model: PublishedEchoX, filled: Mapping[str, Tensor], folder: Path) -> None:
    wanted = model.state_dict()
    if missing := [their_name(name) for name in wanted if name not in filled]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of EchoX, such as {missing[0]}; it is incomplete: copy the folder again"
        )
    for name, tensor in filled.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"tensor {their_name(name)} in {folder} has shape {list(tensor.shape)}, but config.json and the other tensors ask for "
                f"{list(wanted[name].shape)}; the files do not belong together: copy the folder again"
            )
    if unknown := [their_name(name) for name in filled if name not in wanted]:
        log.warning("%s holds %d tensors that EchoX does not use, such as %s; they are left out", folder, len(unknown), unknown[0])


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
        tensors: by the release's names, in the order they are to lie.
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
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        safetensors.torch.save_file(_unshared(shards[0]), folder / WEIGHTS, {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(_unshared(shard), folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(_bytes(tensor) for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n", "utf-8")


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + _bytes(tensor) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += _bytes(tensor)
    yield shard


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory, as a tied head does.
    return {name: tensor.clone() for name, tensor in tensors.items()}
