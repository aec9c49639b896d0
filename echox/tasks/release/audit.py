"""Batches in the released form as an audit shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from echox.models.release.hearing import WINDOW_S
from echox.models.release.tokens import ReleaseTokens
from echox.models.release.translator import UnitTranslator
from echox.models.speech_llm import IGNORE
from echox.tasks import views
from echox.tasks.base import CtcTargets, TokenTargets
from echox.tasks.release.conversations import ConversationBatch
from echox.tasks.views import TextFormat, text_format, token_targets, unpadded_length

WINDOW_FRAMES_HZ = 50  # frames per second of Whisper's encoder
WINDOWS_NOTE = (
    f"clips are heard in whole windows of {WINDOW_S} s, so their seconds count the silence after "
    "them"
)


def token_text(tokens: ReleaseTokens) -> TextFormat:
    """Text of the release's token ids, special tokens visible."""
    return text_format(lambda ids: tokens.text(ids), tokens.tokenize("a")[-1])


def conversation_targets(tokens: ReleaseTokens, batch: ConversationBatch) -> list[TokenTargets]:
    """Targets of the text of B conversations [B, N].

    Args:
        tokens: the tokenizer of the checkpoint.
        batch: the conversations.
    """
    # The audio placeholder is the last token that is not one of units.
    vocabulary = range(tokens.audio_id + 1)
    plain = range(tokens.begin_id)  # special tokens begin with begin-of-text
    return _targets("text", batch.ids, batch.labels, tokens, vocabulary, plain)


def _targets(
    name: str,
    ids: Tensor,
    labels: Tensor,
    tokens: ReleaseTokens,
    vocabulary: range,
    swaps: range,
) -> list[TokenTargets]:
    """Targets of sequences [B, N] whose labels stand at their own ids; see `token_targets`."""
    # The label at position i + 1 is predicted at position i.
    lengths = [unpadded_length(row, tokens.end_id) - 1 for row in ids]
    text, end_id = token_text(tokens), tokens.end_id
    return list(token_targets(name, ids, labels[:, 1:], lengths, vocabulary, swaps, end_id, text))


def clip_targets(tokens: ReleaseTokens, batch: ConversationBatch) -> list[CtcTargets]:
    """CTC targets of A clips [A, S], which are encoded in whole windows with the silence in them.

    Args:
        tokens: the tokenizer of the checkpoint.
        batch: the conversations.
    """
    targets = views.clip_targets(
        # Whole windows: lengths include the silence that fills the last one.
        batch.wave.lengths * WINDOW_FRAMES_HZ // batch.wave.rate_hz,
        WINDOW_FRAMES_HZ,
        batch.clip_rows.tolist(),
        # One placeholder for each clip, in the order of rows and positions.
        (batch.ids == tokens.audio_id).nonzero()[:, 1].tolist(),
        batch.transcripts,
        (batch.transcripts != IGNORE).sum(1),
        range(tokens.audio_id),  # any token of text; the placeholder is the blank
        token_text(tokens),
    )
    return list(targets)


def translator_targets(
    translator: UnitTranslator, tokens: ReleaseTokens, ids: Tensor, labels: Tensor
) -> list[TokenTargets]:
    """Targets of text and units in one sequence of the unit translator.

    Args:
        translator: the unit translator.
        tokens: the tokenizer of the checkpoint.
        ids: [B, L] token ids.
        labels: [B, L], IGNORE where there is no target.
    """
    vocabulary, units = translator_vocabulary(translator), unit_id_range(tokens)
    targets = _targets("units", ids, labels, tokens, vocabulary, units)
    return [
        replace(target, units=units_of_ids(tokens, target.scored.tolist())) for target in targets
    ]


def translator_vocabulary(translator: UnitTranslator) -> range:
    """Ids of text and units that a unit translator may predict."""
    return range(translator.text_size + translator.unit_rows.num_embeddings)


def end_id_padding(ids: Tensor, end_id: int) -> list[Tensor]:
    """Padding of each row of ids [B, N] that has any: the end ids after its own."""
    return [row[length:] for row in ids if (length := unpadded_length(row, end_id)) < len(row)]


def units_of_ids(tokens: ReleaseTokens, ids: Sequence[int]) -> list[int]:
    """Units of unit tokens, also of those that the release's decoding would drop."""
    # The release's own decoding goes through text and drops large numbers.
    units = {token: group for group, token in tokens.unit_tokens.items()}
    return [unit for token in ids for unit in units.get(token, ())]


def unit_id_range(tokens: ReleaseTokens) -> range:
    """Ids from the first unit token to the last."""
    return range(min(tokens.unit_tokens.values()), max(tokens.unit_tokens.values()) + 1)
