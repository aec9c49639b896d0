"""Teacher-forced passes of the release's training branches, on ragged batches, without loops over tokens; criteria make losses of them.

    S2T           the answers' tokens, and CTC of the questions
    pretrain      T2C: units after given text
    finetune      S2T + T2C, whose text is the denoised hidden states at the answer's own positions
    finetune_kd   T2C on chunks of the answer, each a sample of its own; text is the denoised states that predict its tokens
    segments      the same as streaming speaks it, without the gap between text and units that padding leaves there

Source: github.com/FreedomIntelligence/EchoX, models/echox_s2s.py and models/t2ullama_cr_online.py, state of 2025-09-19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.criteria.base import JointOutputs, SpeechTextOutputs, UnitOutputs, VoicedOutputs
from echox.errors import SignalError
from echox.models.published.adapter import ShrunkSpeech
from echox.models.published.causal import Prompt
from echox.models.published.ctc import spoken_scores
from echox.models.published.model import PublishedEchoX
from echox.models.published.translator import UnitTranslator
from echox.models.speech_llm import IGNORE
from echox.signals import Features, valid_mask


@dataclass(frozen=True, slots=True)
class TaughtText:
    """A pass of the S2T model over conversations with given answers."""

    hidden: Tensor  # [B, P, H]
    labels: Tensor  # [B, P] at the expanded positions, IGNORE where nothing is to be predicted
    visible: Tensor  # bool [B, P] keys that were attended to
    positions: Tensor  # [B, N] where each given id begins
    speech: ShrunkSpeech


def teach_text(
    model: PublishedEchoX, ids: Tensor, labels: Tensor, features: Features, clip_rows: Tensor, *, hide_turn_ends: bool | None = None
) -> TaughtText:
    """Run the S2T model.

    Args:
        ids: [B, N] right-padded with the end id, one placeholder per audio; labels: [B, N].
        features: of A clips, all rows' clips one after the other; clip_rows: [A] the row each belongs to, ascending.
        hide_turn_ends: attend as in inference; None does as the model's form has it, which is to attend to all in EchoX's training, for
            its padding mask is overwritten.
    """
    if hide_turn_ends is None:
        hide_turn_ends = model.compatibility.hide_turn_ends_in_training
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


def predicted(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels [B, P] that are targets [N], and the states [N, C] before them, which predict them: hidden [B, P, C]."""
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    return hidden[:, :-1][wanted], targets[wanted]


def text_outputs(model: PublishedEchoX, taught: TaughtText, targets: Tensor) -> SpeechTextOutputs:
    """Scores of the answers' tokens, and of what is said in the questions: targets [A, T], IGNORE-padded."""
    states, labels = predicted(taught.hidden, taught.labels)
    scores, indices = spoken_scores(model.adapter, taught.speech.frames, targets)
    return SpeechTextOutputs(
        ctc_logits=scores,
        frame_lengths=taught.speech.frame_lengths,
        targets=indices,
        target_lengths=(targets != IGNORE).sum(1),
        text_logits=model.language.logits(states),
        text_labels=labels,
    )


def pretrain_outputs(translator: UnitTranslator, ids: Tensor, labels: Tensor, visible: Tensor) -> UnitOutputs:
    """T2C's own task: ids [B, L] text then units, labels [B, L], visible bool [B, L]."""
    return UnitOutputs(*predicted(translator(translator.embed(ids), visible), labels), translator.head)


def joint_outputs(
    model: PublishedEchoX, taught: TaughtText, targets: Tensor, text_labels: Tensor, ids: Tensor, labels: Tensor, visible: Tensor
) -> JointOutputs:
    """The answers' tokens, and units of the last answer from the states that stand at its tokens.

    Args:
        targets: [A, T] as `text_outputs`.
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
    states, words = predicted(translator(translator.adapter(mixed), visible), labels)
    heard = text_outputs(model, taught, targets)
    return JointOutputs(
        heard.ctc_logits,
        heard.frame_lengths,
        heard.targets,
        heard.target_lengths,
        heard.text_logits,
        heard.text_labels,
        unit_states=states,
        unit_labels=words,
        unit_head=translator.head,
        distances=row_distances(mixed, rows),
    )


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
        starts: [B] tokens between the first audio's placeholder and the state that predicts the first label, counted in `ids`, as the
            release has it, which is right where no other audio stands between.
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
    M = max(0, int(chunk_lengths.max())) + len(opening) + 1
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


def chunk_outputs(model: PublishedEchoX, taught: TaughtText, chunks: Chunks) -> VoicedOutputs:
    """Units of each chunk, the distance of its denoised states from its tokens, and the answers' tokens."""
    translator = model.translator
    states, words = predicted(translator(translator.adapter(chunks.rows), chunks.visible), chunks.labels)
    text_states, text_labels = predicted(taught.hidden, taught.labels)
    return VoicedOutputs(
        unit_states=states,
        unit_labels=words,
        unit_head=translator.head,
        distances=row_distances(chunks.rows[:, : chunks.text_width], chunks.text_rows),
        text_logits=model.language.logits(text_states),
        text_labels=text_labels,
    )


