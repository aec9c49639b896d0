"""A language model's chat template: how it writes a conversation, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from echox.errors import ConfigError

ANSWER = "echo"  # of a conversation that is written to see what follows an answer

# What templates ask for beside the messages. Qwen 3 opens an answer with its thoughts unless it is told not to think, and speech cannot
# wait for thoughts; Llama 3.2 writes today's date, and the same rows would be other ids tomorrow: this is the date it has for want of one.
SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def written(tokenizer: Any, messages: list[dict[str, str]], *, opened: bool) -> str:
    """Messages of a role and a content, as text with special tokens; `opened` for the assistant's answer, if it is to come.

    Raises:
        ConfigError: there is no template, or it refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path or 'this language model'} has no chat template to write conversations with; "
            "set backbone.weights to an instruction-tuned model, or put a chat_template.jinja into its folder"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened, **SETTINGS)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path} refuses the roles {roles} ({error}); where it takes no system message, set backbone.system=''"
        ) from error


def turn_end(tokenizer: Any) -> int:
    """The id that ends an assistant's turn: the special token that the template puts after one, else the tokenizer's end of sequence.

    The two differ where a tokenizer was made for a base model (Qwen 2.5's base has <|endoftext|>, its template <|im_end|>).

    Raises:
        ConfigError: there is neither.
    """
    text = written(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}], opened=False)
    special = special_ids(tokenizer)
    after = tokenizer.encode(text.rpartition(ANSWER)[2], add_special_tokens=False)
    found = next((token for token in after if token in special), tokenizer.eos_token_id)
    if found is None:
        raise ConfigError(f"nothing ends an answer of {tokenizer.name_or_path}: neither its chat template nor eos_token; set eos_token in tokenizer_config.json")
    return found


def other_ends(tokenizer: Any, eos_ids: int | Iterable[int] | None, end_id: int) -> tuple[int, ...]:
    """What ends an answer beside `end_id`: the ends of sequence of tokenizer and generation config.

    An id that is no special token stands there by default and is no end (Llama's config says 2, which is a letter elsewhere).
    """
    stated = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids or ())
    return tuple(sorted(special_ids(tokenizer).intersection([*stated, tokenizer.eos_token_id]) - {end_id}))


def special_ids(tokenizer: Any) -> set[int]:
    """Ids that stand for no text; `all_special_ids` lacks most of Llama 3's."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | set(tokenizer.all_special_ids)
