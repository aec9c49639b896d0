"""The speech adapter: encoder frames -> a few vectors in the space of the LLM's embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.core.config import refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.core.signals import Features, valid_mask
from echox.models.look_back import look_back
from echox.models.spelling import NgramRows

# Added to a score it leaves the class no probability, and it is finite in float16.
IMPOSSIBLE = -1e4


@dataclass(kw_only=True, slots=True)
class SpeechAdapterConfig:
    """Shape of the adapter between the encoder and the language model.

    Raises:
        ConfigError: a field is out of range.
    """

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
    """Begin each kept vector at the text embedding expected under its CTC posterior; off, at its
    frames' mean, as the papers do."""
    time_masks: int = 0
    """Spans of encoder frames hidden from each clip in training (SpecAugment, arXiv:1904.08779)."""
    time_mask_frames: int = 8
    """Encoder frames in such a span at most."""
    channel_dropout: float = 0.0
    """Probability of dropping an encoder channel from a whole clip in training."""
    spelling_channels: int = 0
    """Channels of a network that reads how a token is spelt and adds to the token's row of the CTC
    head, so that words that training has seldom are told by their letters; 0 leaves each row to its
    own examples."""
    keep_blanks: bool = False
    """Keep one frame of every run of CTC blanks too, as the EchoX release does."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "heads", "feed_forward")
        refuse_below(self, 0, "layers", "spelling_channels")
        refuse_no_share(self, "dropout")
        if self.stack < 1 or self.time_mask_frames < 1:
            raise ConfigError(
                f"adapter.stack is {self.stack} and adapter.time_mask_frames "
                f"{self.time_mask_frames}; use 1 or more"
            )
        if self.time_masks < 0 or not 0 <= self.channel_dropout < 1:
            raise ConfigError(
                f"adapter.time_masks is {self.time_masks}, use 0 or more; channel_dropout "
                f"{self.channel_dropout}, use 0 up to 1"
            )


@dataclass(frozen=True, slots=True)
class AdaptedSpeech:
    """The adapter's result for a batch of clips."""

    ctc_logits: Tensor  # [B, F, C]: C-1 tokens, the blank last
    frame_lengths: Tensor  # [B] adapter frames
    vectors: Tensor  # [B, L, H] for the backbone, right-padded
    lengths: Tensor  # [B] vectors


