"""The speech adapter of Soundwave and EchoX, by the names and shapes of their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.models.look_back import look_back
from echox.models.published.compatibility import PAPER, Compatibility
from echox.signals import Features, valid_mask

FRAMES_AT_ONCE = 256  # scored against the vocabulary together: 130 MB at 128,257 tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterShape:
    """Sizes of a published speech adapter."""

    feature_dim: int  # channels of an encoder frame
    width: int  # the language model's
    vocab_size: int
    heads: int  # the language model's
    blank_id: int  # the CTC blank, id of the audio placeholder
    feed_forward: int  # channels inside the alignment layers; twice the width in the release
    layers: int = 1
    stack: int = 2  # encoder frames joined into one
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class ShrunkSpeech:
    """What the adapter makes of a batch of clips."""

    frames: Tensor  # [A, F, H] before shrinking
    frame_lengths: Tensor  # [A]
    tokens: Tensor  # [A, F] best CTC token of each frame
    kept: Tensor  # bool [A, F] the first frame of each run of equal tokens
    vectors: Tensor  # [A, L, H] for the language model, right-padded
    lengths: Tensor  # [A] vectors


class ShrinkingAdapter(nn.Module):
    """Stack frames, align them, keep the first frame of each run of equal CTC tokens (runs of blanks too), let those look back.

    Source: Soundwave (arXiv:2502.12900), EchoX (arXiv:2509.09174); `Compatibility` says where the release differs from the paper.
    """

    def __init__(self, shape: AdapterShape, compatibility: Compatibility = PAPER) -> None:
        super().__init__()
        H = shape.width
        if H % shape.heads:
            raise ConfigError(f"{shape.heads} attention heads do not divide the width {H}; choose a divisor")
        self.shape = shape
        self.compatibility = compatibility
        self.projector = nn.Linear(shape.stack * shape.feature_dim, H)
        # Time or turns come first: which of the two is decided where the layers are called.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(H, shape.heads, shape.feed_forward, shape.dropout, norm_first=True) for _ in range(shape.layers)
        )
        self.out_norm = nn.LayerNorm(H)
        self.ctc_head = nn.Linear(H, shape.vocab_size, bias=False)
        self.look_back = nn.MultiheadAttention(H, shape.heads, shape.dropout)
        self.look_back_norm = nn.LayerNorm(H)

    def forward(self, features: Features, samples: Tensor | None = None) -> ShrunkSpeech:
        """Adapt clips [A, F, D].

        Args:
            samples: [A] the sample each clip belongs to, whose clips are mixed where turns are attended to (the release's training);
                None keeps every clip to itself (the release's inference).
        """
        frames, lengths = self.align(features, samples)
        tokens = self.best_tokens(frames)
        kept = run_starts(tokens) & valid_mask(lengths, frames.shape[1])
        vectors = self.shrink(frames, lengths, kept)
        return ShrunkSpeech(frames, lengths, tokens, kept, vectors, kept.sum(1))

    def project(self, features: Features) -> tuple[Tensor, Tensor]:
        """Features [A, F, D] -> stacked and projected frames [A, F / stack, H] and their lengths [A]."""
        k = self.shape.stack
        real = valid_mask(features.lengths, features.values.shape[1])[..., None]
        values = F.pad(features.values * real, (0, 0, 0, -features.values.shape[1] % k))
        A, N, D = values.shape
        return self.projector(values.reshape(A, N // k, k * D)), torch.div(features.lengths + k - 1, k, rounding_mode="floor")

    def mix(self, frames: Tensor, lengths: Tensor, samples: Tensor | None = None) -> Tensor:
        """The alignment layers: frames [A, F, H] -> [A, F, H]."""
        if self.compatibility.attend_over_turns:
            owners = torch.arange(len(frames), device=frames.device) if samples is None else samples
            apart = owners[:, None] != owners[None, :]
            real = valid_mask(lengths, frames.shape[1])
            # Of a sample's clips only those that reach a frame are seen there; where none does, nothing is hidden, for a softmax needs a key.
            reached = (~apart).float() @ real.float() > 0
            ended = (~real & reached).T
            for layer in self.layers:
                frames = layer(frames, src_mask=apart, src_key_padding_mask=ended)
            return frames
        padding = ~valid_mask(lengths, frames.shape[1])
        states = frames.transpose(0, 1)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return states.transpose(0, 1)

    def align(self, features: Features, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [A, F, D] -> aligned frames [A, F / stack, H] and their lengths [A]."""
        frames, lengths = self.project(features)
        return self.out_norm(self.mix(frames, lengths, samples)), lengths

    @torch.no_grad()
    def best_tokens(self, frames: Tensor) -> Tensor:
        """Best CTC token of each frame: [A, F, H] -> [A, F]; scored in slices, for the vocabulary is large."""
        flat = frames.reshape(-1, frames.shape[-1])
        best = [self.ctc_head(part).argmax(-1) for part in flat.split(FRAMES_AT_ONCE)]
        return torch.cat(best).reshape(frames.shape[:-1])

    def shrink(self, frames: Tensor, lengths: Tensor, kept: Tensor) -> Tensor:
        """Kept frames, each after its look-back: frames [A, F, H], kept bool [A, F] -> [A, L, H]."""
        queries = gather_kept(frames, kept)
        seen = kept if self.compatibility.look_back_at_kept_frames else valid_mask(lengths, frames.shape[1])
        return self.look_back_norm(look_back(self.look_back, queries, frames, seen) + queries)


def run_starts(tokens: Tensor) -> Tensor:
    """True where a token differs from the one before it: [A, F] -> bool [A, F]."""
    starts = torch.ones_like(tokens, dtype=torch.bool)
    starts[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
    return starts


def gather_kept(frames: Tensor, kept: Tensor) -> Tensor:
    """Kept frames moved together: frames [A, F, H], kept bool [A, F] -> [A, L, H], zeros at padding."""
    A, _, H = frames.shape
    L = int(kept.sum(1).max())
    place = torch.where(kept, kept.long().cumsum(1) - 1, L)
    return frames.new_zeros(A, L + 1, H).scatter(1, place[..., None].expand(-1, -1, H), frames)[:, :L]
