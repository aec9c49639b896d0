"""Chat templates: how a language model formats a conversation, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from echox.backbones.base import Turn
from echox.core.errors import ConfigError

# Marks the place of an audio while a template is rendered; it never reaches the model.
AUDIO_MARK = "\ufffc"

# The answer of a conversation that is rendered only to see which tokens follow an answer.
PROBE_ANSWER = "echo"

# Variables of the templates beside the messages. Qwen 3 starts an answer with its reasoning unless
# that is off, and speech cannot wait for it. Llama 3.2 writes today's date, which would change the
# ids of the same rows every day: this is the date its template falls back to.
TEMPLATE_VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def render(tokenizer: Any, messages: list[dict[str, str]], *, opened: bool) -> str:
    """Render messages in the tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer.
        messages: dictionaries with the keys `role` and `content`.
        opened: end with the header of the assistant's answer, which is to be generated.

    Returns:
        text with special tokens.

    Raises:
        ConfigError: there is no template, or it refuses the messages.
    """
    # Imported here: only rendering needs it.
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path or 'this language model'} has no chat "
            "template to write conversations with; set backbone.weights to an instruction-tuned "
            "model, or put a chat_template.jinja into its folder"
        )
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opened, **TEMPLATE_VARIABLES
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path} refuses the roles {roles} ({error}); "
            "where it takes no system message, set backbone.system=''"
        ) from error


def render_prompt(tokenizer: Any, turns: list[Turn]) -> list[str]:
    """Render a conversation, open for the assistant's answer, and split it at its audios.

    Returns:
        N + 1 texts with special tokens for N audios.

    Raises:
        ConfigError: there is no template, or it refuses the roles.
    """
    messages = [{"role": turn.role, "content": _content(turn)} for turn in turns]
    return render(tokenizer, messages, opened=True).split(AUDIO_MARK)


def _content(turn: Turn) -> str:
    # A text may hold the mark itself, and must not be split there.
    return (AUDIO_MARK if turn.has_audio else "") + turn.text.replace(AUDIO_MARK, "")


def turn_end(tokenizer: Any) -> int:
    """Find the token id that ends an assistant turn.

    It is the special token the template writes after an answer, else the tokenizer's end of
    sequence. The two differ where a tokenizer was made for a base model (Qwen 2.5's base has
    <|endoftext|>, its template <|im_end|>).

    Raises:
        ConfigError: there is neither.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE_ANSWER}]
    text = render(tokenizer, messages, opened=False)
    special = special_ids(tokenizer)
    # rpartition, because a system message of the template may hold the answer's word too.
    following = tokenizer.encode(text.rpartition(PROBE_ANSWER)[2], add_special_tokens=False)
    end_id = next((token for token in following if token in special), tokenizer.eos_token_id)
    if end_id is None:
        raise ConfigError(
            f"nothing ends an answer of {tokenizer.name_or_path}: neither its chat template nor "
            "eos_token; set eos_token in tokenizer_config.json"
        )
    return end_id


def other_ends(tokenizer: Any, eos_ids: int | Iterable[int] | None, end_id: int) -> tuple[int, ...]:
    """List the token ids that end an answer beside `end_id`, in ascending order.

    Args:
        tokenizer: its own end of sequence is one of them.
        eos_ids: the end-of-sequence ids of the generation config.
        end_id: the id of `turn_end`.
    """
    configured = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids or ())
    # Only special tokens: an id may be a library default, and plain text in this vocabulary (the
    # 2 of Llama's config is a letter elsewhere).
    ends = special_ids(tokenizer).intersection([*configured, tokenizer.eos_token_id])
    return tuple(sorted(ends - {end_id}))


def special_ids(tokenizer: Any) -> set[int]:
    """Return the token ids that stand for no text."""
    # `all_special_ids` alone lacks most of Llama 3's.
    added = tokenizer.added_tokens_decoder.items()
    return {token for token, entry in added if entry.special} | set(tokenizer.all_special_ids)
