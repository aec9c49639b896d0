"""Teacher-forced passes and losses of the release's training branches, on ragged batches, without loops over tokens.

    S2T           cross-entropy of the answers + 0.3 CTC
    pretrain      T2C: cross-entropy of units after given text
    finetune      S2T + T2C, whose text is the denoised hidden states at the answer's own positions
    finetune_kd   T2C on chunks of the answer, each a sample of its own; text is the denoised states that predict its tokens

Source: github.com/FreedomIntelligence/EchoX, models/echox_s2s.py and models/t2ullama_cr_online.py, state of 2025-09-19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.errors import SignalError
from echox.models.published.adapter import ShrinkingAdapter, ShrunkSpeech
from echox.models.published.causal import CausalModel
from echox.models.published.model import PublishedEchoX
from echox.signals import Features

IGNORE = -100
CTC_WEIGHT = 0.3
COSINE_SHARE = 0.2  # of the unit loss, at which the cosine term is capped
LEARNED = 1.0  # an S2T loss below which units count for more


@dataclass(frozen=True, slots=True)
class TaughtText:
    """A pass of the S2T model over conversations with given answers."""

    hidden: Tensor  # [B, P, H]
    labels: Tensor  # [B, P] at the expanded positions, IGNORE where nothing is to be predicted
    visible: Tensor  # bool [B, P] keys that were attended to
    positions: Tensor  # [B, N] where each given id begins
    speech: ShrunkSpeech


def teach_text(
    model: PublishedEchoX, ids: Tensor, labels: Tensor, features: Features, clip_rows: Tensor, *, hide_turn_ends: bool = False
) -> TaughtText:
    """Run the S2T model.

    Args:
        ids: [B, N] right-padded with the end id, one placeholder per audio; labels: [B, N].
        features: of A clips, all rows' clips one after the other; clip_rows: [A] the row each belongs to, ascending.
        hide_turn_ends: attend as in inference; the release's training attends to all, for its padding mask is overwritten.
    """
    end_id = model.tokens.end_id
    speech = model.adapter(features, clip_rows)
    expanded = model.expand(ids, speech, clip_rows)
    # Rows whose audio is shorter end in padding ids of their own.
    padding = model.language.embed(torch.tensor(end_id, device=ids.device))
    embeddings = torch.where(expanded.visible[..., None], expanded.embeddings, padding)
    ends = ~expanded.visible | (expanded.ids == end_id)
    visible = ~ends if hide_turn_ends else torch.ones_like(ends)
    wanted = labels != IGNORE
    if model.compatibility.forget_answers_before_audio:
        wanted = wanted & ((ids == model.tokens.audio_id).cumsum(1) > 0)
    placed = model.place(labels, expanded.positions, wanted, visible.shape[1], IGNORE)
    return TaughtText(model.language(embeddings, visible), placed, visible, expanded.positions, speech)


def token_loss(model: CausalModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labels [B, P], each predicted from the state before it: hidden [B, P, C]."""
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    return F.cross_entropy(model.logits(hidden[:, :-1][wanted]).float(), targets[wanted])


