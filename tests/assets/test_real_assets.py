"""The real files; each test skips, with the reason, where its asset cannot be fetched."""

import json

import pytest
import torch
import torchaudio
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)


def synthesized(text: str) -> torch.Tensor:
    """Synthesize a sentence: samples [T] float32 at 16 kHz."""
    hibari = pytest.importorskip("hibari", reason="needs the voice of the package hibari-tts")
    return torchaudio.functional.resample(
        torch.as_tensor(hibari.Hibari()(text, seed=0)), 24_000, 16_000
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("whisper_base", {"language": "en", "task": "transcribe"}),
        ("whisper_base", {}),
        ("whisper_tiny_en", {}),
    ],
)
def test_whisper_transcribes(real_asset, name, settings):
    folder = real_asset(name)
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    wave = synthesized("The capital of France is Paris.")
    features = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.generate(features, max_new_tokens=30, **settings)
    assert (
        processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        == "The capital of France is Paris."
    )


def test_smollm2_answers(real_asset):
    folder = real_asset("smollm2_135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


def test_smollm2_splits_numbers_before_words(real_asset):
    tokenizer = AutoTokenizer.from_pretrained(real_asset("smollm2_135m"))
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_hifigan_has_its_parameters_and_its_mel(real_asset):
    folder = real_asset("hifigan_16k")
    config = json.loads((folder / "config.json").read_text())
    assert torch.tensor(config["upsample_rates"]).prod() == config["mel"]["hop_length"]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.get_slice("ups.0.weight").get_shape() == [512, 256, 16]
        assert {"conv_pre.weight", "resblocks.0.convs1.0.weight", "conv_post.bias"} <= set(
            weights.keys()
        )
        total = sum(weights.get_tensor(name).numel() for name in weights.keys())
    assert round(total / 1e6, 1) == 13.7


def test_voice_joe_names_its_rate(real_asset):
    settings = json.loads((real_asset("voice_joe") / "en_US-joe-medium.onnx.json").read_text())
    assert settings["audio"]["sample_rate"] == 22_050
