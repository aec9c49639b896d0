"""The S2T model: encoder, speech adapter and language model in one; speech and text in, text out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.encoders.base import Encoder
from echox.errors import SignalError
from echox.models.speech_adapter import AdaptedSpeech, SpeechAdapter, SpeechAdapterConfig
from echox.signals import Features, Waveform

AUDIO = -200  # stands in prompt ids where a clip's vectors go
PAD = -300  # right padding of prompt ids
IGNORE = -100  # a label that is no target


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt whose placeholders have become speech."""

    embeddings: Tensor  # [B, P, H] right-padded
    mask: Tensor  # bool [B, P]
    positions: Tensor  # [B, N] where each id of the prompt now stands


class SpeechLLM(nn.Module):
    """Hears through a frozen encoder, thinks with a causal language model."""

    def __init__(self, encoder: Encoder, adapter: SpeechAdapter, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.backbone = backbone

    @torch.no_grad()
    def hear(self, wave: Waveform) -> Features:
        """Encode audio with the frozen encoder."""
        return self.encoder(wave)

    def prompt(self, ids: Tensor, speech: AdaptedSpeech, clip_rows: Tensor, answer_tokens: int = 0) -> Prompted:
        """Put the clips' vectors where the ids say AUDIO.

        Args:
            ids: [B, N] token ids with AUDIO placeholders, as many in each row as it has clips; PAD-padded.
            speech: A clips, all rows' clips one after the other, in order.
            clip_rows: [A] the row each clip belongs to, ascending.
            answer_tokens: tokens that are to be generated after the prompt at most.
        Raises:
            SignalError: a conversation takes more positions than the language model has.
        """
        prompted = splice(ids, self.backbone.embed(ids.clamp(min=0)), speech.vectors, speech.lengths, clip_rows)
        taken, there = prompted.mask.shape[1] + answer_tokens, self.backbone.max_positions
        if there is not None and taken > there:
            answer = f" and an answer of {answer_tokens}" if answer_tokens else ""
            raise SignalError(
                f"a conversation of {prompted.mask.shape[1]} positions{answer} is longer than the {there} of the language model; "
                "shorten its audio or text, or drop its first turns"
            )
        return prompted


def join_speech_llm(encoder: Encoder, backbone: Backbone, adapter: SpeechAdapterConfig, token_ids: Tensor) -> SpeechLLM:
    """Encoder and language model with an untrained adapter between them, whose CTC emits `token_ids` [C-1]."""
    return SpeechLLM(encoder, join_adapter(encoder, backbone, adapter, token_ids), backbone)


def join_adapter(encoder: Encoder, backbone: Backbone, adapter: SpeechAdapterConfig, token_ids: Tensor) -> SpeechAdapter:
    """An untrained adapter from the encoder's frames to the language model, whose CTC emits `token_ids` [C-1]."""
    with torch.no_grad():
        rows = backbone.embed(token_ids)
    texts: list[str] = []
    if adapter.spelling_channels:
        texts = backbone.token_texts()
        # Ids on the meta device have no values; an outline has all of them.
        texts = texts if token_ids.is_meta else [texts[token] for token in token_ids.tolist()]
    return SpeechAdapter(adapter, encoder.dim, token_ids, rows, texts)


def splice(ids: Tensor, embedded: Tensor, vectors: Tensor, lengths: Tensor, clip_rows: Tensor) -> Prompted:
    """Replace each AUDIO id by its clip's vectors, rows staying independent; no loop over rows or tokens.

    Args:
        ids: [B, N]; embedded: [B, N, H] their embeddings; vectors: [A, L, H]; lengths: [A]; clip_rows: [A] ascending.
    """
    B, N, H = embedded.shape
    is_audio = ids == AUDIO
    widths = (ids != PAD).long()
    widths[is_audio] = lengths  # row-major order of placeholders is the order of the clips
    ends = widths.cumsum(1)
    starts = ends - widths
    total = ends[:, -1]
    P = int(total.max())
    out = embedded.new_zeros(B, P + 1, H)  # the last column swallows what is not placed
    target = torch.where((ids != PAD) & ~is_audio, starts, P)
    out = out.scatter(1, target[..., None].expand(-1, -1, H), embedded)
    A, L, _ = vectors.shape
    if A:
        within = torch.arange(L, device=ids.device)
        clip_starts = starts[is_audio]
        at = torch.where(within[None] < lengths[:, None], clip_starts[:, None] + within, P)
        flat = out.reshape(B * (P + 1), H)
        index = (clip_rows[:, None] * (P + 1) + at).reshape(-1)
        out = flat.index_copy(0, index, vectors.reshape(A * L, H).to(out.dtype)).reshape(B, P + 1, H)
    else:
        # Nothing is added, but what made the vectors has its gradient, of zeros, which ranks that train together wait for.
        out = out + vectors.sum().to(out.dtype)
    mask = torch.arange(P, device=ids.device)[None] < total[:, None]
    return Prompted(out[:, :P] * mask[..., None], mask, starts)
