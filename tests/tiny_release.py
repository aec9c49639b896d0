"""A tiny folder in the released layout: byte tokenizer, random weights, Whisper and vocoder.

It is written in a second or two.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.models.compatibility import RELEASE, Compatibility
from echox.models.release.adapter import released_adapter
from echox.models.release.export import write_release
from echox.models.release.language import LanguageModel
from echox.models.release.model import PublishedEchoX
from echox.models.release.names import their_name
from echox.models.release.sizes import llama_config
from echox.models.release.tokens import ReleaseTokens
from echox.models.release.translator import UnitTranslator
from echox.models.release.untrained import synthetic_tokens
from echox.vocoders.layout import TINY, tiny_generator

VOCABULARY = 12_811  # above 12800, which the release's prefix holds
UNIT_TOKENS = 24  # "<|unit_0_1|>" and so on
CONFIG = {
    "model_type": "EchoX", "architectures": ["EchoXForCausalLM"],
    "adapter_size": 16, "audio_tower": "./whisper", "hidden_size": 16,
    "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "head_dim": 4, "vocab_size": VOCABULARY,
    "unit_vocab_size": UNIT_TOKENS, "unit_model": "large", "unit_output": "finetune_kd",
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
    "rope_theta": 10000.0, "torch_dtype": "float16",
}  # fmt: skip


def write_tiny_release(folder: Path, *, shard_bytes: int = 1_500_000) -> Path:
    """A complete folder, weights in float16 and in several shards, with Whisper in it."""
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir(parents=True)
    write_tokenizer(parts)
    write_vocoder(parts)
    write_release(
        folder,
        release_tensors(tiny_model(ReleaseTokens.of(parts)), torch.float16),
        sorted(parts.iterdir()),
        CONFIG,
        shard_bytes=shard_bytes,
    )
    write_whisper(folder / "whisper")
    return folder


def release_tensors(
    model: PublishedEchoX, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Weights of a model by the release's names, on the CPU; `dtype` None keeps their dtypes."""
    return {
        their_name(name): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }


def write_tiny_soundwave(folder: Path) -> Path:
    """A Soundwave folder: Whisper among the weights, no unit translator, no vocoder."""
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir(parents=True)
    write_tokenizer(parts)
    model = tiny_model(ReleaseTokens.of(parts))
    model.translator = None
    whisper = {
        f"model.audio_tower.{name}": tensor.half()
        for name, tensor in tiny_whisper(heads=1).encoder.state_dict().items()
    }
    config = {key: value for key, value in CONFIG.items() if not key.startswith("unit_")}
    config |= {
        "model_type": "Soundwave",
        "architectures": ["SoundwaveForCausalLM"],
        "audio_tower": "openai/whisper-large-v2",
    }
    write_release(
        folder,
        release_tensors(model, torch.float16) | whisper,
        sorted(parts.iterdir()),
        config,
        shard_bytes=600_000,
    )
    return folder


def write_tokenizer(folder: Path) -> None:
    unit_tokens = [f"<|unit_{index}_{index + 1}|>" for index in range(UNIT_TOKENS)]
    synthetic_tokens(VOCABULARY, unit_tokens).tokenizer.save_pretrained(folder)


def write_vocoder(folder: Path) -> UnitHifiGanConfig:
    (folder / "vocoder_config.json").write_text(json.dumps(TINY), "utf-8")
    prefixes = (
        ("units.", "dict."),
        ("predictor.conv1.", "dur_predictor.conv1.0."),
        ("predictor.norm1.", "dur_predictor.ln1."),
        ("predictor.conv2.", "dur_predictor.conv2.0."),
        ("predictor.norm2.", "dur_predictor.ln2."),
        ("predictor.out.", "dur_predictor.proj."),
    )
    tensors = {}
    for name, tensor in tiny_generator().state_dict().items():
        plain = name.removeprefix("vocoder.")
        if name.startswith("vocoder.") and name.endswith(".weight"):
            tensors[f"{plain}_v"], tensors[f"{plain}_g"] = (
                tensor,
                torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True),
            )
        else:
            ours, theirs = next(((o, t) for o, t in prefixes if name.startswith(o)), ("", ""))
            tensors[theirs + plain.removeprefix(ours)] = tensor
    torch.save({"generator": tensors}, folder / "g_00500000")
    return UnitHifiGanConfig(folder=str(folder))


def write_whisper(folder: Path, heads: int = 2) -> None:
    tiny_whisper(heads).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)


def tiny_whisper(heads: int) -> WhisperModel:
    shape = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=heads, encoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=32,
        max_target_positions=8, num_mel_bins=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return WhisperModel(shape)


def tiny_model(tokens: ReleaseTokens, compatibility: Compatibility = RELEASE) -> PublishedEchoX:
    """Random weights with output: audio changes the text, and units are decoded until the end."""
    text = llama_config(CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        translator = UnitTranslator(llama_config(CONFIG), 16, VOCABULARY, UNIT_TOKENS, 24)
        model = PublishedEchoX(
            released_adapter(CONFIG, tokens.audio_id, compatibility),
            LanguageModel(text, tokens),
            translator,
            tokens,
            compatibility,
        )
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.3)
            translator.head.weight[: VOCABULARY - 1].zero_()
            translator.head.weight[tokens.end_id].normal_(std=0.9)
            # Text is decoded as letters alone.
            model.language.head.weight[256:].zero_()
    return model.eval()


def codec(folder: Path) -> UnitHifiGan:
    return UnitHifiGan(UnitHifiGanConfig(folder=str(folder)))
