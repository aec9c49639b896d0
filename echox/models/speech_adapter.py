"""The speech adapter: encoder frames -> a few vectors in the space of the LLM's embeddings.

One class for what is trained here and for the EchoX and Soundwave releases, by named settings:
those of `SpeechAdapterConfig` and of `Compatibility`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.core.config import left_out, refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.core.signals import Features, valid_mask
from echox.models.compatibility import PAPER, Compatibility
from echox.models.frame_runs import gather_kept, run_means, runs, tokens_by_window
from echox.models.look_back import look_back
from echox.models.spelling import NgramRows

# Added to a score it leaves the class no probability, and it is finite in float16.
IMPOSSIBLE = -1e4
# Frames scored against a language model's vocabulary at a time: 130 MB of float32 at 128,257
# tokens.
CTC_SLICE_FRAMES = 256


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
    positions: bool = left_out(True)
    """Tell frames their place in the clip by a convolution; the EchoX release does not."""
    first_frames: bool = left_out(False)
    """Begin each kept vector at its run's first frame, and normalise it after the look-back, as the
    EchoX release does; `expected_text` has no effect then."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSizes:
    """Sizes of an adapter that follow from the parts that it joins."""

    feature_dim: int  # channels D of an encoder frame
    width: int  # channels H of the language model
    classes: int  # C that CTC tells apart, the blank among them
    blank: int  # the blank's class
    feed_forward: int  # channels inside the alignment layers


class SpeechVectors(Protocol):
    """What a language model's prompt takes of A clips."""

    @property
    def vectors(self) -> Tensor:
        """Vectors of the language model [A, L, H], right-padded."""

    @property
    def lengths(self) -> Tensor:
        """Vectors [A] of each clip."""


@dataclass(frozen=True, slots=True)
class AdaptedSpeech:
    """The adapter's result for a batch of clips."""

    frames: Tensor  # [B, F, H] aligned frames, before shrinking
    frame_lengths: Tensor  # [B] adapter frames
    ctc_logits: Tensor  # [B, F, C]; without classes (C is 0) over a language model's vocabulary
    tokens: Tensor  # [B, F] the likeliest class of each frame
    kept: Tensor  # bool [B, F] the first frame of each run that has a vector
    vectors: Tensor  # [B, L, H] for the backbone, right-padded
    lengths: Tensor  # [B] vectors


