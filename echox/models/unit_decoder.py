"""The unit decoder of T2C and Echo: text vectors in, unit tokens out, autoregressively."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.core.config import refuse_below
from echox.core.errors import ConfigError
from echox.core.signals import valid_mask
from echox.kernels.codec_head_loss import CodecHead
from echox.models.codebook_pattern import aligned, delays_of, frames_of, staggered
from echox.models.speech_llm import IGNORE


@dataclass(kw_only=True, slots=True)
class UnitDecoderConfig:
    """Shape of the unit decoder: a causal Llama over text vectors, then unit tokens.

    Raises:
        ConfigError: a field is out of range.
    """

    layers: int = 4
    """Transformer layers."""
    width: int = 256
    """Channels of the transformer."""
    heads: int = 4
    """Attention heads; must divide `width`."""
    feed_forward: int = 1024
    """Channels inside the feed-forward blocks."""
    dropout: float = 0.1
    """Probability of dropping an input channel in training."""
    attention_dropout: float = 0.0
    """Probability of dropping an attention weight in training; above 0 it keeps a CPU from its fast
    attention, a quarter of the step."""
    word_dropout: float = 0.0
    """Probability of hiding a whole word from the steps after it in training, so that they lean on
    the text instead of reciting (Bowman et al. 2016, arXiv:1511.06349)."""
    monotonic: bool = True
    """Mark in the target where each text token ends and show the decoder the token it is speaking;
    off, it is the paper's plain prefix form."""
    max_words_per_token: int = 60
    """Words one text token may take in generation before the decoder is moved on."""
    positions: int = 2048
    """Positions of the transformer: text vectors plus words."""
    codebook_delay: int = 1
    """Steps that each codebook of a neural codec lags behind the one before, so that it is
    conditioned on it; 0 emits all codes of a frame at once."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "layers", "heads", "feed_forward", "max_words_per_token", "positions")
        if self.width % self.heads:
            raise ConfigError(
                f"the unit decoder's width {self.width} is no multiple of its heads {self.heads}; "
                "change one"
            )
        if self.codebook_delay < 0:
            raise ConfigError(
                f"the unit decoder's codebook_delay is {self.codebook_delay}; "
                "use 0 (all codes of a frame at once) or more steps"
            )
        for name in ("dropout", "attention_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"the unit decoder's {name} is {getattr(self, name)}; use 0 or more, below 1"
                )


class UnitDecoder(nn.Module):
    """Predicts unit tokens from text vectors [B, S, H].

    The sequence is: text vectors, BEGIN, unit tokens ..., END. In the monotonic form a NEXT mark
    follows the unit tokens of every text token, so that counting NEXT tells which text token is
    current; that token's vector and its neighbours are added to the input of the step. Text and
    speech advance together, hence the decoder cannot skip or repeat, and it need not discover the
    alignment by itself (which took the published form thousands of hours).

    Output ids: 0 .. V-1 are unit tokens, then BEGIN, END, NEXT. With K codebooks a unit token is a
    frame of K codes; marks are the first codebook's, and BEGIN stands wherever a codebook is
    silent: beside marks, and before and after its delay (`codebook_delay`). Targets are lists of K
    ids a step, one step after the other.
    """

    # Parts as reports name them -> the modules that they are.
    parts = {
        "projection": ("text_in",),
        "word rows": ("words",),
        "spoken token": ("text_near", "spoken_in"),
        "body": ("body",),
        "output head": ("head",),
    }

    def __init__(
        self, config: UnitDecoderConfig, text_width: int, unit_vocab_size: int, codebooks: int = 1
    ) -> None:
        """Build the decoder.

        Args:
            config: its shape.
            text_width: H, channels of the text vectors.
            unit_vocab_size: V, unit tokens, or codes of each codebook.
            codebooks: K.
        """
        super().__init__()
        self.config = config
        self.unit_vocab_size = unit_vocab_size
        self.codebooks = codebooks
        self.delays = delays_of(codebooks, config.codebook_delay)
        self.begin_id, self.end_id = unit_vocab_size, unit_vocab_size + 1
        self.next_id = unit_vocab_size + 2
        self.text_in = nn.Linear(text_width, config.width)
        # How a token is pronounced depends on its neighbours too.
        self.text_near = nn.Conv1d(config.width, config.width, 5, padding=2)
        self.spoken_in = nn.Linear(config.width, config.width)
        # Three marks in the first codebook; the others have only BEGIN, for silence.
        sizes = [unit_vocab_size + 3, *[unit_vocab_size + 1] * (codebooks - 1)]
        self.words = _CodeTable(sum(sizes), config.width)
        # The vectors of a step's K codes are added, so their variances are.
        nn.init.normal_(self.words.weight, std=0.5 * codebooks**-0.5)
        first_rows = torch.tensor([0, *accumulate(sizes)][:-1])  # [K] of each codebook
        self.words.register_buffer("first_rows", first_rows, persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.body = _llama_body(config)
        self.head = CodecHead(config.width, sizes)

    def read_text(self, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Project text to what the decoder reads.

        Args:
            text: text vectors [B, S, H], right-padded.
            text_lengths: [B] text tokens.

        Returns:
            prefix [B, S, C], which precedes the steps.
            conditioning [B, S+1, C], added to a step's input while its text token is current.
        """
        real = valid_mask(text_lengths, text.shape[1])[..., None]
        prefix = self.drop(self.text_in(text)) * real
        near = prefix + F.gelu(self.text_near(prefix.transpose(1, 2)).transpose(1, 2))
        conditioning = self.spoken_in(near) * real
        # Zeros behind the last token, for the steps after its NEXT.
        return prefix, F.pad(conditioning, (0, 0, 0, 1))

    def forward(self, text: Tensor, text_lengths: Tensor, targets: Tensor) -> Tensor:
        """Hidden states under teacher forcing.

        Args:
            text: text vectors [B, S, H], right-padded.
            text_lengths: [B] text tokens.
            targets: output ids [B, U * K], IGNORE-padded, as `target_of` makes them.

        Returns:
            hidden [B, U, C]; state u predicts the K ids of step u, see `labelled` and `logits`.
        """
        prefix, conditioning = self.read_text(text, text_lengths)
        B, S, C = prefix.shape
        # Each step reads the ids of the step before, the first one BEGIN.
        inputs = F.pad(self._by_step(targets)[:, :-1], (0, 0, 1, 0), value=self.begin_id)
        real = inputs[..., 0] != IGNORE  # [B, U]
        # IGNORE is no row of the table; what padding reads is masked.
        steps = self._steps(inputs.masked_fill(~real[..., None], self.begin_id), conditioning)
        mask = torch.cat([valid_mask(text_lengths, S), real], dim=1)  # [B, S + U]
        # Padding between text and steps takes no positions: a row is positioned as alone.
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        states = self.body(
            inputs_embeds=torch.cat([prefix, steps], dim=1),
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        return states.last_hidden_state[:, S:]

    def _by_step(self, targets: Tensor) -> Tensor:
        """[B, U * K] -> [B, U, K]."""
        return targets.unflatten(1, (-1, self.codebooks))

    def labelled(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Select the states that are scored, and their labels.

        Args:
            hidden: [B, U, C] as `forward` returns them.
            targets: output ids [B, U * K], IGNORE-padded.

        Returns:
            states [N, C] at real steps.
            labels [N], or [N, K] with IGNORE where a codebook is silent.
        """
        steps = self._by_step(targets)
        real = steps[..., 0] != IGNORE
        labels = steps[real]
        if self.codebooks == 1:
            return hidden[real], labels[:, 0]
        return hidden[real], labels.masked_fill(labels == self.begin_id, IGNORE)

    def embedded(self, steps: Tensor) -> Tensor:
        """Output ids [..., K] -> the sums of their vectors [..., C]."""
        return self.words(steps + self.words.first_rows).sum(-2)

    def _steps(self, inputs: Tensor, conditioning: Tensor) -> Tensor:
        """Step inputs [B, U, K] -> embeddings [B, U, C]."""
        steps = self.drop(self.embedded(inputs))
        if self.training and self.config.word_dropout:
            # Only the unit token is hidden; what is added below still tells the text token.
            visible = torch.rand(inputs.shape[:2], device=inputs.device) >= self.config.word_dropout
            steps = steps * visible[..., None]
        if not self.config.monotonic:
            return steps
        passed = (inputs[..., 0] == self.next_id).long().cumsum(1)  # [B, U] NEXT marks so far
        current = passed.clamp(max=conditioning.shape[1] - 1)
        return steps + conditioning.gather(
            1, current[..., None].expand(-1, -1, conditioning.shape[2])
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [..., C]: [..., V + 3], then V + 1 for each further codebook."""
        return self.head(hidden)

    def target_of(self, unit_tokens: list[list[int]]) -> list[int]:
        """The target of a text: its unit tokens with NEXT marks where monotonic, END last.

        Args:
            unit_tokens: of each text token; with K codebooks the codes, frame after frame.

        Returns:
            output ids, K a step.
        """
        marks = [self._mark(self.next_id)] if self.config.monotonic else []
        rows = [
            row for tokens in unit_tokens for row in [*frames_of(tokens, self.codebooks), *marks]
        ]
        return self.target_of_rows(rows)

    def target_of_rows(self, rows: list[list[int]]) -> list[int]:
        """The target of frames and marks [R, K] that have no end yet."""
        steps = staggered([*rows, self._mark(self.end_id)], self.delays, self.begin_id)
        return [token for step in steps for token in step]

    def _mark(self, mark: int) -> list[int]:
        """A row [K] of one mark: the other codebooks are silent beside it."""
        return [mark, *[self.begin_id] * (self.codebooks - 1)]

    def unit_tokens_in(self, target: Sequence[int]) -> list[int]:
        """The unit tokens of a target, padding and marks left out."""
        steps = frames_of([token for token in target if token != IGNORE], self.codebooks)
        # A row of a mark holds no codes, whatever stands beside it.
        return [
            code
            for row in aligned(steps, self.delays)
            if row[0] < self.unit_vocab_size
            for code in row
        ]


class _CodeTable(nn.Embedding):
    """Vectors of the output ids of all codebooks, one codebook's after the other's."""

    first_rows: Tensor  # [K] of each codebook


def _llama_body(config: UnitDecoderConfig) -> transformers.LlamaModel:
    """A Llama that reads vectors, without an embedding of its own."""
    settings: dict[str, Any] = {
        "vocab_size": 1,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": config.positions,
        "attention_dropout": config.attention_dropout,
        "attn_implementation": "sdpa",
        "tie_word_embeddings": False,
    }
    body = transformers.LlamaModel(transformers.LlamaConfig(**settings))
    # The decoder reads vectors of its own table; the body's would never get a gradient.
    body.register_module("embed_tokens", None)
    return body
