"""A published EchoX folder made on the spot: a byte tokenizer, random weights, a tiny Whisper and a tiny vocoder, a second or two."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from echox.codecs.unit_hifigan import TINY, UnitHifiGan, UnitHifiGanConfig, tiny_generator
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.causal import LanguageModel
from echox.models.published.compatibility import RELEASE, Compatibility
from echox.models.published.writing import release_tensors, write_release
from echox.models.published.model import PublishedEchoX
from echox.models.published.sizes import llama_config
from echox.models.published.tokens import ReleaseTokens
from echox.models.published.translator import UnitTranslator

SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
VOCABULARY = 12_811  # above 12800, which the release's prefix holds
WORDS = 24  # unit words: "<|unit_0_1|>" and so on
CONFIG = {
    "model_type": "EchoX", "architectures": ["EchoXForCausalLM"], "adapter_size": 16, "audio_tower": "./whisper", "hidden_size": 16,
    "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 4, "vocab_size": VOCABULARY,
    "unit_vocab_size": WORDS, "unit_model": "large", "unit_output": "finetune_kd", "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "torch_dtype": "float16",
}  # fmt: skip


def write_tiny_release(folder: Path, *, shard_bytes: int = 1_500_000) -> Path:
    """A whole folder, weights in float16 and in several shards, with Whisper in it."""
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir(parents=True)
    write_tokenizer(parts)
    write_vocoder(parts)
    write_release(
        folder, release_tensors(tiny_model(ReleaseTokens.of(parts)), torch.float16), sorted(parts.iterdir()), CONFIG, shard_bytes=shard_bytes
    )
    write_whisper(folder / "whisper")
    return folder


def write_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"<|unit_{index}_{index + 1}|>" for index in range(WORDS)]
    placed = {token: 300 + index for index, token in enumerate(SPECIAL)} | {"<audio_patch>": VOCABULARY - 1}
    placed |= {word: VOCABULARY + index for index, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)} | placed, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([*SPECIAL, "<audio_patch>"])
    core.add_tokens([AddedToken(word, normalized=False) for word in words])
    begin = SPECIAL[0]
    core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, placed[begin])])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eot_id|>", pad_token="<|eot_id|>").save_pretrained(folder)


def write_vocoder(folder: Path) -> UnitHifiGanConfig:
    (folder / "vocoder_config.json").write_text(json.dumps(TINY), "utf-8")
    theirs = (("units.", "dict."), ("predictor.conv1.", "dur_predictor.conv1.0."), ("predictor.norm1.", "dur_predictor.ln1."),
              ("predictor.conv2.", "dur_predictor.conv2.0."), ("predictor.norm2.", "dur_predictor.ln2."), ("predictor.out.", "dur_predictor.proj."))  # fmt: skip
    tensors = {}
    for name, tensor in tiny_generator().state_dict().items():
        plain = name.removeprefix("vocoder.")
        if name.startswith("vocoder.") and name.endswith(".weight"):
            tensors[f"{plain}_v"], tensors[f"{plain}_g"] = tensor, torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
        else:
            ours, theirs_prefix = next(((o, t) for o, t in theirs if name.startswith(o)), ("", ""))
            tensors[theirs_prefix + plain.removeprefix(ours)] = tensor
    torch.save({"generator": tensors}, folder / "g_00500000")
    return UnitHifiGanConfig(folder=str(folder))


def write_whisper(folder: Path) -> None:
    shape = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        vocab_size=32, max_target_positions=8, num_mel_bins=16, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        WhisperModel(shape).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)


def tiny_model(tokens: ReleaseTokens, compatibility: Compatibility = RELEASE) -> PublishedEchoX:
    """Random but talkative: it hears changes, thinks in any tokens, and speaks unit words until it ends."""
    text = llama_config(CONFIG)
    shape = AdapterShape(feature_dim=16, width=16, vocab_size=VOCABULARY, heads=4, blank_id=tokens.audio_id, feed_forward=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        translator = UnitTranslator(llama_config(CONFIG), 16, VOCABULARY, WORDS, 24, tokens.end_id)
        model = PublishedEchoX(ShrinkingAdapter(shape, compatibility), LanguageModel(text), translator, tokens, compatibility)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.3)
            translator.head.weight[: VOCABULARY - 1].zero_()
            translator.head.weight[tokens.end_id].normal_(std=0.9)
            # Text is said in letters.
            model.language.head.weight[256:].zero_()
    return model.eval()


def codec(folder: Path) -> UnitHifiGan:
    return UnitHifiGan(UnitHifiGanConfig(folder=str(folder)))