class SpeechAdapter(nn.Module):
    """Shrink encoder frames to one vector for each token that CTC recognises.

    Frames are stacked and aligned to the LLM's tokens by CTC; each run of frames of one token keeps
    one vector, which attends to all frames of the clip (look-back). A kept vector is the text
    embedding expected under the run's CTC posterior plus the attention's output: the language model
    reads embeddings of its own tokens, and the residual carries what words do not say. With
    `expected_text` off it is the papers' mean frame plus look-back, and the language model has to
    learn a new input space. With `first_frames` it is the release's first frame, so too.

    Source: the shrinking adapter of Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174);
    posterior times embedding table is ours.
    """

    token_ids: Tensor  # these two are there where CTC has classes of its own alone
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
        sizes: AdapterSizes,
        token_ids: Tensor | None = None,
        token_rows: Tensor | None = None,
        token_texts: Sequence[str] = (),
        compatibility: Compatibility = PAPER,
    ) -> None:
        """Build the layers.

        Args:
            config: shape of the adapter.
            sizes: those that follow from encoder and language model.
            token_ids: [C-1] the LLM's tokens that CTC may emit, the blank last; None is the LLM's
                whole vocabulary, with the blank among it.
            token_rows: [C-1, H] their embeddings, from which the CTC head then starts, and the
                look-back at zero.
            token_texts: their surface strings, a leading space before what begins a word; only
                `spelling_channels` needs them.
            compatibility: which of the release's deviations from the paper are computed.

        Raises:
            ConfigError: the number of heads does not divide H.
        """
        super().__init__()
        self.config, self.sizes, self.compatibility = config, sizes, compatibility
        H, self.blank = sizes.width, sizes.blank
        if H % config.heads:
            raise ConfigError(
                f"adapter.heads {config.heads} does not divide the language model's width {H}; "
                "choose a divisor"
            )
        self.whole_vocabulary = token_ids is None
        if token_ids is not None:
            self.register_buffer("token_ids", token_ids.clone())
        self.projector = nn.Linear(config.stack * sizes.feature_dim, H)
        self.position: nn.Conv1d | None = None
        if config.positions:
            # By a convolution: positions are relative, so a clip may have any length.
            self.position = nn.Conv1d(H, H, 9, padding=4, groups=config.heads)
        # Time first, for the reason in `look_back`.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                H, config.heads, sizes.feed_forward, config.dropout, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(H)
        self.ctc_head = nn.Linear(H, sizes.classes, bias=not self.whole_vocabulary)
        self.head_spelling: NgramRows | None = None
        # Cache of `head_rows` with spelling: the weights it was computed from, and the result.
        self._cached_rows: tuple[object, Tensor] | None = None
        if config.spelling_channels:
            # The blank is the last class and has no letters.
            self.head_spelling = NgramRows([*token_texts, ""], config.spelling_channels, H)
        self.look_back = nn.MultiheadAttention(H, config.heads, config.dropout)
        self.look_back_norm = nn.LayerNorm(H)
        if token_rows is not None:
            self._initialise(token_rows)

    def _initialise(self, token_rows: Tensor) -> None:
        """Keep the tokens' embeddings [C-1, H], and start the CTC head from them."""
        # Not in checkpoints: the embeddings come with the language model.
        rows = token_rows.detach().float().clone()
        self.register_buffer("token_rows", rows, persistent=False)
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
            modules += [self.projector, self.layers, self.out_norm, self.ctc_head]
            optional = (self.position, self.head_spelling)
            modules += [module for module in optional if module is not None]
        if look_back:
            modules += [self.look_back, self.look_back_norm]
        for module in modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SpeechAdapter:
        """Set the mode; an adapter that is frozen as a whole stays in eval mode.

        Without masks or dropout a clip then has a single result. The release's keeps its dropout.
        """
        if mode and self.learns_alignment:
            # Fused optimisers do not raise a tensor's version, so the cache would look fresh.
            self._cached_rows = None
        return super().train(mode and (self.learns or self.whole_vocabulary))

    @property
    def learns(self) -> bool:
        """Whether any weight is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def learns_alignment(self) -> bool:
        """Whether the part that recognises tokens is trained."""
        return self.ctc_head.weight.requires_grad

    def forward(self, features: Features, clip_rows: Tensor | None = None) -> AdaptedSpeech:
        """Shrink clips to vectors; the result of a row depends on its own frames only.

        Args:
            features: of B clips; none, as in a batch of typed questions, give empty results.
            clip_rows: [B] the conversation of each clip. Clips of one conversation are mixed
                where the release attends over turns, as in its training; None keeps every clip
                by itself, as in its inference.
        """
        B = len(features.values)
        # Without clips a silent one runs through the layers and is cut off again, so that every
        # weight has a gradient, of zeros, and no layer sees an empty batch.
        clips, clip_rows = (features, clip_rows) if B else (one_silent_clip(features), None)
        frames, lengths = self.align(clips, clip_rows)
        if self.whole_vocabulary:
            # Not kept: scores of all frames would be the largest tensor here.
            logits, tokens = frames[..., :0], self.best_tokens(frames)
        else:
            logits = self.scores(frames)
            tokens = logits.argmax(-1)
        kept, vectors = self.shrink(frames, lengths, tokens, logits)
        speech = (frames, lengths, logits, tokens, kept, vectors, kept.sum(1))
        return AdaptedSpeech(*(values[:B] for values in speech))

    def align(self, features: Features, clip_rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode features to frames that CTC can score.

        Args:
            features: [B, F, D].
            clip_rows: [B] as in `forward`.

        Returns:
            frames [B, ceil(F / stack), H], and their lengths [B] in frames.
        """
        frames, lengths = self.project(features)
        real = valid_mask(lengths, frames.shape[1])
        return self.out_norm(self.mix(frames, lengths, clip_rows)) * real[..., None], lengths

    def project(self, features: Features) -> tuple[Tensor, Tensor]:
        """Stack and project features, and add their positions.

        Args:
            features: [B, F, D].

        Returns:
            frames [B, ceil(F / stack), H], and their lengths [B] in frames.
        """
        values, lengths = stacked(
            self.masked(features) if self.training else features, self.config.stack
        )
        frames = self.projector(values)  # [B, N, H]
        # The projector's bias stands in the padding.
        frames = frames * valid_mask(lengths, frames.shape[1])[..., None]
        if self.position is not None:
            frames = frames + F.gelu(self.position(frames.transpose(1, 2)).transpose(1, 2))
        return frames, lengths

    def mix(self, frames: Tensor, lengths: Tensor, clip_rows: Tensor | None = None) -> Tensor:
        """Run the alignment layers over time, or over the clips of a conversation.

        Args:
            frames: [B, F, H] projected frames.
            lengths: [B] frames.
            clip_rows: [B] as in `forward`.

        Returns:
            frames [B, F, H].
        """
        if self.compatibility.attend_over_turns:
            return self._mix_over_turns(frames, lengths, clip_rows)
        padding = ~valid_mask(lengths, frames.shape[1])
        states = frames.transpose(0, 1)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return states.transpose(0, 1)

    def _mix_over_turns(self, frames: Tensor, lengths: Tensor, clip_rows: Tensor | None) -> Tensor:
        """Attend at each frame index to the same index of the conversation's other clips."""
        if clip_rows is None:
            clip_rows = torch.arange(len(frames), device=frames.device)
        apart = clip_rows[:, None] != clip_rows[None, :]  # [B, B], True for other conversations
        valid = valid_mask(lengths, frames.shape[1])
        # A clip that ends before a frame is no key there. Where all clips of a conversation have
        # ended none is hidden: softmax over no key at all is NaN.
        reached = (~apart).float() @ valid.float() > 0  # [B, F]
        ended = (~valid & reached).T  # [F, B]: the frame axis is the layer's batch axis
        for layer in self.layers:
            frames = layer(frames, src_mask=apart, src_key_padding_mask=ended)
        return frames

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
        is_text, tokens = speech.kept & (speech.tokens != self.blank), speech.tokens
        if not self.whole_vocabulary:
            # CTC's classes are a part of the vocabulary; the blank, the last, has no token.
            tokens = self.token_ids[tokens.clamp(max=self.blank - 1)]
        return tokens_by_window(tokens, is_text, window and window / self.config.stack)

    @torch.no_grad()
    def best_tokens(self, frames: Tensor) -> Tensor:
        """The likeliest class of each aligned frame: [B, F, H] -> [B, F]."""
        flat = frames.reshape(-1, frames.shape[-1])
        # In slices, because the scores of all frames at once would be the largest tensor here.
        best = [self.scores(part).argmax(-1) for part in flat.split(CTC_SLICE_FRAMES)]
        return torch.cat(best).reshape(frames.shape[:-1])

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

    def shrink(
        self, frames: Tensor, lengths: Tensor, tokens: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One vector for each run of frames with the same likeliest token.

        Args:
            frames: [B, F, H] as `align` returns them.
            lengths: [B] frames.
            tokens: [B, F] the likeliest class of each frame.
            logits: CTC logits [B, F, C]; only `expected_text` reads them.

        Returns:
            kept frames, bool [B, F], and their vectors [B, L, H], right-padded.
        """
        real = valid_mask(lengths, frames.shape[1])
        # A blank between two runs of one token keeps them apart, as CTC does for repeated tokens.
        kept, run = runs(tokens, real, None if self.config.keep_blanks else self.blank)
        if self.config.first_frames:
            return kept, self._from_first_frames(frames, kept, real)
        return kept, self._from_means(frames, kept, run, real, logits)

    def _from_first_frames(self, frames: Tensor, kept: Tensor, real: Tensor) -> Tensor:
        """Vectors [B, L, H] of runs: their first frames plus the look-back, normalised."""
        # The release hides the dropped frames; the paper recovers what they held.
        seen = kept if self.compatibility.look_back_at_kept_frames else real
        queries = gather_kept(frames, kept)
        return self.look_back_norm(look_back(self.look_back, queries, frames, seen) + queries)

    def _from_means(
        self, frames: Tensor, kept: Tensor, run: Tensor, real: Tensor, logits: Tensor
    ) -> Tensor:
        """Vectors [B, L, H] of runs: their expected text, or mean frames, plus the look-back."""
        B, N, H = frames.shape
        L = max(1, int(kept.sum(1).max()))
        seen = self.look_back_norm(frames).to(self.token_rows.dtype)
        queries = run_means(seen, run, L)  # [B, L, H]
        attended = look_back(self.look_back, queries, seen, real)
        if not self.config.expected_text:
            return queries + attended
        # Only over frames in a run: most frames are blanks, and a vocabulary is wide.
        in_run = run >= 0
        posterior = logits[in_run][:, : self.blank].float().softmax(-1)  # [frames in runs, C-1]
        expected = posterior.to(self.token_rows.dtype) @ self.token_rows
        text = expected.new_zeros(B, N, H)
        text[in_run] = expected
        return run_means(text, run, L) + attended


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


def one_silent_clip(features: Features) -> Features:
    """A clip of one frame [1, 1, D] of zeros, for layers that take no batch without rows."""
    values, lengths = features.values, features.lengths
    return Features(values.new_zeros(1, 1, values.shape[2]), lengths.new_ones(1), features.rate_hz)
