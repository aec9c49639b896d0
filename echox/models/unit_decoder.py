"""The unit decoder (T2C, and the voice of Echo): text vectors in, unit-language words out, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.kernels.codec_head_loss import CodecHead
from echox.models.codebook_pattern import aligned, delays_of, frames_of, staggered
from echox.models.unit_loop import UnitLoop
from echox.models.unit_loop.text_speech import speak_targets
from echox.signals import valid_mask

IGNORE = -100


@dataclass(kw_only=True, slots=True)
class UnitDecoderConfig:
    """Shape of the unit decoder: a Llama-style causal transformer over text vectors, then words."""

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
    """Probability of dropping an attention weight in training; above 0 it keeps a CPU from its fast attention, a quarter of the step."""
    word_dropout: float = 0.0
    """Probability of hiding a whole word from the steps after it in training, so that they lean on the text instead of reciting
    (Bowman et al. 2016, arXiv:1511.06349)."""
    monotonic: bool = True
    """Mark in the target where each text token ends and show the decoder the token it is speaking; off, it is the paper's plain prefix form."""
    max_words_per_token: int = 60
    """Words one text token may take in generation before the decoder is moved on."""
    positions: int = 2048
    """Positions of the transformer: text vectors plus words."""
    codebook_delay: int = 1
    """Steps that each codebook of a neural codec lags behind the one before, so that it hears it; 0 says all codes of a frame at once."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"the unit decoder's width {self.width} is no multiple of its heads {self.heads}; change one")
        if self.codebook_delay < 0:
            raise ConfigError(f"the unit decoder's codebook_delay is {self.codebook_delay}; use 0 (all codes of a frame at once) or more steps")
        for name in ("dropout", "attention_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"the unit decoder's {name} is {getattr(self, name)}; use 0 or more, below 1")


class UnitDecoder(nn.Module):
    """Predicts unit-language words from text vectors [B, S, H].

    The sequence is: text vectors, BEGIN, words ..., END. In the monotonic form a NEXT mark follows the words of every text
    token, so that counting NEXT says which token is being spoken; that token's vector and its neighbours are added to the
    input of the step. Text and speech advance together, hence the decoder cannot skip or repeat, and it need not discover the
    alignment by itself (which took the published form thousands of hours).

    Output ids: 0 .. words-1 are words, then BEGIN, END, NEXT. With K codebooks a word is a frame of K codes; marks are the first
    codebook's, and BEGIN stands wherever a codebook says nothing: beside marks, and before and after its delay (`codebook_delay`).
    Targets are lists of K ids a step, one step after the other.
    """

    parts = {
        "projection": ("text_in",),
        "word rows": ("words",),
        "spoken token": ("text_near", "spoken_in"),
        "body": ("body",),
        "output head": ("head",),
    }  # what people call its parts -> the modules they are

    def __init__(self, config: UnitDecoderConfig, text_width: int, word_count: int, codebooks: int = 1) -> None:
        super().__init__()
        self.config = config
        self.word_count = word_count
        self.codebooks = codebooks
        self.delays = delays_of(codebooks, config.codebook_delay)
        self.begin_id, self.end_id, self.next_id = word_count, word_count + 1, word_count + 2
        self.text_in = nn.Linear(text_width, config.width)
        self.text_near = nn.Conv1d(config.width, config.width, 5, padding=2)
        self.spoken_in = nn.Linear(config.width, config.width)
        sizes = [word_count + 3, *[word_count + 1] * (codebooks - 1)]
        self.words = nn.Embedding(sum(sizes), config.width)
        nn.init.normal_(self.words.weight, std=0.5 * codebooks**-0.5)  # those of a step are added
        self.words.register_buffer("first_rows", torch.tensor([0, *accumulate(sizes)][:-1]), persistent=False)  # [K] of each codebook
        self.drop = nn.Dropout(config.dropout)
        self.body = transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=1,
                bos_token_id=None,
                eos_token_id=None,
                hidden_size=config.width,
                intermediate_size=config.feed_forward,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.positions,
                attention_dropout=config.attention_dropout,
                attn_implementation="sdpa",
                tie_word_embeddings=False,
            )
        )
        self.body.embed_tokens = None
        self.head = CodecHead(config.width, sizes)

    def read_text(self, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Text vectors [B, S, H] -> prefix [B, S, C] and, per token, what the decoder sees while speaking it [B, S+1, C]."""
        real = valid_mask(text_lengths, text.shape[1])[..., None]
        prefix = self.drop(self.text_in(text)) * real
        near = prefix + F.gelu(self.text_near(prefix.transpose(1, 2)).transpose(1, 2))
        spoken = self.spoken_in(near) * real
        return prefix, F.pad(spoken, (0, 0, 0, 1))  # after the last token there is nothing to speak

    def forward(self, text: Tensor, text_lengths: Tensor, targets: Tensor) -> Tensor:
        """Teacher-forced hidden states.

        Args:
            text: [B, S, H] right-padded; targets: [B, U * K] output ids, IGNORE-padded, as `target_of` makes them.
        Returns:
            hidden [B, U, C]; step u predicts its K ids of the targets, see `labelled`. `logits` turns them into scores.
        """
        prefix, spoken = self.read_text(text, text_lengths)
        B, S, C = prefix.shape
        inputs = F.pad(self._by_step(targets)[:, :-1], (0, 0, 1, 0), value=self.begin_id)
        real = inputs[..., 0] != IGNORE
        steps = self._steps(inputs.masked_fill(~real[..., None], self.begin_id), spoken)
        mask = torch.cat([valid_mask(text_lengths, S), real], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        states = self.body(inputs_embeds=torch.cat([prefix, steps], dim=1), attention_mask=mask.long(), position_ids=positions, use_cache=False)
        return states.last_hidden_state[:, S:]

    def _by_step(self, targets: Tensor) -> Tensor:
        """[B, U * K] -> [B, U, K]."""
        return targets.unflatten(1, (-1, self.codebooks))

    def labelled(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden [B, U, C] and their targets [B, U * K] -> states [N, C] at real steps, and labels [N], or [N, K] with IGNORE where nothing is said."""
        steps = self._by_step(targets)
        real = steps[..., 0] != IGNORE
        labels = steps[real]
        return hidden[real], labels[:, 0] if self.codebooks == 1 else labels.masked_fill(labels == self.begin_id, IGNORE)

    def embedded(self, steps: Tensor) -> Tensor:
        """Output ids [..., K] -> the sum of their vectors [..., C]."""
        return self.words(steps + self.words.first_rows).sum(-2)

    def _steps(self, inputs: Tensor, spoken: Tensor) -> Tensor:
        """Step inputs [B, U, K] -> embeddings [B, U, C]."""
        steps = self.drop(self.embedded(inputs))
        if self.training and self.config.word_dropout:
            steps = steps * (torch.rand(inputs.shape[:2], device=inputs.device) >= self.config.word_dropout)[..., None]
        if not self.config.monotonic:
            return steps
        at = (inputs[..., 0] == self.next_id).long().cumsum(1).clamp(max=spoken.shape[1] - 1)
        return steps + spoken.gather(1, at[..., None].expand(-1, -1, spoken.shape[2]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., C] -> scores [..., words + 3], then of words + 1 for each further codebook."""
        return self.head(hidden)

    def target_of(self, words_per_token: list[list[int]]) -> list[int]:
        """Words of each text token -> target ids: NEXT marks where monotonic, END last. Of K codebooks words are codes, frame after frame."""
        marks = [self._mark(self.next_id)] if self.config.monotonic else []
        return self.target_of_rows([row for words in words_per_token for row in [*frames_of(words, self.codebooks), *marks]])

    def target_of_rows(self, rows: list[list[int]]) -> list[int]:
        """Frames and marks [R][K], without an end -> target ids with one."""
        return [token for step in staggered([*rows, self._mark(self.end_id)], self.delays, self.begin_id) for token in step]

    def _mark(self, mark: int) -> list[int]:
        return [mark, *[self.begin_id] * (self.codebooks - 1)]

    def words_in(self, target: Sequence[int]) -> list[int]:
        """The words of a target, padding and marks left out."""
        steps = frames_of([token for token in target if token != IGNORE], self.codebooks)
        return [code for row in aligned(steps, self.delays) if row[0] < self.word_count for code in row]

    def generate(self, text: Tensor, text_lengths: Tensor, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """Greedy words for text vectors [B, S, H]; marks are removed. Rows never influence each other.

        Args:
            max_words: steps at most, of words and marks.
            loop: one of `decoder_loop` to speak in; None makes one for this call.
        Returns:
            per row, the words of the whole text in order.
        Raises:
            SignalError: as `speak_targets`.
        """
        rows = speak_targets(self, text, text_lengths, max_words, loop=loop)
        return [self.words_in(row) for row in rows]

    def generate_targets(self, text: Tensor, text_lengths: Tensor, max_words: int = 1024) -> list[list[int]]:
        """As `generate`, with NEXT and END marks kept: what `forward` takes as targets (pseudo-labels)."""
        return speak_targets(self, text, text_lengths, max_words)
