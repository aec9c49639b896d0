"""Teacher-forced passes of the release's training branches, whose outputs criteria turn to losses.

    S2T           the answers' tokens, and CTC of the questions
    pretrain      T2C: units after given text
    finetune      S2T + T2C, whose text is the denoised hidden states at the answer's own positions
    segments      T2C on segments of the answer, each a sample of its own; text is the denoised
                  states that predict its tokens. The release's finetune_kd is the same but for a
                  gap that padding leaves between text and units; here is none, as in inference.

Batches are ragged, and nothing loops over tokens.

Source: github.com/FreedomIntelligence/EchoX, models/echox_s2s.py and
models/t2ullama_cr_online.py, state of 2025-09-19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.core.errors import SignalError
from echox.core.signals import Features, Spans, valid_mask
from echox.criteria.base import EchoOutputs, JointOutputs, SpeechTextOutputs, UnitOutputs
from echox.models.release.causal import Prompt
from echox.models.release.ctc import restricted_ctc_scores
from echox.models.release.model import PublishedEchoX, scatter_rows
from echox.models.release.translator import UnitTranslator
from echox.models.segmenting import cut
from echox.models.speech_adapter import AdaptedSpeech
from echox.models.speech_llm import IGNORE


@dataclass(frozen=True, slots=True)
class TextPass:
    """A teacher-forced pass of the S2T model over conversations with their answers."""

    hidden: Tensor  # [B, P, H]
    labels: Tensor  # [B, P] at the expanded positions, IGNORE where nothing is to be predicted
    visible: Tensor  # bool [B, P] keys that were attended to
    positions: Tensor  # [B, N] where each id of the batch begins
    speech: AdaptedSpeech


def forward_text(
    model: PublishedEchoX,
    ids: Tensor,
    labels: Tensor,
    features: Features,
    clip_rows: Tensor,
    *,
    hide_turn_ends: bool | None = None,
) -> TextPass:
    """Run the S2T model with teacher forcing.

    Args:
        model: the released model.
        ids: [B, N] token ids, right-padded with the end id, one placeholder per audio.
        labels: [B, N] the same ids where they are targets, IGNORE elsewhere.
        features: [A, F, D] of the clips, those of each row one after the other.
        clip_rows: [A] the row of each clip, ascending.
        hide_turn_ends: hide end-of-turn tokens as inference does; None follows the model's form,
            in which EchoX's training attends to all, because its padding mask is overwritten.

    Returns:
        hidden states [B, P, H], and the labels at their positions.
    """
    if hide_turn_ends is None:
        hide_turn_ends = model.compatibility.hide_turn_ends_in_training
    end_id = model.tokens.end_id
    speech = model.adapter(features, clip_rows)
    prompted, repeated = model.expand(ids, speech, clip_rows)
    # Rows whose audio is shorter end in further padding ids, embedded like the others, not in
    # zeros.
    padding = model.language.embed(torch.tensor(end_id, device=ids.device))
    embeddings = torch.where(prompted.mask[..., None], prompted.embeddings, padding)
    # Padding and end-of-turn tokens share an id, and the release's mask cannot tell them apart.
    ends = ~prompted.mask | (repeated == end_id)
    visible = ~ends if hide_turn_ends else torch.ones_like(ends)
    is_target = labels != IGNORE
    if model.compatibility.forget_answers_before_audio:
        is_target = is_target & ((ids == model.tokens.audio_id).cumsum(1) > 0)
    # Labels move with their ids, past the vectors of audio before them.
    placed = scatter_rows(labels, prompted.positions, is_target, visible.shape[1], IGNORE)
    hidden = model.language(embeddings, visible).hidden
    return TextPass(hidden, placed, visible, prompted.positions, speech)


def states_and_targets(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of a sequence, and the states that predict them, one position earlier.

    Args:
        hidden: [B, P, C].
        labels: [B, P], IGNORE where there is no target.

    Returns:
        states [N, C] and targets [N].
    """
    targets = labels[:, 1:]
    is_target = targets != IGNORE
    return hidden[:, :-1][is_target], targets[is_target]


def text_outputs(
    model: PublishedEchoX, text_pass: TextPass, transcripts: Tensor
) -> SpeechTextOutputs:
    """Scores of the answers' tokens, and CTC scores of the questions.

    Args:
        model: the released model.
        text_pass: of `forward_text`.
        transcripts: [A, T] tokens that are said in each clip, IGNORE-padded.
    """
    states, labels = states_and_targets(text_pass.hidden, text_pass.labels)
    scores, indices = restricted_ctc_scores(model.adapter, text_pass.speech.frames, transcripts)
    return SpeechTextOutputs(
        ctc_logits=scores,
        frame_lengths=text_pass.speech.frame_lengths,
        targets=indices,
        target_lengths=(transcripts != IGNORE).sum(1),
        text_logits=model.language.logits(states),
        text_labels=labels,
    )


def pretrain_outputs(
    translator: UnitTranslator, ids: Tensor, labels: Tensor, visible: Tensor
) -> UnitOutputs:
    """Unit predictions of T2C's own task.

    Args:
        translator: the unit translator.
        ids: [B, L] text, then units.
        labels: [B, L] the units, IGNORE elsewhere.
        visible: bool [B, L] keys that may be attended to.
    """
    hidden = translator(translator.embed(ids), visible).hidden
    return UnitOutputs(*states_and_targets(hidden, labels), translator.head)


