"""Released models without their weights: true shapes for outlines, and a tiny model for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from echox.assets.shapes import SHAPES as LANGUAGE_SHAPES
from echox.core.config import near
from echox.core.errors import AssetError
from echox.models.compatibility import Compatibility
from echox.models.release.adapter import released_adapter
from echox.models.release.language import LanguageModel
from echox.models.release.model import PublishedEchoX
from echox.models.release.sizes import llama_config, named_sizes
from echox.models.release.tokens import UNIT_COUNT, ReleaseTokens
from echox.models.release.translator import UnitTranslator

# Where Llama 3's tokenizer has them; small vocabularies have them behind the bytes.
SPECIAL = {
    "<|begin_of_text|>": 128_000,
    "<|eot_id|>": 128_009,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
}
BEHIND_BYTES = 300
_RELEASE = {
    "model_type": "EchoX",
    "vocab_size": 128_257,  # Llama's and <audio_patch>
    "tie_word_embeddings": False,
    "adapter_size": 1280,  # channels of Whisper large
    "audio_tower": "openai/whisper-large-v3",
    "unit_vocab_size": 8000,  # not known; the files' sizes say 7,000 to 8,400
    "unit_output": "finetune_kd",
}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "EchoX-3B": {**LANGUAGE_SHAPES["meta-llama/Llama-3.2-3B-Instruct"], **_RELEASE},
        "EchoX-8B": {
            **LANGUAGE_SHAPES["meta-llama/Llama-3.1-8B-Instruct"],
            **_RELEASE,
            "unit_model": "medium",
        },
    }
)
"""Name -> a config.json of a released model, as far as it is known."""

TINY: Mapping[str, Any] = MappingProxyType(
    {
        **_RELEASE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "head_dim": 4,
        "vocab_size": 12_811,  # above 12800, which the release's prefix holds
        "unit_vocab_size": UNIT_COUNT,
        "unit_model": "large",
        "max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
    }
)


def shape_of(name: str) -> dict[str, Any]:
    """The config.json of a released model, by the model's name.

    Raises:
        AssetError: the name is not known.
    """
    if name not in SHAPES:
        raise AssetError(
            f"no published model named {name!r}{near(name, SHAPES)}; "
            f"shapes are known of {', '.join(SHAPES)}"
        )
    return dict(SHAPES[name])


def untrained_model(config: Mapping[str, Any], compatibility: Compatibility) -> PublishedEchoX:
    """Build the model of a config.json on the current default device.

    It has the same weights at every call.

    Args:
        config: a parsed config.json.
        compatibility: the form to compute in.
    """
    unit_tokens = list(synthetic_unit_tokens(config["unit_vocab_size"]))
    tokens = synthetic_tokens(config["vocab_size"], unit_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The order in which modules are built decides their weights.
        size = next(named_sizes(config))
        translator = UnitTranslator.of(config, size, config["intermediate_size"])
        adapter = released_adapter(config, tokens.audio_id, compatibility)
        language = LanguageModel(llama_config(config), tokens)
        model = PublishedEchoX(adapter, language, translator, tokens, compatibility)
    # Tied, as in the release's training.
    translator.text_rows.weight = model.language.head.weight
    return model.eval()


def synthetic_unit_tokens(count: int) -> Iterator[str]:
    """Unit tokens for a model without a tokenizer: all single units, then pairs."""
    for number in range(count):
        first, second = number % UNIT_COUNT, (number + number // UNIT_COUNT) % UNIT_COUNT
        yield f"<|unit_{first}|>" if number < UNIT_COUNT else f"<|unit_{first}_{second}|>"


def synthetic_tokens(vocab_size: int, unit_tokens: Sequence[str]) -> ReleaseTokens:
    """Byte tokenizer with the special tokens of EchoX.

    Args:
        vocab_size: tokens without unit tokens; the last is the audio placeholder. Where it
            reaches, the special tokens have Llama 3's ids.
        unit_tokens: tokens that follow, such as "<|unit_12_4|>".
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Bytes have the first 256 ids.
    letters = {letter: index for index, letter in enumerate(alphabet)}
    fits = max(SPECIAL.values()) < vocab_size
    special = {
        token: index if fits else BEHIND_BYTES + number
        for number, (token, index) in enumerate(SPECIAL.items())
    }
    special |= {"<audio_patch>": vocab_size - 1}
    special |= {token: vocab_size + index for index, token in enumerate(unit_tokens)}
    core = Tokenizer(models.BPE(vocab=letters | special, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([*SPECIAL, "<audio_patch>"])
    # Not normalised, so that they are found in text as they are written.
    core.add_tokens([AddedToken(token, normalized=False) for token in unit_tokens])
    # The release tokenizes each piece of text by itself, begin-of-text before each.
    begin = next(iter(SPECIAL))
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, special[begin])]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|eot_id|>", pad_token="<|eot_id|>"
    )
    return ReleaseTokens(tokenizer, "a random model")