class SpeechAdapter(nn.Module):
    """Shrink encoder frames to one vector for each token that CTC recognises.

    Frames are stacked and aligned to the LLM's tokens by CTC; each run of frames of one token keeps
    one vector, which attends to all frames of the clip (look-back). A kept vector is the text
    embedding expected under the run's CTC posterior plus the attention's output: the language model
    reads embeddings of its own tokens, and the residual carries what words do not say. With
    `expected_text` off it is the papers' mean frame plus look-back, and the language model has to
    learn a new input space.

    Source: the shrinking adapter of Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174);
    posterior times embedding table is ours.
    """

    token_ids: Tensor
    token_rows: Tensor

    # Parts as reports name them -> the modules that they are.
    parts = {
        "projector": ("projector",),
        "positions": ("position",),
        "alignment encoder": ("layers", "out_norm"),
        "CTC head": ("ctc_head", "head_spelling"),
        "look-back": ("look_back", "look_back_norm"),
        "token rows": ("token_ids", "token_rows"),
    }

    def __init__(
        self,
        config: SpeechAdapterConfig,
        feature_dim: int,
        token_ids: Tensor,
        token_rows: Tensor,
        token_texts: Sequence[str] = (),
    ) -> None:
        """Build the layers; the CTC head starts from the LLM's embeddings, the look-back at zero.

        Args:
            config: shape of the adapter.
            feature_dim: D, channels of the encoder.
            token_ids: [C-1] the LLM's tokens that CTC may emit.
            token_rows: [C-1, H] their embeddings, from which the CTC head starts.
            token_texts: their surface strings, a leading space before what begins a word; only
                `spelling_channels` needs them.

        Raises:
            ConfigError: the number of heads does not divide H.
        """
        super().__init__()
        self.config = config
        tokens, H = token_rows.shape
        self.register_buffer("token_ids", token_ids.clone())
        if H % config.heads:
            raise ConfigError(
                f"adapter.heads {config.heads} does not divide the language model's width {H}; "
                "choose a divisor"
            )
        self.blank = tokens
        self.projector = nn.Linear(config.stack * feature_dim, H)
        # Positions by a convolution: they are relative, so a clip may have any length.
        self.position = nn.Conv1d(H, H, 9, padding=4, groups=config.heads)
        self.layers = alignment_layers(
            H, config.heads, config.feed_forward * H, config.dropout, config.layers
        )
        self.out_norm = nn.LayerNorm(H)
        self.ctc_head = nn.Linear(H, tokens + 1)
        self.head_spelling: NgramRows | None = None
        # Cache of `head_rows` with spelling: the weights it was computed from, and the result.
        self._cached_rows: tuple[object, Tensor] | None = None
        if config.spelling_channels:
            # The blank is the last class and has no letters.
            self.head_spelling = NgramRows([*token_texts, ""], config.spelling_channels, H)
        self.look_back = nn.MultiheadAttention(H, config.heads, config.dropout)
        self.look_back_norm = nn.LayerNorm(H)
        # Not in checkpoints: the embeddings come with the language model.
        self.register_buffer("token_rows", token_rows.detach().float().clone(), persistent=False)
        self._initialise(token_rows)

    def _initialise(self, token_rows: Tensor) -> None:
        with torch.no_grad():
            # Rows of length 1 on average, whatever the scale of the language model's embeddings.
            scale = token_rows.float().square().mean().sqrt() * token_rows.shape[1] ** 0.5
            self.ctc_head.weight[:-1] = token_rows.float() / scale
            self.ctc_head.weight[-1].zero_()  # the blank has no embedding
            self.ctc_head.bias.zero_()
            # The look-back starts at zero: at first the LLM reads text embeddings alone.
            self.look_back.out_proj.weight.zero_()
            self.look_back.out_proj.bias.zero_()

    def freeze(self, *, alignment: bool, look_back: bool) -> None:
        """Freeze parts of the adapter.

        Args:
            alignment: freeze what recognises tokens: projector, encoder layers and CTC head.
            look_back: freeze the attention that is added to a kept vector.
        """
        modules: list[nn.Module] = []
        if alignment:
            modules += [self.projector, self.position, self.layers, self.out_norm, self.ctc_head]
            modules += [] if self.head_spelling is None else [self.head_spelling]
        if look_back:
            modules += [self.look_back, self.look_back_norm]
        for module in modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SpeechAdapter:
        """Set the mode; an adapter that is frozen as a whole stays in eval mode.

        Without masks or dropout a clip then has a single result.
        """
        if mode and self.learns_alignment:
            # Fused optimisers do not raise a tensor's version, so the cache would look fresh.
            self._cached_rows = None
        return super().train(mode and self.learns)

    @property
    def learns(self) -> bool:
        """Whether any weight is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def learns_alignment(self) -> bool:
        """Whether the part that recognises tokens is trained."""
        return self.ctc_head.weight.requires_grad

    def forward(self, features: Features) -> AdaptedSpeech:
        """Shrink clips to vectors; the result of a row depends on its own frames only.

        Args:
            features: of B clips; none, as in a batch of typed questions, give empty results.
        """
        B = len(features.values)
        # Without clips a silent one runs through the layers and is cut off again, so that every
        # weight has a gradient, of zeros, and no layer sees an empty batch.
        frames, lengths = self.align(features if B else one_silent_clip(features))
        logits = self.scores(frames)
        vectors, vector_lengths = self.shrink(frames, logits, lengths)
        return AdaptedSpeech(logits[:B], lengths[:B], vectors[:B], vector_lengths[:B])

    def align(self, features: Features) -> tuple[Tensor, Tensor]:
        """Encode features to frames that CTC can score.

        Args:
            features: [B, F, D].

        Returns:
            frames [B, ceil(F / stack), H], and their lengths [B] in frames.
        """
        values, lengths = stacked(
            self.masked(features) if self.training else features, self.config.stack
        )
        frames = self.projector(values)  # [B, N, H]
        real = valid_mask(lengths, frames.shape[1])
        frames = frames * real[..., None]  # the projector's bias stands in the padding
        frames = frames + F.gelu(self.position(frames.transpose(1, 2)).transpose(1, 2))
        states = frames.transpose(0, 1)  # time first, for the reason in `look_back`
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~real)
        return self.out_norm(states.transpose(0, 1)) * real[..., None], lengths

    def transcripts(
        self, speech: AdaptedSpeech, window: float | None = None
    ) -> list[list[tuple[int, ...]]]:
        """The words that CTC recognised in each clip, as the language model's tokens.

        Args:
            speech: A clips.
            window: frames of the encoder's windows; None takes a clip as one.

        Returns:
            of each clip its windows, of each window the tokens that begin in it.
        """
        # CTC's classes are the adapter's own vocabulary, a part of the language model's.
        best = speech.ctc_logits.argmax(-1)
        first, _ = runs(best, valid_mask(speech.frame_lengths, best.shape[1]), self.blank)
        # The blank, which has no token, is never kept.
        tokens = self.token_ids[best.clamp(max=self.blank - 1)]
        return tokens_by_window(tokens, first, window and window / self.config.stack)

    def scores(self, frames: Tensor) -> Tensor:
        """CTC logits of frames [..., H]: [..., C], the blank last."""
        return F.linear(frames, self.head_rows(), self.ctc_head.bias)

    def head_rows(self) -> Tensor:
        """The CTC head's weight [C, H]: each token's own row plus the vector of its spelling.

        The sum is cached where no gradient is taken: to spell a whole vocabulary takes long.
        """
        if self.head_spelling is None:
            return self.ctc_head.weight
        if self.learns_alignment and (self.training or torch.is_grad_enabled()):
            return self._rows_with_spelling()
        sources = (self.ctc_head.weight, *self.head_spelling.parameters())
        # Loading weights, moving and converting them all change one of these.
        key = [
            (source.data_ptr(), source._version, source.device, source.dtype) for source in sources
        ]
        if self._cached_rows is None or self._cached_rows[0] != key:
            # Without autocast: the cache may be read later under another precision.
            with torch.no_grad(), torch.autocast(self.ctc_head.weight.device.type, enabled=False):
                self._cached_rows = (key, self._rows_with_spelling())
        return self._cached_rows[1]

    def _rows_with_spelling(self, tokens: Tensor | None = None) -> Tensor:
        """Rows [N, H] of the CTC head for tokens [N]; None is all."""
        rows = self.ctc_head.weight if tokens is None else self.ctc_head.weight[tokens]
        if self.head_spelling is None:
            return rows
        return rows + self.head_spelling(tokens)

    def sampled_scores(self, frames: Tensor, spoken: Tensor, drawn: int) -> Tensor:
        """CTC logits over a batch's own tokens and a random sample that stands for all others.

        The loss over them estimates the loss over the whole vocabulary: each sampled token counts
        as the (C - 1) / drawn tokens that it stands for.

        Args:
            frames: [A, F, H] as `align` returns them.
            spoken: [N] distinct indices of the tokens in the batch's transcripts.
            drawn: tokens that are sampled, with repetition.

        Returns:
            [A, F, N + drawn + 1]: the spoken tokens in their order, the sampled ones, the blank.

        Source: importance sampling of the softmax, Bengio and Senecal 2008, IEEE Transactions on
        Neural Networks 19(4).
        """
        sample = torch.randint(self.blank, (drawn,), device=frames.device)
        is_spoken = torch.zeros(self.blank, dtype=torch.bool, device=frames.device)
        is_spoken.index_fill_(0, spoken, True)
        # A sampled token that is spoken would be counted twice.
        log_weights = torch.where(is_spoken[sample], IMPOSSIBLE, math.log(self.blank / drawn))
        tokens = torch.cat([spoken, sample, spoken.new_tensor([self.blank])])
        bias = self.ctc_head.bias[tokens] + F.pad(log_weights, (len(spoken), 1))
        return F.linear(frames, self._rows_with_spelling(tokens), bias)

    def masked(self, features: Features) -> Features:
        """Features with spans of frames and some channels of each clip set to zero.

        Source: SpecAugment, Park et al. 2019, arXiv:1904.08779, on features instead of mels.
        """
        values, config = features.values, self.config
        B, N, D = values.shape
        if config.channel_dropout:
            values = values * F.dropout(values.new_ones(B, 1, D), config.channel_dropout)
        if config.time_masks:
            uniform = torch.rand(2, B, config.time_masks, device=values.device)
            # Spans begin inside a clip: one in its padding would hide nothing.
            starts = uniform[0] * features.lengths[:, None]
            ends = starts + 1 + uniform[1] * (config.time_mask_frames - 1)
            frame = torch.arange(N, device=values.device)[None, :, None]
            inside = (frame >= starts[:, None]) & (frame < ends[:, None])  # [B, F, masks]
            values = values * ~inside.any(-1, keepdim=True)
        return dataclasses.replace(features, values=values)

    def shrink(self, frames: Tensor, logits: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One vector for each run of frames with the same likeliest token.

        Args:
            frames: [B, F, H] as `align` returns them.
            logits: CTC logits [B, F, C].
            lengths: [B] frames.

        Returns:
            vectors [B, L, H], right-padded, and their lengths [B].
        """
        B, N, H = frames.shape
        real = valid_mask(lengths, N)
        best = logits.argmax(-1)
        # A blank between two runs of one token keeps them apart, as CTC does for repeated tokens.
        first, run = runs(best, real, None if self.config.keep_blanks else self.blank)
        counts = first.sum(1)  # [B] runs
        L = max(1, int(counts.max()))
        seen = self.look_back_norm(frames).to(self.token_rows.dtype)
        queries = run_means(seen, run, L)  # [B, L, H]
        attended = look_back(self.look_back, queries, seen, real)
        if not self.config.expected_text:
            return queries + attended, counts
        # Only over frames in a run: most frames are blanks, and a vocabulary is wide.
        in_run = run >= 0
        posterior = logits[in_run][:, : self.blank].float().softmax(-1)  # [frames in runs, C-1]
        expected = posterior.to(self.token_rows.dtype) @ self.token_rows
        text = expected.new_zeros(B, N, H)
        text[in_run] = expected
        return run_means(text, run, L) + attended, counts


