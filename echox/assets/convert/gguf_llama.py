"""A Llama-family language model in GGUF form -> a Hugging Face folder with safetensors."""

from pathlib import Path

import torch

from echox.errors import AssetError


def convert(source: Path, target: Path) -> None:
    """Dequantise a GGUF model and write it with its tokenizer, chat template and generation settings.

    transformers reads GGUF but refuses to save what it read, so the weights move into a fresh model of the same config.
    They are stored as bfloat16, the type SmolLM2 was published in; greedy answers are those of the float32 dequantisation.

    Args:
        source: folder with exactly one `.gguf` file.
        target: an existing empty folder.
    Raises:
        AssetError: `source` has no single GGUF file, or the file lacks weights the model needs.
    """
    # Imported here because it takes seconds and most runs find their assets already converted.
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise AssetError(f"expected one .gguf file in {source}, found {len(files)}")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=files[0].name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=files[0].name)

    fresh = type(read)(_config_of(read))
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    fresh.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _config_of(model):
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    return type(model.config)(**settings)
