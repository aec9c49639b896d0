"""Sizes of a published checkpoint's parts: from its config where that decides, from its tensors where they know better."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from echox.errors import CheckpointError, ConfigError

TRANSLATOR = "unit_translator.model."
HEAD_WIDTH = 64  # channels of an attention head where nothing else is known; so in all of the release's own sizes
NOT_LLAMA = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "audio_tower",
    "adapter_size",
    "quantization_config",
)


def llama_config(config: Mapping[str, Any], **changed: Any) -> transformers.LlamaConfig:
    """The Llama part of a config.json.

    Raises:
        CheckpointError: a key is missing or has a value that no Llama has.
    """
    try:
        return transformers.LlamaConfig(
            **{key: value for key, value in {**config, **changed}.items() if key not in NOT_LLAMA}, attn_implementation="sdpa"
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"config.json describes no Llama: {' '.join(str(error).split())}") from error


@dataclass(frozen=True, slots=True)
class TranslatorSize:
    """Sizes of a unit translator's body."""

    layers: int
    width: int
    heads: int
    key_heads: int
    feed_forward: int
    head_dim: int  # channels of an attention head

    def changes(self) -> dict[str, int]:
        """What of the language model's config differs.

        The release's limit of 2048 positions is left out: Llama 3's rotary tables do not depend on it, and transformers warns of it.
        """
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "intermediate_size": self.feed_forward,
            "head_dim": self.head_dim,
        }


def named_sizes(config: Mapping[str, Any]) -> Iterator[TranslatorSize]:
    """The sizes that `unit_model` may mean, the likeliest first.

    "small" was 6 x 512 in the authors' training code and is 4 x 512 in their release, hence all of them are tried. Where the release
    names no number of key/value heads, the language model's is inherited.
    """
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    large = TranslatorSize(2, config["hidden_size"], heads, key_heads, config["intermediate_size"], own_head_dim(config))
    small = TranslatorSize(4, 512, 8, key_heads, 2048, 64)
    middle = TranslatorSize(6, 512, 8, key_heads, 2048, 64)
    medium = TranslatorSize(8, 768, 12, 12, 2048, 64)
    if "unit_model" not in config:
        named = middle
    else:
        named = {"large": large, "small": small}.get(config["unit_model"], medium)
    yield named
    yield from (large, small, middle, medium)


def own_head_dim(config: Mapping[str, Any]) -> int:
    """Channels of the language model's attention heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def translator_size(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> TranslatorSize:
    """The size that a checkpoint's tensors have.

    Args:
        shapes: name -> shape of the checkpoint's tensors.
    Raises:
        CheckpointError: the tensors of the unit translator are missing or have no common size.
    """
    first = f"{TRANSLATOR}layers.0."
    queries, keys, inner = (
        tensor_shape(shapes, f"{first}{name}.weight", 2) for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    )
    found = (layer_count(shapes, f"{TRANSLATOR}layers."), queries[1], queries[0], keys[0], inner[0])
    for size in named_sizes(config):
        if found == (size.layers, size.width, size.heads * size.head_dim, size.key_heads * size.head_dim, size.feed_forward):
            return size
    return _unnamed_size(config, found)


def _unnamed_size(config: Mapping[str, Any], found: tuple[int, int, int, int, int]) -> TranslatorSize:
    """A size nobody has named: heads are as wide as the language model's, or as in the release."""
    layers, width, queries, keys, inner = found
    own = own_head_dim(config)
    for head in (own, HEAD_WIDTH) if width == config["hidden_size"] else (HEAD_WIDTH, own):
        if queries % head == 0 and keys % head == 0:
            return TranslatorSize(layers, width, queries // head, keys // head, inner, head)
    raise CheckpointError(
        f"a unit translator of width {width} with {keys} key channels has no whole number of heads; its tensors do not belong together"
    )


def layer_count(names: Collection[str], prefix: str) -> int:
    """Layers numbered from 0 under a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def tensor_shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    """
    Raises:
        CheckpointError: the tensor is missing or has another number of dimensions.
    """
    if name not in shapes:
        raise CheckpointError(f"the checkpoint lacks tensor {name}; it is incomplete or no EchoX: copy the folder again")
    if len(shapes[name]) != dimensions:
        raise CheckpointError(f"tensor {name} has shape {list(shapes[name])} instead of {dimensions} dimensions; copy the folder again")
    return tuple(shapes[name])


def wanted_keys(config: Mapping[str, Any], where: object) -> None:
    """
    Raises:
        ConfigError: config.json is not EchoX's.
    """
    needed = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size", "adapter_size"]
    needed += [] if config.get("model_type") == "Soundwave" else ["unit_vocab_size"]
    if missing := [key for key in needed if not isinstance(config.get(key), int)]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}, which EchoX's config.json has; it describes another model")
