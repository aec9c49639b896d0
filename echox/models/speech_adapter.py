"""The speech adapter: encoder frames -> a few vectors that the language model reads like words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.models.look_back import look_back
from echox.models.spelling import NgramRows
from echox.signals import Features, valid_mask

IMPOSSIBLE = -1e4  # a score that leaves nothing of its class in any format


@dataclass(kw_only=True, slots=True)
class SpeechAdapterConfig:
    """Shape of the adapter between the encoder and the language model."""

    stack: int = 2
    """Encoder frames joined into one adapter frame; 2 makes 25 frames/s of Whisper's 50."""
    layers: int = 1
    """Transformer layers of the alignment encoder."""
    heads: int = 8
    """Attention heads of the alignment encoder and of the look-back."""
    feed_forward: int = 2
    """Channels of the feed-forward blocks as a multiple of the width."""
    dropout: float = 0.1
    """Probability of dropping a channel in training."""
    expected_text: bool = True
    """Begin each kept vector at the text embedding expected under its CTC posterior; off, at its frames' mean, as the papers do."""
    time_masks: int = 0
    """Spans of encoder frames hidden from each clip in training (SpecAugment, arXiv:1904.08779)."""
    time_mask_frames: int = 8
    """Encoder frames in such a span at most."""
    channel_dropout: float = 0.0
    """Probability of dropping an encoder channel from a whole clip in training."""
    spelling_channels: int = 0
    """Channels of a network that reads how a token is spelt and adds to the token's row of the CTC head, so that words that training has
    seldom are told by their letters; 0 leaves each row to its own examples."""
    keep_blanks: bool = False
    """Keep one frame of every run of CTC blanks too, as the EchoX release does."""

    def __post_init__(self) -> None:
        if self.stack < 1 or self.time_mask_frames < 1:
            raise ConfigError(f"adapter.stack is {self.stack} and adapter.time_mask_frames {self.time_mask_frames}; use 1 or more")
        if self.time_masks < 0 or not 0 <= self.channel_dropout < 1:
            raise ConfigError(f"adapter.time_masks is {self.time_masks}, use 0 or more; channel_dropout {self.channel_dropout}, use 0 up to 1")


@dataclass(frozen=True, slots=True)
class AdaptedSpeech:
    """What the adapter makes of a batch of clips."""

    ctc_logits: Tensor  # [B, F, C]: C-1 spoken tokens, the blank last
    frame_lengths: Tensor  # [B] adapter frames
    vectors: Tensor  # [B, L, H] for the backbone, right-padded
    lengths: Tensor  # [B] vectors


