"""A Llama-family language model in GGUF form -> a Hugging Face folder with safetensors."""

from pathlib import Path

import torch

from echox.assets.loading import without_library_bars
from echox.errors import AssetError
from echox.packages import GGUF


def convert(source: Path, target: Path) -> None:
    """Dequantise a GGUF model and write it with its tokenizer, chat template and generation settings.

    transformers reads GGUF but refuses to save what it read, so the weights move into a fresh model of the same config.
    They are stored as bfloat16, the type SmolLM2 was published in; on the prompts tried, greedy answers stayed those of float32.

    Args:
        source: folder with exactly one `.gguf` file.
        target: an existing empty folder.
    Raises:
        AssetError: `source` has no single GGUF file, or the file lacks weights the model needs.
    """
    # Imported here because it takes seconds and most runs find their assets already converted.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise AssetError(f"expected one .gguf file in {source}, found {len(files)}")
    with without_library_bars():
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=files[0].name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=files[0].name)
        _write(read, tokenizer, files[0], target)


def _write(read, tokenizer, file: Path, target: Path) -> None:
    from transformers import GenerationConfig

    _split_digits(tokenizer, file)

    fresh = type(read)(_config_of(read))
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    fresh.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _split_digits(tokenizer, file: Path) -> None:
    """Cut numbers into digits before words, where the file says its tokenizer was trained so; transformers drops that.

    Source: llama.cpp, `src/llama-vocab.cpp`, pre-tokenizer "smollm".
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUF.load().GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)


def _config_of(model):
    settings = model.config.to_dict()
    # Facts about the GGUF file, not about the model written here.
    for name in ("quantization_config", "_model_name_or_path"):
        settings.pop(name, None)
    return type(model.config)(**settings)