@dataclass(frozen=True, slots=True)
class Segments:
    """Pieces of answers, those that there are, one after the other."""

    states: Tensor  # [K, M, H] that predict their tokens, right-padded
    labels: Tensor  # [K, M] those tokens, in the reference answer
    lengths: Tensor  # [K]


def answer_segments(taught: TaughtText, lengths: Tensor) -> Segments:
    """Cut the one answer of each conversation: lengths [B, C] tokens of its segments, below 1 where there is none."""
    first = (taught.labels != IGNORE).long().argmax(1) - 1
    sizes = lengths.clamp(min=0)
    starts = first[:, None] + sizes.cumsum(1) - sizes
    rows, places = (lengths > 0).nonzero(as_tuple=True)
    at = starts[rows, places][:, None] + torch.arange(max(1, int(sizes.max())), device=lengths.device)
    inside = at.clamp(max=taught.hidden.shape[1] - 2)
    return Segments(taught.hidden[rows[:, None], inside], taught.labels[rows[:, None], inside + 1].clamp(min=0), sizes[rows, places])


def segment_outputs(model: PublishedEchoX, taught: TaughtText, lengths: Tensor, units: Tensor) -> VoicedOutputs:
    """Units of each segment of the answers after its denoised states, laid out as when it is spoken; no padding stands between them.

    Args:
        lengths: [B, C] text tokens of each segment, below 1 where there is none; units: [B, C, T] IGNORE-padded.
    """
    translator = model.translator
    cut = answer_segments(taught, lengths)
    words = units[lengths > 0]
    real = valid_mask(cut.lengths, cut.states.shape[1])
    toward = cut.labels if model.compatibility.denoise_towards_reference else model.language.logits(cut.states).argmax(-1)
    vectors = translator.denoise(cut.states)
    distances = 1 - F.cosine_similarity(vectors.float(), translator.rows(toward).float(), dim=-1)
    embeddings, visible, labels = _followed(model.segment_prompt(vectors, cut.lengths), words, translator)
    states, unit_labels = predicted(translator(embeddings, visible), labels)
    text_states, text_labels = predicted(taught.hidden, taught.labels)
    return VoicedOutputs(
        unit_states=states,
        unit_labels=unit_labels,
        unit_head=translator.head,
        distances=(distances * real).sum(-1),
        text_logits=model.language.logits(text_states),
        text_labels=text_labels,
    )


def _followed(prompt: Prompt, words: Tensor, translator: UnitTranslator) -> tuple[Tensor, Tensor, Tensor]:
    """A ragged prompt with words [K, T] right behind it: embeddings [K, P + T, C], what may be attended to, labels [K, P + T]."""
    K, T = words.shape
    embedded = translator.embed(words.clamp(min=0))
    place = prompt.lengths[:, None] + torch.arange(T, device=words.device)
    embeddings = F.pad(prompt.embeddings, (0, 0, 0, T)).to(embedded.dtype)
    embeddings = embeddings.scatter(1, place[..., None].expand_as(embedded), embedded)
    labels = words.new_full(embeddings.shape[:2], IGNORE).scatter(1, place, words)
    visible = valid_mask(prompt.lengths + (words != IGNORE).sum(1), embeddings.shape[1])
    return embeddings, visible, labels


def row_distances(rows: Tensor, wanted: Tensor) -> Tensor:
    """Per sample the sum of 1 - cosine: both [B, S, H] -> [B].

    All positions count, framing and padding too, where both are equal; a row of zeros (an untrained padding row) adds 1.
    """
    return (1 - F.cosine_similarity(rows.float(), wanted.float(), dim=-1)).sum(-1)


def _compact(labels: Tensor) -> Tensor:
    """Labels [B, N] with those that are targets moved to the front, in order."""
    order = (labels == IGNORE).long().sort(dim=1, stable=True).indices
    return labels.gather(1, order)