class SpeechAdapter(nn.Module):
    """Stack frames, align them to the LLM's tokens by CTC, keep one vector per run, let each look back at all frames.

    A kept vector is the text embedding expected under the run's CTC posterior, plus what the look-back attention adds: the
    language model reads words it knows, and the residual carries what words do not say. With `expected_text` off it is the papers'
    frame plus look-back, and the language model has a new language to learn.
    Source: the shrinking adapter of Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174); posterior times embedding table is ours.
    """

    parts = {
        "projector": ("projector",),
        "positions": ("position",),
        "alignment encoder": ("layers", "out_norm"),
        "CTC head": ("ctc_head", "head_spelling"),
        "look-back": ("look_back", "look_back_norm"),
        "token rows": ("token_ids", "token_rows"),
    }  # what people call its parts -> the modules they are

    def __init__(
        self, config: SpeechAdapterConfig, feature_dim: int, token_ids: Tensor, token_rows: Tensor, token_texts: Sequence[str] = ()
    ) -> None:
        """
        Args:
            token_ids: [C-1], the LLM's tokens that CTC may emit.
            token_rows: [C-1, H], their embeddings, which start its head.
            token_texts: their surface strings, a leading space before what begins a word; only `spelling_channels` needs them.
        """
        super().__init__()
        self.config = config
        tokens, H = token_rows.shape
        self.register_buffer("token_ids", token_ids.clone())
        if H % config.heads:
            raise ConfigError(f"adapter.heads {config.heads} does not divide the language model's width {H}; choose a divisor")
        self.blank = tokens
        self.projector = nn.Linear(config.stack * feature_dim, H)
        self.position = nn.Conv1d(H, H, 9, padding=4, groups=config.heads)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(H, config.heads, config.feed_forward * H, config.dropout, norm_first=True) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(H)
        self.ctc_head = nn.Linear(H, tokens + 1)
        self.head_spelling: NgramRows | None = None
        self._kept_rows: tuple[object, Tensor] | None = None
        if config.spelling_channels:
            self.head_spelling = NgramRows([*token_texts, ""], config.spelling_channels, H)
        self.look_back = nn.MultiheadAttention(H, config.heads, config.dropout)
        self.look_back_norm = nn.LayerNorm(H)
        self.register_buffer("token_rows", token_rows.detach().float().clone(), persistent=False)
        self._initialise(token_rows)

    def _initialise(self, token_rows: Tensor) -> None:
        with torch.no_grad():
            scale = token_rows.float().square().mean().sqrt() * token_rows.shape[1] ** 0.5
            self.ctc_head.weight[:-1] = token_rows.float() / scale
            self.ctc_head.weight[-1].zero_()
            self.ctc_head.bias.zero_()
            # The look-back starts silent: at first the LLM sees text embeddings alone.
            self.look_back.out_proj.weight.zero_()
            self.look_back.out_proj.bias.zero_()

    def freeze(self, *, alignment: bool, look_back: bool) -> None:
        """Leave parts as they are: what tells the tokens, and what is added to a kept vector."""
        aligning = [self.projector, self.position, self.layers, self.out_norm, self.ctc_head]
        aligning += [] if self.head_spelling is None else [self.head_spelling]
        looking = (self.look_back, self.look_back_norm)
        for module in (*(aligning if alignment else ()), *(looking if look_back else ())):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SpeechAdapter:
        """Where nothing of it learns, it always hears as in use: without masks or dropout, so that a clip has one result."""
        if mode and self.learns_alignment:
            self._kept_rows = None  # fused optimisers do not count their changes as versions
        return super().train(mode and self.learns)

    @property
    def learns(self) -> bool:
        """Whether any of it is not frozen."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def learns_alignment(self) -> bool:
        """Whether what tells the tokens is not frozen."""
        return self.ctc_head.weight.requires_grad

    def forward(self, features: Features) -> AdaptedSpeech:
        """Adapt features [B, F, D]; a row's result depends on its own frames only. No clips, as in a batch of questions in writing, give none."""
        B = len(features.values)
        frames, lengths = self.align(features if B else one_silent_clip(features))
        logits = self.scores(frames)
        vectors, kept = self.shrink(frames, logits, lengths)
        return AdaptedSpeech(logits[:B], lengths[:B], vectors[:B], kept[:B])

    def align(self, features: Features) -> tuple[Tensor, Tensor]:
        """Features [B, F, D] -> aligned frames [B, F / stack, H] and their lengths."""
        k = self.config.stack
        real = valid_mask(features.lengths, features.values.shape[1])[..., None]
        values = self.masked(features) if self.training else features.values
        values = F.pad(values * real, (0, 0, 0, -features.values.shape[1] % k))
        B, N, D = values.shape
        frames = self.projector(values.reshape(B, N // k, k * D))
        lengths = torch.div(features.lengths + k - 1, k, rounding_mode="floor")
        real = valid_mask(lengths, N // k)
        frames = frames * real[..., None]
        frames = frames + F.gelu(self.position(frames.transpose(1, 2)).transpose(1, 2))
        states = frames.transpose(0, 1)  # time first, for the reason that `look_back` gives
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~real)
        return self.out_norm(states.transpose(0, 1)) * real[..., None], lengths

    def scores(self, frames: Tensor) -> Tensor:
        """CTC scores [..., C] of aligned frames [..., H], the blank last."""
        return F.linear(frames, self.head_rows(), self.ctc_head.bias)

    def head_rows(self) -> Tensor:
        """The CTC head's weight [C, H]: each token's own row and what its spelling adds; the sum is kept where nothing of it can change."""
        if self.head_spelling is None:
            return self.ctc_head.weight
        if self.learns_alignment and (self.training or torch.is_grad_enabled()):
            return self._spelt_rows()
        sources = (self.ctc_head.weight, *self.head_spelling.parameters())
        key = [(source.data_ptr(), source._version, source.device, source.dtype) for source in sources]
        if self._kept_rows is None or self._kept_rows[0] != key:
            with torch.no_grad(), torch.autocast(self.ctc_head.weight.device.type, enabled=False):
                self._kept_rows = (key, self._spelt_rows())
        return self._kept_rows[1]

    def _spelt_rows(self, chosen: Tensor | None = None) -> Tensor:
        rows = self.ctc_head.weight if chosen is None else self.ctc_head.weight[chosen]
        if self.head_spelling is None:
            return rows
        return rows + self.head_spelling(chosen)

    def sampled_scores(self, frames: Tensor, spoken: Tensor, drawn: int) -> Tensor:
        """CTC scores over the tokens spoken in a batch and over a random draw of all, which stands for the others.

        The loss over them estimates the loss over the whole vocabulary: each drawn token counts as the C / drawn it stands for.

        Args:
            frames: [A, F, H] as `align` returns them; spoken: [N] distinct indices of tokens; drawn: tokens drawn, with repetition.
        Returns:
            [A, F, N + drawn + 1]: the spoken tokens in their order, the drawn ones, the blank.
        Source: importance sampling of the softmax, Bengio and Senecal 2008, IEEE Transactions on Neural Networks 19(4).
        """
        sample = torch.randint(self.blank, (drawn,), device=frames.device)
        is_spoken = torch.zeros(self.blank, dtype=torch.bool, device=frames.device).index_fill_(0, spoken, True)
        stands_for = torch.where(is_spoken[sample], IMPOSSIBLE, math.log(self.blank / drawn))
        chosen = torch.cat([spoken, sample, spoken.new_tensor([self.blank])])
        bias = self.ctc_head.bias[chosen] + F.pad(stands_for, (len(spoken), 1))
        return F.linear(frames, self._spelt_rows(chosen), bias)

    def masked(self, features: Features) -> Tensor:
        """Features [B, F, D] with spans of frames and some channels of each clip set to zero."""
        values, config = features.values, self.config
        B, N, D = values.shape
        if config.channel_dropout:
            values = values * F.dropout(values.new_ones(B, 1, D), config.channel_dropout)
        if config.time_masks:
            draw = torch.rand(2, B, config.time_masks, device=values.device)
            starts = draw[0] * features.lengths[:, None]
            ends = starts + 1 + draw[1] * (config.time_mask_frames - 1)
            frame = torch.arange(N, device=values.device)[None, :, None]
            values = values * ~((frame >= starts[:, None]) & (frame < ends[:, None])).any(-1, keepdim=True)
        return values

    def shrink(self, frames: Tensor, logits: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One vector per run of equal CTC tokens: frames [B, F, H], logits [B, F, C] -> vectors [B, L, H], lengths [B]."""
        B, N, H = frames.shape
        real = valid_mask(lengths, N)
        best = logits.argmax(-1)
        first, run = runs(best, real, None if self.config.keep_blanks else self.blank)
        kept = first.sum(1)
        L = max(1, int(kept.max()))
        seen = self.look_back_norm(frames).to(self.token_rows.dtype)
        queries = run_means(seen, run, L)
        looked = look_back(self.look_back, queries, seen, real)
        if not self.config.expected_text:
            return queries + looked, kept
        # Most frames are blanks, which expect nothing, and a vocabulary is wide.
        heard = run >= 0
        expected = logits[heard][:, : self.blank].float().softmax(-1).to(self.token_rows.dtype) @ self.token_rows
        spoken = expected.new_zeros(B, N, H)
        spoken[heard] = expected
        return run_means(spoken, run, L) + looked, kept


def one_silent_clip(features: Features) -> Features:
    """A clip of one frame, for layers that take no batch without rows."""
    values, lengths = features.values, features.lengths
    return Features(values.new_zeros(1, 1, values.shape[2]), lengths.new_ones(1), features.rate_hz)


def runs(best: Tensor, real: Tensor, dropped: int | None) -> tuple[Tensor, Tensor]:
    """Runs of equal tokens.

    Args:
        best: [B, F] token per frame; real: bool [B, F]; dropped: a token whose runs are left out, or None.
    Returns:
        first: bool [B, F], True where a kept run begins; run: [B, F] index of the kept run a frame belongs to, -1 for none.
    """
    kept = real if dropped is None else real & (best != dropped)
    changed = torch.ones_like(real)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    first = kept & changed
    return first, torch.where(kept, first.long().cumsum(1) - 1, -1)


def ctc_tokens(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Greedy CTC: logits [A, F, C], blank last -> indices per clip, repeats merged, blanks dropped."""
    best = logits.argmax(-1)
    first, _ = runs(best, valid_mask(lengths, best.shape[1]), logits.shape[2] - 1)
    return [row[keep].tolist() for row, keep in zip(best, first)]


def run_means(values: Tensor, run: Tensor, size: int) -> Tensor:
    """Mean of the frames of each run: values [B, F, H], run [B, F] (-1 for none) -> [B, size, H], zeros where no run is."""
    B, N, H = values.shape
    index = torch.where(run < 0, size, run)
    sums = values.new_zeros(B, size + 1, H).scatter_add(1, index[..., None].expand(-1, -1, H), values)
    counts = values.new_zeros(B, size + 1).scatter_add(1, index, torch.ones_like(index, dtype=values.dtype))
    return (sums / counts.clamp(min=1.0)[..., None])[:, :size]