def ctc_loss(adapter: ShrinkingAdapter, speech: ShrunkSpeech, targets: Tensor) -> Tensor:
    """Mean over clips of CTC per target token: targets [A, T], IGNORE-padded; impossible clips count nothing.

    In float32, as the release has it: at a loss of 900 per token its gradient's norm is 0.25 % off that of float64.
    """
    scores = adapter.ctc_head(speech.frames).float().log_softmax(-1).transpose(0, 1)
    lengths = (targets != IGNORE).sum(1)
    return F.ctc_loss(scores, targets, speech.frame_lengths, lengths, blank=adapter.shape.blank_id, reduction="mean", zero_infinity=True)


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The S2T loss and its parts."""

    total: Tensor
    text: Tensor
    ctc: Tensor


def text_loss(model: PublishedEchoX, taught: TaughtText, targets: Tensor) -> TextLoss:
    """Cross-entropy of the answers + 0.3 CTC of the questions: targets [A, T], IGNORE-padded."""
    text = token_loss(model.language, taught.hidden, taught.labels)
    ctc = ctc_loss(model.adapter, taught.speech, targets)
    return TextLoss(text + CTC_WEIGHT * ctc, text, ctc)


@dataclass(frozen=True, slots=True)
class VoiceLoss:
    """The unit loss and its parts."""

    total: Tensor
    units: Tensor
    cosine: Tensor
    cosine_weight: Tensor


def pretrain_loss(model: PublishedEchoX, ids: Tensor, labels: Tensor, visible: Tensor) -> Tensor:
    """T2C's own task: ids [B, L] text then units, labels [B, L], visible bool [B, L]."""
    translator = model.translator
    return token_loss(translator, translator(translator.embed(ids), visible), labels)


def finetune_loss(
    model: PublishedEchoX, taught: TaughtText, text_labels: Tensor, ids: Tensor, labels: Tensor, visible: Tensor
) -> VoiceLoss:
    """Units of the last answer from the states that stand at its tokens.

    Args:
        text_labels: [B, N] labels of the S2T pass before expansion; where they are, `ids` hold the same text.
        ids: [B, L] text and units of the unit translator, L >= N; labels, visible: [B, L].
    Raises:
        SignalError: the answer's tokens are not those that the S2T pass predicts.
    """
    translator = model.translator
    rows = translator.rows(ids).detach()
    text = F.pad(text_labels != IGNORE, (0, ids.shape[1] - text_labels.shape[1]))
    if not torch.equal(text_labels[text_labels != IGNORE], taught.labels[taught.labels != IGNORE]):
        raise SignalError(
            "the answers of the unit translator are not those of the S2T pass; give only the last answer labels, after its audio"
        )
    spoken = translator.denoise(taught.hidden)[taught.labels != IGNORE]
    mixed = rows.masked_scatter(text[..., None], spoken.to(rows.dtype))
    hidden = translator(translator.adapter(mixed), visible)
    return capped_loss(token_loss(translator, hidden, labels), row_distance(mixed, rows))


@dataclass(frozen=True, slots=True)
class Chunks:
    """Pieces of answers as samples of the unit translator, text parts padded to one width before the units."""

    rows: Tensor  # [B * C, L, H] before the projection
    text_rows: Tensor  # [B * C, M, H] what the text parts hold where nothing is denoised
    visible: Tensor  # bool [B * C, L]
    labels: Tensor  # [B * C, L]
    text_width: int  # M


