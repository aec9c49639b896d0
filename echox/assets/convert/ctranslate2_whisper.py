"""Whisper in CTranslate2's binary form -> a Hugging Face folder.

The file is read with numpy alone: it is a list of named arrays, so nothing in it can run.

Source: CTranslate2 4.x, `python/ctranslate2/specs/model_spec.py` (how the file is written) and `specs/whisper_spec.py`
(what the arrays mean); Radford et al. 2022, arXiv:2212.04356 (the model).
"""

import io
import json
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

from echox.errors import AssetError

BINARY_VERSION = 6
SPEC_NAME = "WhisperSpec"

# CTranslate2's numbers for the element types a Whisper file may hold.
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# Whisper's fixed front end (paper, section 2.2): 30 s windows of 80 mels at 100 frames/s, 16 kHz.
_FRONT_END = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read all arrays of a CTranslate2 model file.

    Layout, little endian: u32 version; string spec name; u32 spec revision; u32 count, then per array a string name, u8 rank,
    u32 per dimension, u8 element type, u32 bytes, the bytes; u32 count of aliases, then per alias two strings. A string is
    a u16 length that counts a closing zero byte, then the bytes.

    Args:
        file: `model.bin`, open for reading bytes.
    Returns:
        name -> array; an alias shares the array it stands for.
    Raises:
        AssetError: the file is of another version or model kind, or it ends too early.
    """
    (version,) = _unpack(file, "<I")
    if version != BINARY_VERSION:
        raise AssetError(f"the model file is of CTranslate2 version {version}; echox reads version {BINARY_VERSION}")
    spec = _string(file)
    if spec != SPEC_NAME:
        raise AssetError(f"the CTranslate2 file holds a {spec!r}; echox reads {SPEC_NAME!r}")
    _unpack(file, "<I")
    (count,) = _unpack(file, "<I")
    arrays = dict(_array(file) for _ in range(count))
    (alias_count,) = _unpack(file, "<I")
    for _ in range(alias_count):
        alias, name = _string(file), _string(file)
        arrays[alias] = arrays[name]
    return arrays


def convert(source: Path, target: Path) -> None:
    """Write a folder that `WhisperForConditionalGeneration` and `WhisperProcessor` load.

    Args:
        source: folder with `model.bin` (or `model.bin.part1`, `.part2`, ... to be joined), `config.json` (CTranslate2's), `tokenizer.json`.
        target: an existing empty folder.
    Raises:
        AssetError: the arrays do not make a whole Whisper model.
    """
    arrays = read_ctranslate2(_model_file(source))
    lists = json.loads((source / "config.json").read_text("utf-8"))
    ids = _token_ids(source / "tokenizer.json")

    config = _model_config(arrays, ids)
    weights = whisper_weights(arrays)
    _check_complete(config, weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    _generation_config(lists, ids, config).save_pretrained(target)
    _write_front_end(target)
    _write_tokenizer(source / "tokenizer.json", target)


def whisper_weights(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename CTranslate2's arrays to Hugging Face's and cut the fused projections apart.

    Args:
        arrays: as `read_ctranslate2` returns them; self-attention q, k, v are stacked as [3H, H], cross-attention k, v as [2H, H].
    Returns:
        name -> float16 tensor, the layout of `WhisperForConditionalGeneration`; no key bias (Whisper has none) and no
        output projection (tied to the token embedding).
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
        for index in range(_layers(arrays, side)):
            weights |= _layer(arrays, f"{side}/layer_{index}", f"model.{side}.layers.{index}")
    return {name: torch.from_numpy(np.array(array, dtype=np.float16, order="C")) for name, array in weights.items()}


def _layer(arrays: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    weights = _norm(arrays, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
    weights |= _projections(arrays, f"{old}/self_attention/linear_0", f"{new}.self_attn", "qkv")
    weights |= _linear(arrays, f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj")
    weights |= _norm(arrays, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
    weights |= _linear(arrays, f"{old}/ffn/linear_0", f"{new}.fc1")
    weights |= _linear(arrays, f"{old}/ffn/linear_1", f"{new}.fc2")
    if f"{old}/attention/linear_0/weight" in arrays:
        weights |= _norm(arrays, f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
        weights |= _projections(arrays, f"{old}/attention/linear_0", f"{new}.encoder_attn", "q")
        weights |= _projections(arrays, f"{old}/attention/linear_1", f"{new}.encoder_attn", "kv")
        weights |= _linear(arrays, f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj")
    return weights


def _norm(arrays: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}.weight": arrays[f"{old}/gamma"], f"{new}.bias": arrays[f"{old}/beta"]}


def _linear(arrays: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}.{part}": arrays[f"{old}/{part}"] for part in ("weight", "bias")}


def _projections(arrays: dict[str, np.ndarray], old: str, new: str, letters: str) -> dict[str, np.ndarray]:
    weights = {}
    for part in ("weight", "bias"):
        for letter, piece in zip(letters, np.split(arrays[f"{old}/{part}"], len(letters)), strict=True):
            if (letter, part) != ("k", "bias"):
                weights[f"{new}.{letter}_proj.{part}"] = piece
    return weights


def _layers(arrays: dict[str, np.ndarray], side: str) -> int:
    return len({name.split("/")[1] for name in arrays if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _model_config(arrays: dict[str, np.ndarray], ids: dict[str, int]):
    # Imported here because it takes seconds and most runs find their assets already converted.
    from transformers import WhisperConfig

    V, H = arrays["decoder/embeddings/weight"].shape
    heads = {side: int(arrays[f"{side}/num_heads"]) for side in ("encoder", "decoder")}
    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=V,
        d_model=H,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        encoder_layers=_layers(arrays, "encoder"),
        decoder_layers=_layers(arrays, "decoder"),
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
        # The file stores float16 to halve the disk; models load in float32 unless told otherwise, as OpenAI's own do.
        dtype="float32",
    )


def _generation_config(lists: dict, ids: dict[str, int], config):
    from transformers import GenerationConfig

    settings = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        # No timestamp beyond 1 s may open a transcript: 50 steps of 20 ms (Whisper's decoding.py, max_initial_timestamp).
        "max_initial_timestamp_index": 50,
        "alignment_heads": lists["alignment_heads"],
        "suppress_tokens": lists["suppress_ids"],
        "begin_suppress_tokens": lists["suppress_ids_begin"],
        "is_multilingual": _is_multilingual(config.vocab_size),
    }
    if settings["is_multilingual"]:
        languages = set(lists["lang_ids"])
        settings["lang_to_id"] = {token: number for token, number in ids.items() if number in languages}
        # Without a task the prompt of a detected language would lack one, and Whisper then loops.
        settings["task"] = "transcribe"
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return GenerationConfig(**settings)


def _is_multilingual(vocabulary: int) -> bool:
    """English-only models have 51,864 tokens, the others at least one more (Whisper's model.py, `is_multilingual`)."""
    return vocabulary >= 51_865


def _check_complete(config, weights: dict[str, torch.Tensor]) -> None:
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        wanted = WhisperForConditionalGeneration(config).state_dict()
    wanted.pop("proj_out.weight")
    wrong = [name for name in sorted(wanted.keys() | weights.keys()) if _shape(wanted, name) != _shape(weights, name)]
    if wrong:
        raise AssetError(f"the CTranslate2 file is no whole Whisper model: {len(wrong)} tensors differ, first {wrong[0]!r}")


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
    """Whisper's special tokens -> ids, from a `tokenizer.json`."""
    return {token["content"]: token["id"] for token in json.loads(file.read_text("utf-8"))["added_tokens"]}


def _model_file(source: Path) -> BinaryIO:
    """`model.bin`, joined in memory (at most 150 MB here) where it comes in parts."""
    parts = sorted(source.glob("model.bin*"))
    return io.BytesIO(b"".join(part.read_bytes() for part in parts))


def _array(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    (rank,) = _unpack(file, "<B")
    shape = _unpack(file, f"<{rank}I")
    number, size = _unpack(file, "<BI")
    if number not in _DTYPES:
        raise AssetError(f"array {name!r} has CTranslate2 element type {number}; echox reads {sorted(_DTYPES)}")
    return name, np.frombuffer(_exactly(file, size), dtype=_DTYPES[number]).reshape(shape)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return _exactly(file, length)[:-1].decode("utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout)))


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise AssetError(f"the CTranslate2 file ends {size - len(data)} bytes too early; it was not copied whole")
    return data
