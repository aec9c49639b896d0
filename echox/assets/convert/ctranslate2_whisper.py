"""Whisper in CTranslate2's binary form -> a Hugging Face folder.

Source: CTranslate2 4.x, `python/ctranslate2/specs/whisper_spec.py` (meaning of the arrays);
Radford et al. 2022, arXiv:2212.04356 (the model).
"""

import io
import json
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

from echox.assets.convert.ctranslate2_file import read_ctranslate2
from echox.core.errors import AssetError

Arrays = dict[str, np.ndarray]

# Whisper's fixed front end (paper, section 2.2): 30 s windows of 80 mels at 100 frames/s, 16 kHz.
_FRONT_END = {
    "feature_size": 80,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "chunk_length": 30,  # seconds
    "n_fft": 400,
}


def convert(source: Path, target: Path) -> None:
    """Write a folder that `WhisperForConditionalGeneration` and `WhisperProcessor` load.

    Args:
        source: folder with `model.bin` (or `model.bin.part1`, `.part2`, ..., which are joined),
            CTranslate2's `config.json`, and `tokenizer.json`.
        target: an existing empty folder.

    Raises:
        AssetError: the file is of another format, or its arrays are not those of a whole Whisper.
    """
    arrays = read_ctranslate2(_model_file(source))
    token_lists = json.loads((source / "config.json").read_text("utf-8"))
    ids = _token_ids(source / "tokenizer.json")
    config = _model_config(arrays, ids)
    weights = whisper_weights(arrays)
    # Before anything is written, so that a failed conversion leaves no files.
    _check_complete(config, weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    _generation_config(token_lists, ids, config).save_pretrained(target)
    _write_front_end(target)
    _write_tokenizer(source / "tokenizer.json", target)


def whisper_weights(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Rename CTranslate2's arrays to Hugging Face's and split the fused projections.

    Args:
        arrays: as `read_ctranslate2` returns them; q, k and v of self-attention are stacked as
            [3H, H], k and v of cross-attention as [2H, H].

    Returns:
        name -> float16 tensor in the layout of `WhisperForConditionalGeneration`, without key
        biases (Whisper has none) and output projection (tied to the token embedding).
    """
    weights = {
        "model.encoder.embed_positions.weight": arrays["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": arrays["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"],
    }
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            weights[f"model.encoder.{conv}.{part}"] = arrays[f"encoder/{conv}/{part}"]
    for side in ("encoder", "decoder"):
        weights |= _norm(arrays, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(_layer_count(arrays, side)):
            weights |= _layer(arrays, f"{side}/layer_{index}", f"model.{side}.layers.{index}")
    # A copy, because arrays of the file's buffer are read-only, and split ones share memory.
    return {
        name: torch.from_numpy(np.array(array, dtype=np.float16, order="C"))
        for name, array in weights.items()
    }


def _layer(arrays: Arrays, old: str, new: str) -> Arrays:
    """Rename the arrays of one layer, whose names begin with `old`, to begin with `new`."""
    # Of an attention, linear_0 is the fused projection of its inputs, the last one its output's.
    weights = _norm(arrays, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
    weights |= _projections(arrays, f"{old}/self_attention/linear_0", f"{new}.self_attn", "qkv")
    weights |= _linear(arrays, f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj")
    weights |= _norm(arrays, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
    weights |= _linear(arrays, f"{old}/ffn/linear_0", f"{new}.fc1")
    weights |= _linear(arrays, f"{old}/ffn/linear_1", f"{new}.fc2")
    # Only layers of the decoder attend to the encoder's states.
    if f"{old}/attention/linear_0/weight" in arrays:
        weights |= _norm(arrays, f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
        weights |= _projections(arrays, f"{old}/attention/linear_0", f"{new}.encoder_attn", "q")
        weights |= _projections(arrays, f"{old}/attention/linear_1", f"{new}.encoder_attn", "kv")
        weights |= _linear(arrays, f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj")
    return weights


def _norm(arrays: Arrays, old: str, new: str) -> Arrays:
    return {f"{new}.weight": arrays[f"{old}/gamma"], f"{new}.bias": arrays[f"{old}/beta"]}


def _linear(arrays: Arrays, old: str, new: str) -> Arrays:
    return {f"{new}.{part}": arrays[f"{old}/{part}"] for part in ("weight", "bias")}


def _projections(arrays: Arrays, old: str, new: str, letters: str) -> Arrays:
    """Split arrays [len(letters) * H, ...] into one projection a letter of q, k and v."""
    weights = {}
    for part in ("weight", "bias"):
        pieces = np.split(arrays[f"{old}/{part}"], len(letters))
        for letter, piece in zip(letters, pieces, strict=True):
            # CTranslate2 fills the bias Whisper's keys do not have with zeros.
            if (letter, part) != ("k", "bias"):
                weights[f"{new}.{letter}_proj.{part}"] = piece
    return weights


def _layer_count(arrays: Arrays, side: str) -> int:
    # More than two parts, since the final norm "decoder/layer_norm/gamma" begins so too.
    names = [name for name in arrays if name.startswith(f"{side}/layer_") and name.count("/") > 2]
    return len({name.split("/")[1] for name in names})


def _model_config(arrays: Arrays, ids: dict[str, int]):
    # Imported here because it takes seconds and most runs find their assets already converted.
    from transformers import WhisperConfig

    V, H = arrays["decoder/embeddings/weight"].shape
    # Scalars of the file; the shapes do not tell the number of heads.
    heads = {side: int(arrays[f"{side}/num_heads"]) for side in ("encoder", "decoder")}
    end = ids["<|endoftext|>"]  # Whisper's first, last and padding token
    return WhisperConfig(
        vocab_size=V,
        d_model=H,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        encoder_layers=_layer_count(arrays, "encoder"),
        decoder_layers=_layer_count(arrays, "decoder"),
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        architectures=["WhisperForConditionalGeneration"],
        # The folder stores float16 to halve its size; models load in float32 by default, as
        # OpenAI's own do.
        dtype="float32",
    )


def _generation_config(token_lists: dict, ids: dict[str, int], config):
    from transformers import GenerationConfig

    is_multilingual = _is_multilingual(config.vocab_size)
    token_ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    settings = {
        **{name: getattr(config, name) for name in token_ids},
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        # The first timestamp of a transcript is at most 1 s: 50 steps of 20 ms (Whisper's
        # decoding.py, max_initial_timestamp).
        "max_initial_timestamp_index": 50,
        "alignment_heads": token_lists["alignment_heads"],
        "suppress_tokens": token_lists["suppress_ids"],
        "begin_suppress_tokens": token_lists["suppress_ids_begin"],
        "is_multilingual": is_multilingual,
    }
    if is_multilingual:
        settings |= _multilingual_settings(token_lists, ids)
    return GenerationConfig(**settings)


def _multilingual_settings(token_lists: dict, ids: dict[str, int]) -> dict[str, object]:
    """Return the generation settings that English-only models lack: languages and tasks."""
    languages = set(token_lists["lang_ids"])
    return {
        "lang_to_id": {token: number for token, number in ids.items() if number in languages},
        # Without a task the prompt of a detected language would lack one, and Whisper then loops.
        "task": "transcribe",
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }


def _is_multilingual(vocabulary: int) -> bool:
    # English-only models have 51,864 tokens, the others at least one more (Whisper's model.py,
    # `is_multilingual`).
    return vocabulary >= 51_865


def _check_complete(config, weights: dict[str, torch.Tensor]) -> None:
    """Raise an AssetError unless `weights` are the parameters of a model of `config`."""
    from transformers import WhisperForConditionalGeneration

    # On the meta device: only the shapes are compared.
    with torch.device("meta"):
        expected = WhisperForConditionalGeneration(config).state_dict()
    expected.pop("proj_out.weight")  # tied to the token embedding, so not stored
    wrong = [
        name
        for name in sorted(expected.keys() | weights.keys())
        if _shape(expected, name) != _shape(weights, name)
    ]
    if wrong:
        raise AssetError(
            f"the CTranslate2 file is no whole Whisper model: {len(wrong)} tensors differ, first "
            f"{wrong[0]!r}"
        )


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _write_front_end(target: Path) -> None:
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor(**_FRONT_END).save_pretrained(target)


def _write_tokenizer(file: Path, target: Path) -> None:
    shutil.copyfile(file, target / "tokenizer.json")
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        **{role: end for role in ("bos_token", "eos_token", "unk_token", "pad_token")},
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _token_ids(file: Path) -> dict[str, int]:
    """Read Whisper's special tokens -> ids from a `tokenizer.json`."""
    added_tokens = json.loads(file.read_text("utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added_tokens}


def _model_file(source: Path) -> BinaryIO:
    """Open `model.bin`, joined in memory (at most 150 MB here) where it comes in parts."""
    parts = sorted(source.glob("model.bin*"))
    return io.BytesIO(b"".join(part.read_bytes() for part in parts))
