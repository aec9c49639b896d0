"""A Llama-family language model in GGUF format -> a Hugging Face folder with safetensors."""

from pathlib import Path

import torch

from echox.assets.loading import without_library_bars
from echox.core.errors import AssetError
from echox.core.packages import GGUF


def convert(source: Path, target: Path) -> None:
    """Dequantize a GGUF model and write it with tokenizer, chat template and generation config.

    Args:
        source: folder with exactly one `.gguf` file.
        target: an existing empty folder.

    Raises:
        AssetError: `source` has no single GGUF file.
    """
    # Imported here, because it takes seconds and most runs find their assets converted.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise AssetError(f"expected one .gguf file in {source}, found {len(files)}")
    name = files[0].name
    with without_library_bars():
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
        _write(model, tokenizer, files[0], target)


def _write(model, tokenizer, file: Path, target: Path) -> None:
    from transformers import GenerationConfig

    _split_digits(tokenizer, file)

    # transformers refuses to save a model it read from GGUF, so the weights move to a fresh one.
    fresh = type(model)(_plain_config(model))
    fresh.load_state_dict(model.state_dict())
    # Of the tokenizer: GGUF has no generation config.
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The type SmolLM2 was published in; on the prompts tried, greedy answers stayed those of
    # float32.
    fresh.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _split_digits(tokenizer, file: Path) -> None:
    """Split numbers into digits before merging, where the GGUF file says so.

    transformers drops this part of the tokenizer.

    Source: llama.cpp, `src/llama-vocab.cpp`, pre-tokenizer "smollm".
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUF.load().GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)


def _plain_config(model):
    settings = model.config.to_dict()
    # Both describe the GGUF file, not the model written here.
    for name in ("quantization_config", "_model_name_or_path"):
        settings.pop(name, None)
    return type(model.config)(**settings)
