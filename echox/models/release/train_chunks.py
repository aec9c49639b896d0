"""The release's training branch finetune_kd: T2C on chunks of answers, in the release's layout.

echox trains by `train_forward.segment_outputs`, whose layout is that of inference; this one
reproduces the release's losses.

Source: github.com/FreedomIntelligence/EchoX, models/t2ullama_cr_online.py, state of 2025-09-19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.criteria.base import VoicedOutputs
from echox.models.release.model import PublishedEchoX
from echox.models.release.train_forward import TextPass, cosine_distances, states_and_targets
from echox.models.speech_llm import IGNORE


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of answers as samples of the unit translator: text of one width, then units."""

    rows: Tensor  # [B * C, L, H] before the projection
    text_rows: Tensor  # [B * C, M, H] what the text parts hold where nothing is denoised
    visible: Tensor  # bool [B * C, L]
    labels: Tensor  # [B * C, L]
    text_width: int  # M


@dataclass(frozen=True, slots=True)
class _ChunkLayout:
    """What stands where in the text parts of C chunks of each of B answers."""

    is_opening: Tensor  # bool [B, C, M] ids that open a text
    is_text: Tensor  # bool [B, C, M]
    is_end: Tensor  # bool [B, C, M] the id that closes a text
    answer_index: Tensor  # [B, C, M] index into the answer's tokens where `is_text`

    @property
    def width(self) -> int:
        return self.is_text.shape[2]


def chunk_answers(
    model: PublishedEchoX,
    text_pass: TextPass,
    ids: Tensor,
    text_labels: Tensor,
    chunk_lengths: Tensor,
    starts: Tensor,
    units: Tensor,
) -> Chunks:
    """Cut answers into chunks as the release's branch finetune_kd does.

    Args:
        model: the released model.
        text_pass: of `forward_text` on the next two.
        ids: [B, N] token ids, with one audio or more.
        text_labels: [B, N] labels.
        chunk_lengths: [B, C] text tokens of each chunk, -1 from the first that does not exist.
        starts: [B] tokens between the first audio's placeholder and the state that predicts the
            first label, counted in `ids`, as the release has it, which is right where no other
            audio stands between.
        units: [B, C, T] unit targets, IGNORE-padded.

    Returns:
        B * C samples of M text and T unit positions.

    Raises:
        SignalError: a row's chunks hold more tokens than its answer.
    """
    translator, tokens = model.translator, model.tokens
    B, C = chunk_lengths.shape
    _check_chunk_lengths(chunk_lengths, text_labels)
    opening = torch.tensor(tokens.before_text(model.compatibility), device=ids.device)
    layout = _chunk_layout(chunk_lengths, len(opening))
    M = layout.width

    text_index = layout.answer_index.clamp(max=text_labels.shape[1] - 1).reshape(B, -1)
    text_ids = _targets_first(text_labels).gather(1, text_index).reshape(B, C, M)
    opening_ids = opening[torch.arange(M, device=ids.device).clamp(max=len(opening) - 1)]
    frame_ids = torch.where(layout.is_opening, opening_ids, tokens.end_id)
    denoised = _denoised_chunks(model, text_pass, ids, starts, layout)

    padding = ~(layout.is_opening | layout.is_text | layout.is_end)
    # The ids that frame a text train their rows; those at padding do not.
    frame = torch.where(
        padding[..., None], translator.rows(frame_ids), translator.trained_text(frame_ids)
    )
    mixed = torch.where(layout.is_text[..., None], denoised, frame)  # [B, C, M, H]
    # What the denoised states are compared with.
    text_rows = translator.rows(torch.where(layout.is_text, text_ids, frame_ids))
    # The release pads units with the end id, so the end of each chunk is hidden like padding.
    unit_ids = units.masked_fill(units == IGNORE, tokens.end_id)
    rows = torch.cat([mixed, translator.rows(unit_ids)], dim=2)  # [B, C, M + T, H]
    visible = torch.cat([~padding, unit_ids != tokens.end_id], dim=2)
    labels = torch.cat([units.new_full((B, C, M), IGNORE), units], dim=2)
    return Chunks(
        rows.flatten(0, 1), text_rows.flatten(0, 1), visible.flatten(0, 1), labels.flatten(0, 1), M
    )


