"""The speech adapter of the released Soundwave and EchoX checkpoints.

Encoder frames are stacked, aligned to the language model's tokens by CTC, and shortened to one
vector for each run of equal CTC tokens. `Compatibility` lists where the release differs from
its papers.

Source: Soundwave (arXiv:2502.12900), EchoX (arXiv:2509.09174).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.core.signals import Features, valid_mask
from echox.models.compatibility import PAPER, Compatibility
from echox.models.look_back import look_back
from echox.models.speech_adapter import alignment_layers, runs, stacked, tokens_by_window

# Frames scored against the vocabulary at a time: 130 MB of float32 at 128,257 tokens.
CTC_SLICE_FRAMES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterShape:
    """Sizes of a released speech adapter."""

    feature_dim: int  # channels of an encoder frame
    width: int  # hidden channels of the language model
    vocab_size: int  # tokens of the language model
    heads: int  # attention heads, as many as the language model has
    blank_id: int  # the CTC blank, id of the audio placeholder
    feed_forward: int  # channels inside the alignment layers; twice the width in the release
    layers: int = 1  # alignment layers
    stack: int = 2  # encoder frames joined into one
    dropout: float = 0.1

    @classmethod
    def of(cls, config: Mapping[str, Any], blank_id: int, **changed: int) -> AdapterShape:
        """Sizes by a config.json, with other values for the fields in `changed`."""
        H = config["hidden_size"]
        sizes = {
            "feature_dim": config["adapter_size"],
            "width": H,
            "vocab_size": config["vocab_size"],
            "heads": config["num_attention_heads"],
            "blank_id": blank_id,
            "feed_forward": 2 * H,
        }
        return cls(**sizes | changed)


@dataclass(frozen=True, slots=True)
class ShrunkSpeech:
    """The adapter's output for A clips, before and after shrinking."""

    frames: Tensor  # [A, F, H] aligned frames, before shrinking
    frame_lengths: Tensor  # [A] frames of each clip
    tokens: Tensor  # [A, F] best CTC token of each frame
    kept: Tensor  # bool [A, F] the first frame of each run of equal tokens
    vectors: Tensor  # [A, L, H] for the language model, right-padded
    lengths: Tensor  # [A] vectors of each clip


