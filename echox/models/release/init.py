"""Writing a folder to train from: a language model, and speech modules without training."""

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
from echox.core.errors import ConfigError
from echox.models.compatibility import PAPER, with_form
from echox.models.release.adapter import released_adapter
from echox.models.release.export import write_release
from echox.models.release.folder import weight_files
from echox.models.release.names import EMBEDDING, HEAD, TEXT_ROWS, their_name
from echox.models.release.sizes import named_sizes
from echox.models.release.tokens import UNIT_WORD, ReleaseTokens
from echox.models.release.translator import UnitTranslator

AUDIO = "<audio_patch>"
CTC_HEAD = "model.audio_feature_head.weight"


class InitialTensors(LazyTensors):
    """Tensors of an untrained EchoX over a language model.

    Embedding and head get a row for the audio placeholder. CTC head and text rows of the unit
    translator begin as the language model's head.

    Args:
        language: tensors of the language model, by the names of its files.
        fresh: untrained tensors, by the release's names.
    """

    def __init__(self, language: LazyTensors, fresh: Mapping[str, Tensor]) -> None:
        self.language, self.fresh = language, fresh
        # A language model with tied embeddings stores no head.
        self.head = HEAD if HEAD in language else EMBEDDING
        rows = language.specs[EMBEDDING]
        extended = Spec(rows.dtype, (rows.shape[0] + 1, rows.shape[1]))
        self.specs = {
            **language.specs,
            **dict.fromkeys((EMBEDDING, HEAD, CTC_HEAD, TEXT_ROWS), extended),
        }
        self.specs |= {
            name: Spec(rows.dtype, tuple(tensor.shape)) for name, tensor in fresh.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        if name in self.fresh:
            return self.fresh[name].to(self.specs[name].dtype)
        if name not in (EMBEDDING, HEAD, CTC_HEAD, TEXT_ROWS):
            return self.language[name]
        rows = self.language[EMBEDDING if name == EMBEDDING else self.head]
        # Untrained rows that stand out draw attention; their mean does not.
        return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype)])


def write_initial_release(
    output: Path,
    language: Path,
    unit_tokens: Sequence[str],
    vocoder: Sequence[Path],
    *,
    tower: str,
    adapter_size: int,
    unit_model: str | None,
    seed: int,
) -> None:
    """Write a folder in the released layout to train from; its form is the paper's.

    Args:
        output: folder to write; it must not exist.
        language: folder of a Llama 3.
        unit_tokens: tokens of the unit language, such as "12_4".
        vocoder: files of the vocoder, which are copied.
        tower: the Whisper whose features the adapter takes.
        adapter_size: channels of its frames.
        unit_model: size of the unit translator, as in config.json; None is 6 layers of 512.
        seed: of the untrained weights.

    Raises:
        ConfigError: the language model is no Llama, a unit token is malformed or repeated, or
            tokenizer and language model do not fit each other.
        CheckpointError: the tokenizer lacks Llama 3's tokens, or the output exists.
        AssetError: the language model or its tokenizer cannot be read.
    """
    with loading("a Llama with its tokenizer", language):
        llama = json.loads((language / "config.json").read_text("utf-8"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(language)
    if llama.get("model_type") != "llama":
        raise ConfigError(
            f"{language} is a {llama.get('model_type')}, but the published layout is of Llama 3; "
            "name one of those"
        )
    config = _config(llama, tower, adapter_size, len(unit_tokens), unit_model)
    # The tokenizer is saved aside first: the output appears only when it is complete.
    with tempfile.TemporaryDirectory() as temporary:
        tokens = _tokens(tokenizer, unit_tokens, llama["vocab_size"], Path(temporary))
        stored = StoredTensors(weight_files(language))
        write_release(
            output,
            InitialTensors(stored, _fresh_tensors(config, tokens, seed)),
            [*sorted(Path(temporary).iterdir()), *vocoder],
            with_form(config, PAPER),
        )


def _config(
    llama: Mapping[str, Any], tower: str, adapter_size: int, unit_count: int, unit_model: str | None
) -> dict[str, Any]:
    config = {
        **llama,
        "model_type": "EchoX",
        "architectures": ["EchoXForCausalLM"],
        "vocab_size": llama["vocab_size"] + 1,  # with the audio placeholder
        # The head is written as a tensor of its own, whatever the language model does.
        "tie_word_embeddings": False,
    }
    config |= {
        "audio_tower": tower,
        "adapter_size": adapter_size,
        "unit_vocab_size": unit_count,
        # A task for which the release builds the denoising adapter.
        "unit_output": "finetune_kd",
    }
    # An absent key is a size of its own in the release: 6 layers of 512 (see `named_sizes`).
    return config if unit_model is None else config | {"unit_model": unit_model}


def _tokens(
    tokenizer: transformers.PreTrainedTokenizerBase,
    unit_tokens: Sequence[str],
    vocab_size: int,
    folder: Path,
) -> ReleaseTokens:
    """Add the audio placeholder and the unit tokens behind the vocabulary, and save the tokenizer.

    Raises:
        ConfigError: a unit token is malformed or repeated, or the placeholder's id is not the
            first behind the language model's rows.
    """
    names = [
        f"<|unit_{token.removeprefix('<|unit_').removesuffix('|>')}|>" for token in unit_tokens
    ]
    malformed = [token for token, name in zip(unit_tokens, names) if not UNIT_WORD.fullmatch(name)]
    if malformed:
        raise ConfigError(
            f"{malformed[0]!r} is no unit word; they are integers, "
            "joined by _ where a word has several: 12_4"
        )
    if len(set(names)) < len(names):
        raise ConfigError("a unit word is named twice; take it out once")
    # In this order: the placeholder is the first id behind the vocabulary, unit tokens follow.
    tokenizer.add_tokens([AUDIO], special_tokens=True)
    tokenizer.add_tokens(names)
    if tokenizer.convert_tokens_to_ids(AUDIO) != vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.convert_tokens_to_ids(AUDIO)} tokens and the language "
            f"model {vocab_size} rows, but the placeholder must be the first id behind both; "
            "take the tokenizer that belongs to the model"
        )
    tokenizer.save_pretrained(folder)
    return ReleaseTokens.of(folder)


def _fresh_tensors(
    config: Mapping[str, Any], tokens: ReleaseTokens, seed: int
) -> dict[str, Tensor]:
    """Untrained adapter and unit translator, by the release's names."""
    # Forked, so that the caller's random numbers stay what they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = next(named_sizes(config))
        translator = UnitTranslator.of(config, size, config["intermediate_size"])
        # One class alone: the CTC head is left out below.
        adapter = released_adapter(config, tokens.audio_id, classes=1)
        parts = {"adapter": adapter, "translator": translator}
    tensors = {
        their_name(f"{part}.{name}"): tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    # Those two begin as the language model's head, see `InitialTensors`.
    return {name: tensor for name, tensor in tensors.items() if name not in (CTC_HEAD, TEXT_ROWS)}
