"""The S2T model: encoder, speech adapter and language model; speech and text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.core.errors import SignalError
from echox.core.signals import Features, Waveform, valid_mask
from echox.data.audio import pad_waveforms
from echox.encoders.base import Encoder
from echox.models.speech_adapter import (
    AdapterSizes,
    SpeechAdapter,
    SpeechAdapterConfig,
    SpeechVectors,
)

AUDIO = -200  # placeholder in prompt ids for a clip's vectors
PAD = -300  # right padding of prompt ids
IGNORE = -100  # a label that is no target


@dataclass(frozen=True, slots=True)
class Prompted:
    """Prompts whose placeholders are replaced by speech vectors."""

    embeddings: Tensor  # [B, P, H] right-padded
    mask: Tensor  # bool [B, P], True at real positions, which may be attended to
    positions: Tensor  # [B, N] position of each prompt id; of a placeholder, where its clip begins


class SpeechLLM(nn.Module):
    """A speech encoder, an adapter and a causal language model."""

    def __init__(self, encoder: Encoder, adapter: SpeechAdapter, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.backbone = backbone

    @torch.no_grad()
    def encode_audio(self, wave: Waveform) -> Features:
        """Encode samples [B, T] without gradients, as inference does.

        Raises:
            SignalError: `wave.rate_hz` is not the encoder's.
        """
        return self.encoder(wave)

    def encode_clips(self, clips: Sequence[Tensor]) -> Features:
        """Encode clips [T], of any lengths, on the device of the language model."""
        wave = pad_waveforms(clips, self.encoder.rate_hz)
        return self.encode_audio(wave.to(self.backbone.head_rows().device))

    def prompt(
        self, ids: Tensor, speech: SpeechVectors | None, clip_rows: Tensor, answer_tokens: int = 0
    ) -> Prompted:
        """Replace the placeholders of prompts by the clips' vectors.

        Args:
            ids: token ids [B, N] with AUDIO placeholders, as many in each row as it has clips;
                PAD-padded.
            speech: A clips, all rows' clips one after the other, in order; None where there are
                none.
            clip_rows: [A] the row each clip belongs to, ascending.
            answer_tokens: tokens at most that will be generated after the prompt.

        Raises:
            SignalError: a conversation takes more positions than the language model has.
        """
        prompted = splice_speech(self.backbone, ids, speech, clip_rows)
        check_positions(prompted.mask.shape[1], answer_tokens, self.backbone.max_positions)
        return prompted


def check_positions(prompt: int, answer: int, limit: int | None) -> None:
    """Check that a language model has the positions of a prompt and its answer.

    Rotary positions know no end: beyond it a model would go on without an error.

    Args:
        prompt: positions of the longest prompt.
        answer: tokens at most that will be generated after it.
        limit: of the language model; None is no limit.

    Raises:
        SignalError: it has fewer.
    """
    if limit is not None and prompt + answer > limit:
        words = f" and an answer of {answer}" if answer else ""
        raise SignalError(
            f"a conversation of {prompt} positions{words} is longer than the {limit} of the "
            "language model; shorten its audio or text, or drop its first turns"
        )


def join_speech_llm(
    encoder: Encoder, backbone: Backbone, adapter: SpeechAdapterConfig, token_ids: Tensor
) -> SpeechLLM:
    """Join an encoder and a language model by an untrained adapter.

    Args:
        encoder, backbone: the pretrained parts.
        adapter: shape of the adapter.
        token_ids: [C-1] the tokens that the adapter's CTC may emit.

    Raises:
        ConfigError: the adapter's shape does not fit the language model.
    """
    return SpeechLLM(encoder, join_adapter(encoder, backbone, adapter, token_ids), backbone)


def join_adapter(
    encoder: Encoder, backbone: Backbone, adapter: SpeechAdapterConfig, token_ids: Tensor
) -> SpeechAdapter:
    """Build an untrained adapter from an encoder's frames to a language model.

    Args:
        encoder, backbone: the parts that it joins.
        adapter: shape of the adapter.
        token_ids: [C-1] the tokens that its CTC may emit.

    Raises:
        ConfigError: the shape does not fit the language model.
    """
    with torch.no_grad():
        rows = backbone.embed(token_ids)
    texts: list[str] = []
    if adapter.spelling_channels:
        texts = backbone.token_texts()
        # Ids on the meta device have no values; an outline has all of them.
        texts = texts if token_ids.is_meta else [texts[token] for token in token_ids.tolist()]
    tokens, H = rows.shape
    sizes = AdapterSizes(
        feature_dim=encoder.dim,
        width=H,
        classes=tokens + 1,
        blank=tokens,
        feed_forward=adapter.feed_forward * H,
    )
    return SpeechAdapter(adapter, sizes, token_ids, rows, texts)


def splice_speech(
    backbone: Backbone, ids: Tensor, speech: SpeechVectors | None, clip_rows: Tensor
) -> Prompted:
    """Embed ids [B, N], and replace their placeholders; arguments as in `SpeechLLM.prompt`."""
    # Negative ids are no tokens; what they embed to is replaced or masked.
    embedded = backbone.embed(ids.clamp(min=0))
    if speech is None:
        nothing = embedded.new_zeros(0, 1, embedded.shape[2])
        return splice(ids, embedded, nothing, clip_rows.new_zeros(0), clip_rows)
    return splice(ids, embedded, speech.vectors, speech.lengths, clip_rows)


def splice(
    ids: Tensor, embedded: Tensor, vectors: Tensor, lengths: Tensor, clip_rows: Tensor
) -> Prompted:
    """Replace each AUDIO id by its clip's vectors, without a loop over rows or tokens.

    Rows never influence each other.

    Args:
        ids: [B, N] with AUDIO placeholders, PAD-padded.
        embedded: embeddings [B, N, H] of the ids.
        vectors: clips [A, L, H], right-padded.
        lengths: [A] vectors of each clip.
        clip_rows: [A] the row of each clip, ascending.
    """
    B, N, H = embedded.shape
    is_audio = ids == AUDIO
    widths = (ids != PAD).long()  # [B, N] positions that each id takes
    widths[is_audio] = lengths  # row-major order of placeholders is the order of the clips
    ends = widths.cumsum(1)
    starts = ends - widths
    totals = ends[:, -1]  # [B]
    P = int(totals.max())
    spliced = embedded.new_zeros(B, P + 1, H)  # the last column takes what is not placed
    target = torch.where((ids != PAD) & ~is_audio, starts, P)
    spliced = spliced.scatter(1, target[..., None].expand(-1, -1, H), embedded)
    if len(vectors):
        spliced = _place_clips(spliced, vectors, lengths, clip_rows, starts[is_audio])
    else:
        # Adds nothing, but gives the adapter a gradient of zeros: data-parallel ranks wait for it.
        spliced = spliced + vectors.sum().to(spliced.dtype)
    mask = valid_mask(totals, P)
    return Prompted(spliced[:, :P] * mask[..., None], mask, starts)


def _place_clips(
    spliced: Tensor, vectors: Tensor, lengths: Tensor, clip_rows: Tensor, clip_starts: Tensor
) -> Tensor:
    """Write clips [A, L, H] into rows [B, P + 1, H] from their starts [A] on."""
    B, columns, H = spliced.shape
    A, L, _ = vectors.shape
    within = torch.arange(L, device=spliced.device)
    # A clip's padding goes to the last column, which is cut off.
    positions = torch.where(
        within[None] < lengths[:, None], clip_starts[:, None] + within, columns - 1
    )
    flat = spliced.reshape(B * columns, H)
    index = (clip_rows[:, None] * columns + positions).reshape(-1)
    flat = flat.index_copy(0, index, vectors.reshape(A * L, H).to(spliced.dtype))
    return flat.reshape(B, columns, H)