def stacked(features: Features, size: int) -> tuple[Tensor, Tensor]:
    """Join frames, `size` into one.

    Args:
        features: [B, F, D]; zeros take the place of what lies behind each clip.
        size: frames that are joined.

    Returns:
        values [B, N, size * D] with N = ceil(F / size), and lengths [B] of such frames, of which
        the last may be partly padding.
    """
    real = valid_mask(features.lengths, features.values.shape[1])[..., None]
    values = F.pad(features.values * real, (0, 0, 0, -features.values.shape[1] % size))
    B, N, D = values.shape  # N is a multiple of the size
    lengths = torch.div(features.lengths + size - 1, size, rounding_mode="floor")
    return values.reshape(B, N // size, size * D), lengths


def alignment_layers(
    width: int, heads: int, feed_forward: int, dropout: float, count: int
) -> nn.ModuleList:
    """Transformer layers over frames [F, B, H], time first for the reason in `look_back`."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, norm_first=True)
        for _ in range(count)
    )


def one_silent_clip(features: Features) -> Features:
    """A clip of one frame [1, 1, D] of zeros, for layers that take no batch without rows."""
    values, lengths = features.values, features.lengths
    return Features(values.new_zeros(1, 1, values.shape[2]), lengths.new_ones(1), features.rate_hz)


def runs(best: Tensor, real: Tensor, dropped: int | None) -> tuple[Tensor, Tensor]:
    """Find runs of equal tokens.

    Args:
        best: [B, F] token per frame.
        real: bool [B, F], False at padding.
        dropped: a token whose runs are left out, or None.

    Returns:
        first: bool [B, F], True where a kept run begins.
        run: [B, F] index of the kept run that a frame belongs to, -1 for none.
    """
    is_kept = real if dropped is None else real & (best != dropped)
    changed = torch.ones_like(real)  # the first frame always begins a run
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    first = is_kept & changed
    return first, torch.where(is_kept, first.long().cumsum(1) - 1, -1)


def ctc_tokens(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Decode CTC greedily: repeats are merged, blanks dropped.

    Args:
        logits: [A, F, C], the blank last.
        lengths: [A] frames.

    Returns:
        indices of the tokens per clip.
    """
    best = logits.argmax(-1)
    first, _ = runs(best, valid_mask(lengths, best.shape[1]), logits.shape[2] - 1)
    return [row[keep].tolist() for row, keep in zip(best, first)]


def tokens_by_window(
    tokens: Tensor, kept: Tensor, window: float | None
) -> list[list[tuple[int, ...]]]:
    """Group the tokens of clips by the windows that they begin in.

    Args:
        tokens: [A, F] of each frame.
        kept: bool [A, F], True where a token begins that is taken.
        window: frames of a window; None takes a clip as one.

    Returns:
        of each clip its windows that hold a token, in order; one empty window where none does.
    """
    clips = []
    for own, keep in zip(tokens.cpu(), kept.cpu()):
        windows: dict[int, list[int]] = {}
        for frame, token in zip(keep.nonzero()[:, 0].tolist(), own[keep].tolist()):
            windows.setdefault(int(frame / window) if window else 0, []).append(token)
        clips.append([tuple(row) for row in windows.values()] or [()])
    return clips


def run_means(values: Tensor, run: Tensor, size: int) -> Tensor:
    """The mean over the frames of each run.

    Args:
        values: [B, F, H].
        run: [B, F] index of each frame's run, -1 for none.
        size: runs in the result.

    Returns:
        [B, size, H], zeros where a row has no such run.
    """
    B, N, H = values.shape
    # Frames of no run go to a last row, which is cut off.
    index = torch.where(run < 0, size, run)
    expanded = index[..., None].expand(-1, -1, H)
    sums = values.new_zeros(B, size + 1, H).scatter_add(1, expanded, values)
    ones = torch.ones_like(index, dtype=values.dtype)
    counts = values.new_zeros(B, size + 1).scatter_add(1, index, ones)
    return (sums / counts.clamp(min=1.0)[..., None])[:, :size]
