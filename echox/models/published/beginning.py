"""A folder in the published layout to begin from: a language model as it came, and a speech side that has learned nothing yet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from echox.assets.loading import loading
from echox.assets.tensors import LazyTensors, Spec, StoredTensors
from echox.errors import ConfigError
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.compatibility import PAPER, with_form
from echox.models.published.folder import weight_files
from echox.models.published.names import EMBEDDING, HEAD, TEXT_ROWS, their_name
from echox.models.published.sizes import llama_config, named_sizes
from echox.models.published.tokens import UNIT_WORD, ReleaseTokens
from echox.models.published.translator import UnitTranslator
from echox.models.published.writing import write_release

AUDIO = "<audio_patch>"
CTC_HEAD = "model.audio_feature_head.weight"


class Beginning(LazyTensors):
    """The language model's tensors with a row for the audio placeholder, its head's rows where text is read and heard, and fresh ones."""

    def __init__(self, language: LazyTensors, fresh: Mapping[str, Tensor]) -> None:
        self.language, self.fresh = language, fresh
        self.head = HEAD if HEAD in language else EMBEDDING
        rows = language.specs[EMBEDDING]
        grown = Spec(rows.dtype, (rows.shape[0] + 1, rows.shape[1]))
        self.specs = {**language.specs, **dict.fromkeys((EMBEDDING, HEAD, CTC_HEAD, TEXT_ROWS), grown)}
        self.specs |= {name: Spec(rows.dtype, tuple(tensor.shape)) for name, tensor in fresh.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name in self.fresh:
            return self.fresh[name].to(self.specs[name].dtype)
        if name not in (EMBEDDING, HEAD, CTC_HEAD, TEXT_ROWS):
            return self.language[name]
        rows = self.language[EMBEDDING if name == EMBEDDING else self.head]
        # Untrained rows that stand out draw attention; their mean does not.
        return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype)])


def write_beginning(
    output: Path, language: Path, words: Sequence[str], vocoder: Sequence[Path], *, tower: str, adapter_size: int, unit_model: str | None, seed: int
) -> None:
    """Write the folder; its form is the paper's.

    Args:
        language: folder of a Llama 3; words: unit words, such as "12_4"; vocoder: its files.
        tower: the Whisper that is heard with; adapter_size: its channels.
        unit_model: size of the unit translator, as in config.json; None is 6 layers of 512.
    Raises:
        ConfigError: the language model is no Llama, or a word is none. CheckpointError: its tokenizer lacks Llama 3's tokens; output exists.
    """
    with loading("a Llama with its tokenizer", language):
        given = json.loads((language / "config.json").read_text("utf-8"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(language)
    if given.get("model_type") != "llama":
        raise ConfigError(f"{language} is a {given.get('model_type')}, but the published layout is of Llama 3; name one of those")
    config = _config(given, tower, adapter_size, len(words), unit_model)
    with tempfile.TemporaryDirectory() as place:
        tokens = _tokens(tokenizer, words, given["vocab_size"], Path(place))
        stored = StoredTensors(weight_files(language))
        write_release(output, Beginning(stored, _fresh(config, tokens, seed)), [*sorted(Path(place).iterdir()), *vocoder], with_form(config, PAPER))


def _config(given: Mapping[str, Any], tower: str, adapter_size: int, unit_count: int, unit_model: str | None) -> dict[str, Any]:
    config = {**given, "model_type": "EchoX", "architectures": ["EchoXForCausalLM"], "vocab_size": given["vocab_size"] + 1, "tie_word_embeddings": False}
    config |= {"audio_tower": tower, "adapter_size": adapter_size, "unit_vocab_size": unit_count, "unit_output": "finetune_kd"}
    return config if unit_model is None else config | {"unit_model": unit_model}


def _tokens(tokenizer: transformers.PreTrainedTokenizerFast, words: Sequence[str], vocab_size: int, folder: Path) -> ReleaseTokens:
    """The language model's tokenizer with the placeholder and the unit words behind its vocabulary, saved."""
    marks = [f"<|unit_{word.removeprefix('<|unit_').removesuffix('|>')}|>" for word in words]
    if wrong := [word for word, mark in zip(words, marks) if not UNIT_WORD.fullmatch(mark)]:
        raise ConfigError(f"{wrong[0]!r} is no unit word; they are integers, joined by _ where a word has several: 12_4")
    if len(set(marks)) < len(marks):
        raise ConfigError("a unit word is named twice; take it out once")
    tokenizer.add_tokens([AUDIO], special_tokens=True)
    tokenizer.add_tokens(marks)
    if tokenizer.convert_tokens_to_ids(AUDIO) != vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.convert_tokens_to_ids(AUDIO)} tokens and the language model {vocab_size} rows, but the placeholder must be "
            "the first id behind both; take the tokenizer that belongs to the model"
        )
    tokenizer.save_pretrained(folder)
    return ReleaseTokens.of(folder)


def _fresh(config: Mapping[str, Any], tokens: ReleaseTokens, seed: int) -> dict[str, Tensor]:
    """Adapter and unit translator as they are before training, by the release's names."""
    text = llama_config(config)
    H = text.hidden_size
    shape = AdapterShape(
        feature_dim=config["adapter_size"], width=H, vocab_size=1, heads=text.num_attention_heads, blank_id=tokens.audio_id, feed_forward=2 * H
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = next(named_sizes(config))
        translator = UnitTranslator(
            llama_config(config, **size.changes()), H, config["vocab_size"], config["unit_vocab_size"], text.intermediate_size, tokens.end_id
        )
        parts = {"adapter": ShrinkingAdapter(shape), "translator": translator}
    tensors = {their_name(f"{part}.{name}"): tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    return {name: tensor for name, tensor in tensors.items() if name not in (CTC_HEAD, TEXT_ROWS)}
