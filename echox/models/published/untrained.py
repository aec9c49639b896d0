"""Published models without their weights: their true shapes for outlines and for speed work, and a tiny one for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from echox.assets.shapes import SHAPES as LANGUAGE_SHAPES
from echox.config import near
from echox.errors import AssetError
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.causal import LanguageModel
from echox.models.published.compatibility import Compatibility
from echox.models.published.model import PublishedEchoX
from echox.models.published.sizes import llama_config, named_sizes
from echox.models.published.tokens import UNIT_COUNT, ReleaseTokens
from echox.models.published.translator import UnitTranslator

# Where Llama 3's tokenizer has them; small vocabularies have them behind the bytes.
SPECIAL = {"<|begin_of_text|>": 128_000, "<|eot_id|>": 128_009, "<|start_header_id|>": 128_006, "<|end_header_id|>": 128_007}
BEHIND_BYTES = 300
_RELEASE = {
    "model_type": "EchoX",
    "vocab_size": 128_257,  # Llama's and <audio_patch>
    "tie_word_embeddings": False,
    "adapter_size": 1280,  # of Whisper large
    "audio_tower": "openai/whisper-large-v3",
    "unit_vocab_size": 8000,  # not known; the files' sizes say 7,000 to 8,400
    "unit_output": "finetune_kd",
}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "EchoX-3B": {**LANGUAGE_SHAPES["meta-llama/Llama-3.2-3B-Instruct"], **_RELEASE},
        "EchoX-8B": {**LANGUAGE_SHAPES["meta-llama/Llama-3.1-8B-Instruct"], **_RELEASE, "unit_model": "medium"},
    }
)
"""Name -> a config.json of a published model, as far as it is known."""

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


def shape_named(name: str) -> dict[str, Any]:
    """The config.json of a published model.

    Raises:
        AssetError: the name is not known.
    """
    if name not in SHAPES:
        raise AssetError(f"no published model named {name!r}{near(name, SHAPES)}; shapes are known of {', '.join(SHAPES)}")
    return dict(SHAPES[name])


def untrained_model(config: Mapping[str, Any], compatibility: Compatibility) -> PublishedEchoX:
    """The model that a config.json describes, on the current default device; the same weights at every call."""
    tokens = made_up_tokens(config["vocab_size"], list(made_up_words(config["unit_vocab_size"])))
    text = llama_config(config)
    H = text.hidden_size
    adapter = AdapterShape(
        feature_dim=config["adapter_size"],
        width=H,
        vocab_size=text.vocab_size,
        heads=text.num_attention_heads,
        blank_id=tokens.audio_id,
        feed_forward=2 * H,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = next(named_sizes(config))
        translator = UnitTranslator(
            llama_config(config, **size.changes()), H, text.vocab_size, config["unit_vocab_size"], text.intermediate_size, tokens.end_id
        )
        model = PublishedEchoX(ShrinkingAdapter(adapter, compatibility), LanguageModel(text), translator, tokens, compatibility)
    # As in the release's training.
    translator.text_rows.weight = model.language.head.weight
    return model.eval()


def made_up_words(count: int) -> Iterator[str]:
    """Unit tokens: all single units, then pairs."""
    for number in range(count):
        first, second = number % UNIT_COUNT, (number + number // UNIT_COUNT) % UNIT_COUNT
        yield f"<|unit_{first}|>" if number < UNIT_COUNT else f"<|unit_{first}_{second}|>"


def made_up_tokens(vocab_size: int, words: Sequence[str]) -> ReleaseTokens:
    """A byte tokenizer with the tokens of EchoX where Llama's has them, as far as the vocabulary reaches."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fits = max(SPECIAL.values()) < vocab_size
    placed = {token: index if fits else BEHIND_BYTES + number for number, (token, index) in enumerate(SPECIAL.items())}
    placed |= {"<audio_patch>": vocab_size - 1} | {word: vocab_size + index for index, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=letters | placed, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([*SPECIAL, "<audio_patch>"])
    core.add_tokens([AddedToken(word, normalized=False) for word in words])
    begin = next(iter(SPECIAL))
    core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, placed[begin])])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eot_id|>", pad_token="<|eot_id|>")
    return ReleaseTokens(tokenizer, "a random model")