def _chunk_exists(chunk_lengths: Tensor) -> Tensor:
    """Bool [B, C], False from a row's first -1 on, whatever stands behind it."""
    return (chunk_lengths != -1).long().cumprod(1).bool()


def _check_chunk_lengths(chunk_lengths: Tensor, text_labels: Tensor) -> None:
    # -1 counts nothing.
    totals = (chunk_lengths * _chunk_exists(chunk_lengths)).sum(1)
    counts = (text_labels != IGNORE).sum(1)
    if bool((totals > counts).any()):
        raise SignalError(
            f"chunks of {totals.tolist()} tokens are asked for, but the answers have "
            f"{counts.tolist()}; cut no more than there is"
        )


def _chunk_layout(chunk_lengths: Tensor, opening_size: int) -> _ChunkLayout:
    exists = _chunk_exists(chunk_lengths)[..., None]
    lengths = chunk_lengths * exists[..., 0]
    # The release pads to the longest entry, also to one behind a row's first -1.
    M = max(0, int(chunk_lengths.max())) + opening_size + 1
    # A first chunk leaves out the last id of the opening.
    begins = torch.full_like(lengths, opening_size)
    begins[:, 0] -= 1
    within = torch.arange(M, device=lengths.device) - begins[..., None]  # index into a chunk's text
    starts = (lengths.cumsum(1) - lengths)[..., None]  # [B, C, 1] tokens before each chunk
    return _ChunkLayout(
        is_opening=exists & (within < 0),
        is_text=exists & (within >= 0) & (within < lengths[..., None]),
        is_end=exists & (within == lengths[..., None]),
        answer_index=starts + within.clamp(min=0),
    )


def _denoised_chunks(
    model: PublishedEchoX, text_pass: TextPass, ids: Tensor, starts: Tensor, layout: _ChunkLayout
) -> Tensor:
    """Denoised states [B, C, M, H] that predict the tokens at `layout.answer_index`."""
    B, C, M = layout.answer_index.shape
    first_audio = (ids == model.tokens.audio_id).long().argmax(1)
    # The placeholder's last vector stands just before what follows it.
    begin = text_pass.positions.gather(1, first_audio[:, None] + 1)[:, 0] - 1 + starts
    index = begin[:, None, None] + layout.answer_index
    index = index.clamp(max=text_pass.hidden.shape[1] - 1).reshape(B, -1)
    denoised = model.translator.denoise(text_pass.hidden)  # [B, P, H]
    chosen = denoised.gather(1, index[..., None].expand(-1, -1, denoised.shape[-1]))
    return chosen.reshape(B, C, M, -1)


def _targets_first(labels: Tensor) -> Tensor:
    """Labels [B, N] with those that are targets moved to the front, in order."""
    # A stable sort keeps the targets in order.
    order = (labels == IGNORE).long().sort(dim=1, stable=True).indices
    return labels.gather(1, order)


def chunk_outputs(model: PublishedEchoX, text_pass: TextPass, chunks: Chunks) -> VoicedOutputs:
    """Predictions of each chunk's units and of the answers' tokens, and denoising distances.

    Args:
        model: the released model.
        text_pass: of `forward_text`.
        chunks: of `chunk_answers`.
    """
    translator = model.translator
    hidden = translator(translator.adapter(chunks.rows), chunks.visible)
    unit_states, unit_labels = states_and_targets(hidden, chunks.labels)
    text_states, text_labels = states_and_targets(text_pass.hidden, text_pass.labels)
    return VoicedOutputs(
        unit_states=unit_states,
        unit_labels=unit_labels,
        unit_head=translator.head,
        distances=cosine_distances(chunks.rows[:, : chunks.text_width], chunks.text_rows),
        text_logits=model.language.logits(text_states),
        text_labels=text_labels,
    )