class ShrinkingAdapter(nn.Module):
    """Speech adapter: stack frames, align them by CTC, shrink runs of equal tokens, look back.

    The first frame of every run is kept, of runs of blanks too. Each kept frame then attends to
    the frames of its clip.

    Args:
        shape: sizes of the modules.
        compatibility: which of the release's deviations from the paper are computed.

    Raises:
        ConfigError: the heads do not divide the width.

    Source: Soundwave (arXiv:2502.12900), EchoX (arXiv:2509.09174).
    """

    def __init__(self, shape: AdapterShape, compatibility: Compatibility = PAPER) -> None:
        super().__init__()
        H = shape.width
        if H % shape.heads:
            raise ConfigError(
                f"{shape.heads} attention heads do not divide the width {H}; choose a divisor"
            )
        self.shape = shape
        self.compatibility = compatibility
        self.projector = nn.Linear(shape.stack * shape.feature_dim, H)
        # `mix` decides which axis is attended over, time or clips.
        self.layers = alignment_layers(
            H, shape.heads, shape.feed_forward, shape.dropout, shape.layers
        )
        self.out_norm = nn.LayerNorm(H)
        # CTC's vocabulary is the language model's, with the audio placeholder as blank.
        self.ctc_head = nn.Linear(H, shape.vocab_size, bias=False)
        # Not `batch_first` either: see `echox.models.look_back`.
        self.look_back = nn.MultiheadAttention(H, shape.heads, shape.dropout)
        self.look_back_norm = nn.LayerNorm(H)

    def forward(self, features: Features, clip_rows: Tensor | None = None) -> ShrunkSpeech:
        """Adapt encoder features to vectors of the language model.

        Args:
            features: [A, F, D] encoder frames of A clips.
            clip_rows: [A] the conversation of each clip. Clips of one conversation are mixed
                where the release attends over turns, as in its training; None keeps every clip
                by itself, as in its inference.

        Returns:
            vectors [A, L, H] and what they were made from.
        """
        frames, lengths = self.align(features, clip_rows)  # [A, F, H], [A]
        tokens = self.best_tokens(frames)
        kept, _ = runs(tokens, valid_mask(lengths, frames.shape[1]), dropped=None)
        vectors = self.shrink(frames, lengths, kept)
        return ShrunkSpeech(frames, lengths, tokens, kept, vectors, kept.sum(1))

    def transcripts(
        self, speech: ShrunkSpeech, window: float | None = None
    ) -> list[list[tuple[int, ...]]]:
        """The words that CTC recognised in each clip; see `SpeechAdapter.transcripts`."""
        is_text = speech.kept & (speech.tokens != self.shape.blank_id)
        return tokens_by_window(speech.tokens, is_text, window and window / self.shape.stack)

    def project(self, features: Features) -> tuple[Tensor, Tensor]:
        """Stack and project encoder frames.

        Args:
            features: [A, F, D] encoder frames.

        Returns:
            frames [A, ceil(F / stack), H] and their lengths [A].
        """
        values, lengths = stacked(features, self.shape.stack)
        return self.projector(values), lengths

    def mix(self, frames: Tensor, lengths: Tensor, clip_rows: Tensor | None = None) -> Tensor:
        """Run the alignment layers over time, or over the clips of a conversation.

        Args:
            frames: [A, F, H] projected frames; lengths: [A].
            clip_rows: [A] the conversation of each clip; None keeps clips apart.

        Returns:
            frames [A, F, H].
        """
        if self.compatibility.attend_over_turns:
            return self._mix_over_turns(frames, lengths, clip_rows)
        padding = ~valid_mask(lengths, frames.shape[1])
        states = frames.transpose(0, 1)  # [F, A, H]
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return states.transpose(0, 1)

    def _mix_over_turns(self, frames: Tensor, lengths: Tensor, clip_rows: Tensor | None) -> Tensor:
        """Attend at each frame index to the same index of the conversation's other clips."""
        if clip_rows is None:
            clip_rows = torch.arange(len(frames), device=frames.device)
        apart = clip_rows[:, None] != clip_rows[None, :]  # [A, A], True for other conversations
        valid = valid_mask(lengths, frames.shape[1])
        # A clip that ends before a frame is no key there. Where all clips of a conversation have
        # ended none is hidden: softmax over no key at all is NaN.
        reached = (~apart).float() @ valid.float() > 0  # [A, F]
        ended = (~valid & reached).T  # [F, A]: the frame axis is the layer's batch axis
        for layer in self.layers:
            frames = layer(frames, src_mask=apart, src_key_padding_mask=ended)
        return frames

    def align(self, features: Features, clip_rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Project, mix and normalise encoder frames.

        Args:
            features: [A, F, D] encoder frames.
            clip_rows: [A] the conversation of each clip; None keeps clips apart.

        Returns:
            frames [A, ceil(F / stack), H], which the CTC head scores, and their lengths [A].
        """
        frames, lengths = self.project(features)
        return self.out_norm(self.mix(frames, lengths, clip_rows)), lengths

    @torch.no_grad()
    def best_tokens(self, frames: Tensor) -> Tensor:
        """Best CTC token of each aligned frame: [A, F, H] -> [A, F]."""
        flat = frames.reshape(-1, frames.shape[-1])
        # In slices, because the scores of all frames at once would be the largest tensor here.
        best = [self.ctc_head(part).argmax(-1) for part in flat.split(CTC_SLICE_FRAMES)]
        return torch.cat(best).reshape(frames.shape[:-1])

    def shrink(self, frames: Tensor, lengths: Tensor, kept: Tensor) -> Tensor:
        """Keep some frames, each after attention to the frames of its clip.

        Args:
            frames: [A, F, H] aligned frames; lengths: [A]; kept: bool [A, F].

        Returns:
            vectors [A, L, H], right-padded.
        """
        queries = gather_kept(frames, kept)  # [A, L, H]
        if self.compatibility.look_back_at_kept_frames:
            # As in the release, which hides the dropped frames; the paper recovers what they held.
            visible = kept
        else:
            visible = valid_mask(lengths, frames.shape[1])
        return self.look_back_norm(look_back(self.look_back, queries, frames, visible) + queries)


def gather_kept(frames: Tensor, kept: Tensor) -> Tensor:
    """Move kept frames together: frames [A, F, H], kept bool [A, F] -> [A, L, H], zero-padded."""
    A, _, H = frames.shape
    L = int(kept.sum(1).max())
    # Each kept frame goes to its number among the kept ones of its clip, dropped ones to a spare
    # column L that is cut off.
    place = torch.where(kept, kept.long().cumsum(1) - 1, L)
    out = frames.new_zeros(A, L + 1, H)
    return out.scatter(1, place[..., None].expand(-1, -1, H), frames)[:, :L]
