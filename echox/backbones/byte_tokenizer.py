"""A byte-level tokenizer without files, for random models and for shapes without a tokenizer."""

from __future__ import annotations

import transformers

BYTE_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer with one token per byte, role and end tokens, and a chat template."""
    # Imported here, because only random models need it.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    # Sorted, because the library lists its alphabet in no fixed order and ids must not change.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=specials[1:],
        chat_template=BYTE_TEMPLATE,
    )
