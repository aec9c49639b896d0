"""Folders of language models of well-known families, of the smallest size and untrained.

Each has weights, tokenizer, chat template and ends of sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

TEXTS = (
    "What is the capital of France? It is Paris.",
    "You are a helpful assistant.",
    "Answer in one short sentence.",
    "user system assistant",
)
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
ROPE_3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip

# Each writes the system message, the turns and the opening of an answer as its family does.
LLAMA_3 = (
    "{{- bos_token }}{%- if messages[0].role == 'system' %}"
    "{%- set system = messages[0].content | trim %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is ' "
    "+ (date_string if date_string is defined else strftime_now('%d %b %Y %H:%M:%S')) }}"
    "{{- '\n\n' + system + '<|eot_id|>' }}"
    "{%- for turn in turns %}{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' "
    "+ turn.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
CHAT_ML = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for turn in messages %}"
    "{{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
THINKING = CHAT_ML.replace(
    "assistant\n' }}{%- endif %}",
    "assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
)


@dataclass(frozen=True)
class Family:
    """Types, template and special tokens of a family."""

    model: type
    config: type[PretrainedConfig]
    more: dict
    template: str
    specials: tuple[str, ...]
    end: str  # of a turn
    eos: str  # as the tokenizer has it
    ends: tuple[str, ...]  # as the generation config has them
    bos: str | None = None
    plain: tuple[str, ...] = ()  # added tokens that are text


LLAMA_MARKS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
QWEN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "llama3": Family(
        LlamaForCausalLM, LlamaConfig, {"rope_parameters": ROPE_3, "tie_word_embeddings": False},
        LLAMA_3, LLAMA_MARKS, "<|eot_id|>", "<|end_of_text|>",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|begin_of_text|>",
    ),
    "smollm2": Family(
        LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True},
        CHAT_ML, QWEN_MARKS, "<|im_end|>", "<|im_end|>", ("<|im_end|>",),
    ),
    "qwen2": Family(
        Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True},
        CHAT_ML, QWEN_MARKS, "<|im_end|>", "<|endoftext|>", ("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True, "head_dim": 16},
        THINKING, QWEN_MARKS, "<|im_end|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        plain=("<think>", "</think>"),
    ),
}  # fmt: skip


def write_llm(folder: Path, name: str, *, spare_rows: int = 7, **more) -> Path:
    """Write the folder of a family, its weights in bfloat16.

    Args:
        folder: to write.
        name: of the family.
        spare_rows: of the embedding, behind the vocabulary, as Qwen has them.
        **more: fields of the model's config.
    """
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family.model(
            family.config(
                vocab_size=len(tokenizer) + spare_rows, **{**SIZES, **family.more, **more}
            )
        )
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.normal_(std=0.3)
                elif parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    ids = tokenizer.convert_tokens_to_ids(list(family.ends))
    model.generation_config = GenerationConfig(eos_token_id=ids if len(ids) > 1 else ids[0])
    model.bfloat16().save_pretrained(folder)
    return folder


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.add_special_tokens(list(family.specials))
    core.add_tokens(list(family.plain))
    if family.bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        chat_template=family.template,
        clean_up_tokenization_spaces=True,
    )