def joint_outputs(
    model: PublishedEchoX,
    text_pass: TextPass,
    transcripts: Tensor,
    text_labels: Tensor,
    ids: Tensor,
    labels: Tensor,
    visible: Tensor,
) -> JointOutputs:
    """Text and unit predictions of the last answer, its text given by the states at its tokens.

    Args:
        model: the released model.
        text_pass: of `forward_text`.
        transcripts: [A, T] as `text_outputs`.
        text_labels: [B, N] labels of the S2T pass before expansion; where they are, `ids` hold
            the same text.
        ids: [B, L] text and units of the unit translator, L >= N.
        labels: [B, L] the units, IGNORE elsewhere.
        visible: bool [B, L] keys that may be attended to.

    Raises:
        SignalError: the answer's tokens are not those that the S2T pass predicts.
    """
    translator = model.require_translator()
    # Detached: they are the targets of the denoised states too.
    rows = translator.rows(ids).detach()  # [B, L, H]
    is_text = F.pad(text_labels != IGNORE, (0, ids.shape[1] - text_labels.shape[1]))
    is_target = text_pass.labels != IGNORE
    if not torch.equal(text_labels[text_labels != IGNORE], text_pass.labels[is_target]):
        raise SignalError(
            "the answers of the unit translator are not those of the S2T pass; "
            "give only the last answer labels, after its audio"
        )
    denoised = translator.denoise(text_pass.hidden)[is_target]
    # Both masks have the same number of targets in the same order, row by row.
    mixed = rows.masked_scatter(is_text[..., None], denoised.to(rows.dtype))
    hidden = translator(translator.adapter(mixed), visible).hidden
    unit_states, unit_labels = states_and_targets(hidden, labels)
    text = text_outputs(model, text_pass, transcripts)
    return JointOutputs(
        text.ctc_logits,
        text.frame_lengths,
        text.targets,
        text.target_lengths,
        text.text_logits,
        text.text_labels,
        unit_states=unit_states,
        unit_labels=unit_labels,
        unit_head=translator.head,
        # All positions count, framing and padding too, where both are equal; a row of zeros (an
        # untrained padding row) has the distance 1.
        denoised=mixed.flatten(0, 1),
        text_vectors=rows.flatten(0, 1),
        sample_lengths=torch.full((len(ids),), ids.shape[1], device=ids.device),
    )


def answer_states(text_pass: TextPass) -> tuple[Tensor, Tensor, Tensor]:
    """States that predict the one answer of each conversation, without the end of the turn.

    Args:
        text_pass: of `forward_text`, with targets in one answer of each row.

    Returns:
        states [B, S, H], the tokens of the reference answer [B, S], and lengths [B] in tokens.
    """
    is_target = text_pass.labels != IGNORE
    lengths = is_target.sum(1) - 1
    # The state that predicts the answer's first token, one position earlier.
    first = is_target.long().argmax(1) - 1
    S = max(1, int(lengths.max()))
    # Padding beyond the last state reads some state there is; its value does not matter.
    at = (first[:, None] + torch.arange(S, device=lengths.device)).clamp(
        max=text_pass.hidden.shape[1] - 2
    )
    rows = torch.arange(len(at), device=at.device)[:, None]
    labels = text_pass.labels[rows, at + 1].clamp(min=0)
    return text_pass.hidden[rows, at], labels, lengths


def segment_outputs(
    model: PublishedEchoX, text_pass: TextPass, spans: Spans, units: Tensor
) -> EchoOutputs:
    """Predictions of each segment's units after its denoised states, laid out as in inference.

    Args:
        model: the released model.
        text_pass: of `forward_text`, with targets in one answer of each row.
        spans: G segments of the answers.
        units: [G, T] unit targets, IGNORE-padded.
    """
    translator = model.require_translator()
    answers, reference, _ = answer_states(text_pass)
    states, lengths = cut(answers, spans)  # [G, M, H], [G]
    is_real = valid_mask(lengths, states.shape[1])
    if model.compatibility.denoise_towards_reference:
        # `cut` takes vectors; ids are vectors of one channel.
        text = cut(reference[..., None], spans)[0][..., 0]
    else:
        text = model.language.logits(states).argmax(-1)
    vectors = translator.denoise(states)  # [G, M, H]
    prompt = model.segment_prompt(vectors, lengths)
    embeddings, visible, labels = _append_units(prompt, units, translator)
    hidden = translator(embeddings, visible).hidden
    unit_states, unit_labels = states_and_targets(hidden, labels)
    text_states, text_labels = states_and_targets(text_pass.hidden, text_pass.labels)
    return EchoOutputs(
        unit_states=unit_states,
        unit_labels=unit_labels,
        unit_head=translator.head,
        denoised=vectors[is_real],
        text_vectors=translator.rows(text)[is_real],
        sample_lengths=lengths,
        text_logits=model.language.logits(text_states),
        text_labels=text_labels,
    )


def _append_units(
    prompt: Prompt, units: Tensor, translator: UnitTranslator
) -> tuple[Tensor, Tensor, Tensor]:
    """Put unit tokens [G, T] right behind ragged prompts [G, P], as in decoding.

    Returns:
        embeddings [G, P + T, C], visible keys bool [G, P + T], labels [G, P + T].
    """
    T = units.shape[1]
    # IGNORE is negative; padding is embedded as some id, hidden by the mask.
    embedded = translator.embed(units.clamp(min=0))
    place = prompt.lengths[:, None] + torch.arange(T, device=units.device)
    embeddings = F.pad(prompt.embeddings, (0, 0, 0, T)).to(embedded.dtype)
    embeddings = embeddings.scatter(1, place[..., None].expand_as(embedded), embedded)
    labels = units.new_full(embeddings.shape[:2], IGNORE).scatter(1, place, units)
    visible = valid_mask(prompt.lengths + (units != IGNORE).sum(1), embeddings.shape[1])
    return embeddings, visible, labels
