"""Sizes of a released checkpoint's modules, from its config.json or from its tensors' shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from echox.core.errors import CheckpointError, ConfigError

TRANSLATOR = "unit_translator.model."
# Channels of an attention head where nothing else is known; so in all of the release's own sizes.
DEFAULT_HEAD_DIM = 64
# Keys that a Llama's config does not take, or that describe the file and not the model.
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
NEEDED_KEYS = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "adapter_size",
)


def llama_config(config: Mapping[str, Any], **changed: Any) -> transformers.LlamaConfig:
    """The Llama part of a config.json.

    Args:
        config: a parsed config.json.
        **changed: keys with other values.

    Raises:
        CheckpointError: a key is missing or has a value that no Llama has.
    """
    keys = {key: value for key, value in {**config, **changed}.items() if key not in NOT_LLAMA}
    try:
        return transformers.LlamaConfig(**keys | {"attn_implementation": "sdpa"})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            # The library's messages span several lines.
            f"config.json describes no Llama: {' '.join(str(error).split())}"
        ) from error


@dataclass(frozen=True, slots=True)
class TranslatorSize:
    """Sizes of the Llama body of a unit translator."""

    layers: int
    width: int  # hidden channels
    heads: int
    key_heads: int  # heads of keys and values
    feed_forward: int  # channels inside the feed-forward blocks
    head_dim: int  # channels of an attention head

    def config_overrides(self) -> dict[str, int]:
        """Keys of a Llama's config that differ from the language model's.

        The release's limit of 2048 positions is left out: Llama 3's rotary tables do not depend
        on it, and transformers warns of it.
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

    "small" was 6 x 512 in the authors' training code and is 4 x 512 in their release, hence all
    of them are tried. Where the release names no number of key/value heads, the language model's
    is inherited.
    """
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    width, feed_forward = config["hidden_size"], config["intermediate_size"]
    # At the language model's width; the others are 512 or 768 wide, with heads of 64 channels.
    large = TranslatorSize(2, width, heads, key_heads, feed_forward, language_head_dim(config))
    small = TranslatorSize(4, 512, 8, key_heads, 2048, 64)
    unnamed = TranslatorSize(6, 512, 8, key_heads, 2048, 64)
    medium = TranslatorSize(8, 768, 12, 12, 2048, 64)
    if "unit_model" not in config:
        yield unnamed
    else:
        # Any other value is 8 x 768 in the release's code.
        yield {"large": large, "small": small}.get(config["unit_model"], medium)
    # The key may be wrong, so that a checkpoint's tensors are compared with all of them.
    yield from (large, small, unnamed, medium)


def language_head_dim(config: Mapping[str, Any]) -> int:
    """Channels of an attention head of the language model."""
    # Llama's configs leave `head_dim` out, or null, where the heads divide the width.
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def translator_size(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> TranslatorSize:
    """The size of a unit translator, from the shapes of its tensors.

    Args:
        config: a parsed config.json, whose named sizes tell the number of heads.
        shapes: name -> shape of the checkpoint's tensors.

    Raises:
        CheckpointError: tensors of the unit translator are missing or have no common size.
    """
    first = f"{TRANSLATOR}layers.0."
    queries, keys, inner = (
        tensor_shape(shapes, f"{first}{name}.weight", 2)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    )
    layers = layer_count(shapes, f"{TRANSLATOR}layers.")
    # Linear weights are [out, in].
    stored = (layers, queries[1], queries[0], keys[0], inner[0])
    for size in named_sizes(config):
        channels = (size.heads * size.head_dim, size.key_heads * size.head_dim)
        if stored == (size.layers, size.width, *channels, size.feed_forward):
            return size
    return _unnamed_size(config, stored)


def _unnamed_size(
    config: Mapping[str, Any], stored: tuple[int, int, int, int, int]
) -> TranslatorSize:
    """A size that the release does not name, whose number of heads shapes alone do not tell.

    It has as many heads as the size that `unit_model`, or its absence, names; where these do not
    divide its channels, heads as wide as the language model's, or as in the release.
    """
    layers, width, queries, keys, inner = stored
    own = language_head_dim(config)
    named = next(named_sizes(config))
    candidates = [queries // named.heads if queries % named.heads == 0 else 0]
    if width == config["hidden_size"]:
        # A translator of the language model's width may have been made from its config instead.
        key_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        candidates.insert(0 if keys == key_heads * own else 1, own)
    for head_dim in (*candidates, DEFAULT_HEAD_DIM, own):
        if head_dim and queries % head_dim == 0 and keys % head_dim == 0:
            return TranslatorSize(
                layers, width, queries // head_dim, keys // head_dim, inner, head_dim
            )
    raise CheckpointError(
        f"a unit translator of width {width} with {queries} query and {keys} key channels has no "
        "whole number of heads; its tensors do not belong together"
    )


def layer_count(names: Collection[str], prefix: str) -> int:
    """Number of layers, numbered from 0, among the names under a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def tensor_shape(
    shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int
) -> tuple[int, ...]:
    """Look up the shape of a tensor.

    Args:
        shapes: name -> shape of the checkpoint's tensors.
        name: of the tensor, as the release has it.
        dimensions: number of dimensions that it must have.

    Raises:
        CheckpointError: the tensor is missing or has another number of dimensions.
    """
    if name not in shapes:
        raise CheckpointError(
            f"the checkpoint lacks tensor {name}; it is incomplete or no EchoX: "
            "copy the folder again"
        )
    if len(shapes[name]) != dimensions:
        raise CheckpointError(
            f"tensor {name} has shape {list(shapes[name])} instead of {dimensions} dimensions; "
            "copy the folder again"
        )
    return tuple(shapes[name])


def check_config_keys(config: Mapping[str, Any], path: object) -> None:
    """Check that a config.json is one of EchoX or Soundwave.

    Args:
        config: the parsed file.
        path: where it lies, for the error.

    Raises:
        ConfigError: a key of EchoX is missing.
    """
    needed = list(NEEDED_KEYS)
    # Soundwave has no unit translator.
    if config.get("model_type") != "Soundwave":
        needed.append("unit_vocab_size")
    if missing := [key for key in needed if not isinstance(config.get(key), int)]:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)}, which EchoX's config.json has; "
            "it describes another model"
        )