def chunked(
    model: PublishedEchoX, taught: TaughtText, ids: Tensor, text_labels: Tensor, chunk_lengths: Tensor, starts: Tensor, units: Tensor
) -> Chunks:
    """Cut answers into chunks.

    Args:
        ids, text_labels: [B, N] as given to `teach_text`, with one audio or more.
        chunk_lengths: [B, C] text tokens per chunk, -1 from the first that is not there.
        starts: [B] tokens between the first audio's placeholder and the state that predicts the first label, counted in `ids`.
        units: [B, C, T] unit targets, IGNORE-padded.
    Raises:
        SignalError: a row's chunks hold more tokens than its answer.
    """
    translator, tokens = model.translator, model.tokens
    B, C = chunk_lengths.shape
    there = (chunk_lengths != -1).long().cumprod(1).bool()
    lengths = chunk_lengths * there
    counts = (text_labels != IGNORE).sum(1)
    if bool((lengths.sum(1) > counts).any()):
        raise SignalError(
            f"chunks of {lengths.sum(1).tolist()} tokens are asked for, but the answers have {counts.tolist()}; cut no more than there is"
        )
    opening = torch.tensor(tokens.before_text(model.compatibility), device=ids.device)  # a first chunk leaves out the last of it
    M = int(lengths.max()) + len(opening) + 1
    at = torch.arange(M, device=ids.device)
    begins = torch.full_like(lengths, len(opening))
    begins[:, 0] -= 1
    within = at - begins[..., None]  # [B, C, M] index into a chunk's text
    is_text = there[..., None] & (within >= 0) & (within < lengths[..., None])
    is_opening = there[..., None] & (within < 0)
    taken = (lengths.cumsum(1) - lengths)[..., None] + within.clamp(min=0)  # index into the answer
    text_ids = _compact(text_labels).gather(1, taken.clamp(max=text_labels.shape[1] - 1).reshape(B, -1)).reshape(B, C, M)
    frame_ids = torch.where(is_opening, opening[at.clamp(max=len(opening) - 1)], tokens.end_id)

    first_audio = (ids == tokens.audio_id).long().argmax(1)
    # The placeholder's last vector stands just before what follows it.
    begin = taught.positions.gather(1, first_audio[:, None] + 1)[:, 0] - 1 + starts
    index = (begin[:, None, None] + taken).clamp(max=taught.hidden.shape[1] - 1).reshape(B, -1)
    denoised = translator.denoise(taught.hidden)
    spoken = denoised.gather(1, index[..., None].expand(-1, -1, denoised.shape[-1])).reshape(B, C, M, -1)

    closes = there[..., None] & (within == lengths[..., None])
    beyond = ~(is_opening | is_text | closes)
    frame = torch.where(beyond[..., None], translator.rows(frame_ids), translator.trained_text(frame_ids))
    mixed = torch.where(is_text[..., None], spoken, frame)
    text_rows = translator.rows(torch.where(is_text, text_ids, frame_ids))
    unit_ids = units.masked_fill(units == IGNORE, tokens.end_id)
    rows = torch.cat([mixed, translator.rows(unit_ids)], dim=2)
    visible = torch.cat([~beyond, unit_ids != tokens.end_id], dim=2)
    labels = torch.cat([units.new_full((B, C, M), IGNORE), units], dim=2)
    return Chunks(rows.flatten(0, 1), text_rows.flatten(0, 1), visible.flatten(0, 1), labels.flatten(0, 1), M)


def chunk_loss(model: PublishedEchoX, chunks: Chunks) -> VoiceLoss:
    """Units of each chunk, and the distance of its denoised states from its tokens."""
    translator = model.translator
    hidden = translator(translator.adapter(chunks.rows), chunks.visible)
    return capped_loss(token_loss(translator, hidden, chunks.labels), row_distance(chunks.rows[:, : chunks.text_width], chunks.text_rows))


def row_distance(rows: Tensor, wanted: Tensor) -> Tensor:
    """Mean over samples of the summed 1 - cosine: both [B, S, H].

    All positions count, framing and padding too, where both are equal; a row of zeros (an untrained padding row) adds 1.
    """
    return (1 - F.cosine_similarity(rows, wanted, dim=-1)).sum(-1).mean()


def capped_loss(units: Tensor, cosine: Tensor) -> VoiceLoss:
    """Unit loss + cosine term, the latter held at a fifth of the former: what the release has in place of the paper's lambda."""
    cap = COSINE_SHARE * units.detach()
    weight = torch.where(cosine.detach() > cap, cap / cosine.detach(), torch.ones_like(cap))
    return VoiceLoss(units + weight * cosine, units, cosine, weight)


def joint_loss(text: Tensor, voice: Tensor) -> Tensor:
    """S2T and T2C together: once text is learned, units count ten times as much."""
    return torch.where(text.detach() < LEARNED, 0.2 * text + 2.0 * voice, text + voice)


def _compact(labels: Tensor) -> Tensor:
    """Labels [B, N] with those that are targets moved to the front, in order."""
    order = (labels == IGNORE).long().sort(dim=1, stable=True).indices
    return labels.gather(1, order)
