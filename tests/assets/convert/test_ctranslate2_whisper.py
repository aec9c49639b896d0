import io
import json
import struct

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from echox.assets.convert.ctranslate2_whisper import convert, read_ctranslate2
from echox.core.errors import AssetError

SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]


def write_ctranslate2(
    arrays: dict[str, np.ndarray], aliases: dict[str, str], version: int = 6
) -> bytes:
    """Write the format that `read_ctranslate2` reads."""
    numbers = {
        np.dtype(np.float32): 0,
        np.dtype(np.int8): 1,
        np.dtype(np.int16): 2,
        np.dtype(np.float16): 4,
    }

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = [struct.pack("<I", version), string("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        out += [string(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        out += [struct.pack("<BI", numbers[array.dtype], array.nbytes), array.tobytes()]
    out += [
        struct.pack("<I", len(aliases)),
        *(string(part) for pair in aliases.items() for part in pair),
    ]
    return b"".join(out)


def small_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        max_source_positions=1500,
        max_target_positions=12,
        bos_token_id=27,
        eos_token_id=27,
        pad_token_id=27,
        decoder_start_token_id=28,
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Values float16 holds exactly, and none of the zeros and ones that would hide a swap.
            parameter.copy_((torch.randn_like(parameter) * 0.1).half().float())
    return model


def ctranslate2_arrays(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """Lay a Hugging Face Whisper out as CTranslate2 does."""
    state = {name: tensor.numpy().astype(np.float16) for name, tensor in model.state_dict().items()}
    arrays = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}

    def norm(old, new):
        arrays.update({f"{new}/gamma": state[f"{old}.weight"], f"{new}/beta": state[f"{old}.bias"]})

    def linear(olds, new):
        for part in ("weight", "bias"):
            pieces = [state.get(f"{old}.{part}", np.zeros(16, np.float16)) for old in olds]
            arrays[f"{new}/{part}"] = np.concatenate(pieces)

    for side in ("encoder", "decoder"):
        arrays[f"{side}/num_heads"] = np.array(2, np.int16)
        arrays[f"{side}/position_encodings/encodings"] = state[
            f"model.{side}.embed_positions.weight"
        ]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for index in range(getattr(model.config, f"{side}_layers")):
            old, new = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            norm(f"{old}.self_attn_layer_norm", f"{new}/self_attention/layer_norm")
            linear(
                [f"{old}.self_attn.{letter}_proj" for letter in "qkv"],
                f"{new}/self_attention/linear_0",
            )
            linear([f"{old}.self_attn.out_proj"], f"{new}/self_attention/linear_1")
            norm(f"{old}.final_layer_norm", f"{new}/ffn/layer_norm")
            linear([f"{old}.fc1"], f"{new}/ffn/linear_0")
            linear([f"{old}.fc2"], f"{new}/ffn/linear_1")
            if side == "decoder":
                norm(f"{old}.encoder_attn_layer_norm", f"{new}/attention/layer_norm")
                linear([f"{old}.encoder_attn.q_proj"], f"{new}/attention/linear_0")
                linear(
                    [f"{old}.encoder_attn.{letter}_proj" for letter in "kv"],
                    f"{new}/attention/linear_1",
                )
                linear([f"{old}.encoder_attn.out_proj"], f"{new}/attention/linear_2")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            arrays[f"encoder/{conv}/{part}"] = state[f"model.encoder.{conv}.{part}"]
    return arrays


@pytest.fixture
def source(tmp_path):
    """A CTranslate2 Whisper folder of two parts, and the model it was made from."""
    model = small_whisper()
    folder = tmp_path / "source"
    folder.mkdir()
    data = write_ctranslate2(
        ctranslate2_arrays(model), {"decoder/projection/weight": "decoder/embeddings/weight"}
    )
    (folder / "model.bin.part1").write_bytes(data[:1000])
    (folder / "model.bin.part2").write_bytes(data[1000:])
    lists = {
        "suppress_ids": [1],
        "suppress_ids_begin": [2, 27],
        "lang_ids": [],
        "alignment_heads": [[0, 1]],
    }
    (folder / "config.json").write_text(json.dumps(lists))
    tokenizer = Tokenizer(
        models.BPE(vocab={chr(97 + index): index for index in range(26)}, merges=[])
    )
    tokenizer.add_special_tokens(["<|unused|>", *SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


def test_the_converted_model_is_the_original(source, tmp_path):
    folder, model = source
    target = tmp_path / "target"
    target.mkdir()
    convert(folder, target)
    converted = WhisperForConditionalGeneration.from_pretrained(target).eval()
    assert converted.dtype == torch.float32
    features, ids = torch.randn(2, 80, 3000), torch.tensor([[28, 3, 4], [28, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(
            converted(input_features=features, decoder_input_ids=ids).logits,
            model(input_features=features, decoder_input_ids=ids).logits,
        )
    assert converted.generation_config.suppress_tokens == [1]
    assert converted.generation_config.no_timestamps_token_id == 31
    assert not converted.generation_config.is_multilingual
    assert WhisperFeatureExtractor.from_pretrained(target).feature_size == 80
    assert WhisperTokenizer.from_pretrained(target).eos_token_id == 27


def test_a_model_with_a_tensor_of_another_shape_is_refused(source, tmp_path):
    folder, model = source
    arrays = ctranslate2_arrays(model)
    arrays["encoder/conv1/bias"] = arrays["encoder/conv1/bias"][:3]
    (folder / "model.bin.part1").write_bytes(write_ctranslate2(arrays, {}))
    (folder / "model.bin.part2").unlink()
    with pytest.raises(AssetError, match="1 tensors differ, first 'model.encoder.conv1.bias'"):
        convert(folder, tmp_path)


def test_aliases_and_scalars_are_read():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(-4, np.int16)}
    copies = read_ctranslate2(io.BytesIO(write_ctranslate2(arrays, {"b": "a"})))
    np.testing.assert_array_equal(copies["b"], arrays["a"])
    assert int(copies["n"]) == -4


def test_another_version_or_a_truncated_file_is_refused():
    data = write_ctranslate2({"a": np.zeros(4, np.float32)}, {})
    with pytest.raises(AssetError, match="version 5; echox reads version 6"):
        read_ctranslate2(io.BytesIO(write_ctranslate2({}, {}, version=5)))
    with pytest.raises(AssetError, match="2 bytes too early"):
        read_ctranslate2(io.BytesIO(data[:-6]))
