"""The denoising adapter and the T2C model: from hidden states or text to unit tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.core.config import refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.decoding import DecodeEngine, Request
from echox.models.spelling import TextRows
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import (
    UnitDecoderSteps,
    UnitTokens,
    generate_targets,
    generate_unit_tokens,
    target_of,
    target_requests,
)


@dataclass(kw_only=True, slots=True)
class DenoisingConfig:
    """Shape of the denoising adapter.

    Raises:
        ConfigError: a field is out of range.
    """

    feed_forward: int = 1536
    """Channels between its two layers; the LLM's feed-forward width in EchoX."""
    dropout: float = 0.1
    """Probability of dropping a channel between the layers in training."""
    candidates: int = 1
    """Tokens whose text vectors are mixed by the LLM's own next-token probabilities as a starting
    point: 1 starts from greedy text, 0 is the paper's plain MLP."""
    temperature: float = 0.25
    """Divides the logits before several candidates are mixed; below 1 the mix is nearer to the
    likeliest token."""
    norm: bool = True
    """Normalise hidden states before the first layer; the release does not."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "feed_forward")
        refuse_below(self, 0, "candidates")
        refuse_no_share(self, "dropout")
        if not self.temperature > 0:
            raise ConfigError(f"denoiser.temperature is {self.temperature}; use a number above 0")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest next tokens of hidden states, whose text vectors are mixed."""

    ids: Tensor  # [..., k], the likeliest first
    weights: Tensor | None = None  # [..., k] float32, of sum 1; None for a single candidate

    @classmethod
    def greedy(cls, text: Tensor) -> Candidates:
        """The single candidates that greedy text [...] consists of."""
        return cls(text[..., None])


class DenoisingAdapter(nn.Module):
    """Map hidden states to vectors in the space of the unit decoder's text.

    With one candidate, the result is the text vector of the likeliest token plus the MLP's
    correction, which starts at zero: before the first step Echo generates exactly the units of T2C
    for the greedy text, so training can only depart from there. With several, it is the vector
    expected under the state's sharpened next-token distribution; that keeps the model's
    uncertainty, but a mix of two tokens' vectors is a text that the unit decoder was not trained
    on, and its speech is unclear. With none, it is EchoX's MLP, which has to learn the whole map
    and needs the paper's hours.

    Source: EchoX (arXiv:2509.09174), denoising adapter; the starting point is ours.
    """

    def __init__(self, config: DenoisingConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(hidden_size) if config.norm else nn.Identity()
        self.up = nn.Linear(hidden_size, config.feed_forward)
        self.drop = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.feed_forward, hidden_size)
        if config.candidates:
            # The correction starts at zero; the plain MLP has nothing else and starts at random.
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def candidates(self, logits: Tensor) -> Candidates | None:
        """Next-token logits [..., V] -> the tokens to start from; None for the plain MLP."""
        if self.config.candidates == 0:
            return None
        if self.config.candidates == 1:
            # argmax, as greedy text takes: of equal logits, which are common in bfloat16, `topk`
            # may choose another.
            return Candidates.greedy(logits.float().argmax(-1))
        top = logits.float().topk(self.config.candidates, dim=-1)
        return Candidates(top.indices, (top.values / self.config.temperature).softmax(-1))

    def forward(
        self,
        hidden: Tensor,
        candidates: Candidates | None = None,
        rows: TextRows | None = None,
    ) -> Tensor:
        """Denoise hidden states.

        Args:
            hidden: [..., H] states that predicted tokens.
            candidates: of `candidates`, for the same states.
            rows: the unit decoder's text rows; the plain MLP needs none.

        Returns:
            text vectors [..., H].
        """
        correction = self.down(self.drop(F.relu(self.up(self.norm(hidden)))))
        if candidates is None:
            return correction
        if rows is None:
            raise ConfigError(
                "likely tokens are mixed by their text vectors; give the unit decoder's rows too"
            )
        return _mixed(candidates, rows).to(correction.dtype) + correction


def _mixed(candidates: Candidates, rows: TextRows) -> Tensor:
    """The expected text vectors [..., H] of candidates, float32."""
    vectors = rows(candidates.ids).float()  # [..., k, H]
    if candidates.weights is None:
        return vectors.squeeze(-2)
    return torch.einsum("...k,...kh->...h", candidates.weights, vectors)


class T2CModel(nn.Module):
    """T2C: token ids -> text vectors -> unit tokens.

    The text rows of the language model are frozen, all else is trained.
    """

    def __init__(self, rows: TextRows, decoder: UnitDecoder) -> None:
        super().__init__()
        self.rows = rows
        self.decoder = decoder

    def speak(
        self,
        ids: Tensor,
        lengths: Tensor,
        max_steps: int = 1024,
        engine: DecodeEngine | None = None,
    ) -> list[UnitTokens]:
        """Generate unit tokens for texts, greedy.

        Args:
            ids: token ids [B, S], right-padded.
            lengths: [B] tokens.
            max_steps: decode steps at most, each a unit token or a mark.
            engine: of this decoder's present weights; None builds one for this call.

        Returns:
            unit tokens per row, marks removed.

        Raises:
            SignalError: a text is too long for the engine, or scores are NaN or infinite.
        """
        return generate_unit_tokens(self.decoder, self.rows(ids), lengths, max_steps, engine)

    def requests(
        self, ids: Tensor, lengths: Tensor, max_steps: int, steps: UnitDecoderSteps
    ) -> dict[int, Request]:
        """Return a request for the unit tokens of each text that has tokens, by its row.

        Args:
            ids, lengths, max_steps: as in `speak`.
            steps: of the engine that takes the requests.
        """
        return target_requests(steps, self.rows(ids), lengths, max_steps)

    def unit_tokens_in(self, tokens: Tensor, *, ended: bool) -> UnitTokens:
        """Return the unit tokens that decoded tokens stand for, marks removed.

        Args:
            tokens: [T, K] of a text, all or the first of them.
            ended: all of them are there. Otherwise the result is a beginning of that of all.
        """
        target = target_of(self.decoder, tokens.tolist())
        return UnitTokens(self.decoder.unit_tokens_in(target), target.is_cut)

    def targets(
        self,
        ids: Tensor,
        lengths: Tensor,
        max_steps: int = 1024,
        engine: DecodeEngine | None = None,
    ) -> list[UnitTokens]:
        """Generate pseudo-labels for texts: unit tokens with the decoder's marks, greedy.

        Args:
            ids: token ids [B, S], right-padded.
            lengths: [B] tokens.
            max_steps: decode steps at most, each a unit token or a mark.
            engine: of this decoder's present weights; a batch that is too long for it goes without.

        Returns:
            target ids per row, as `UnitDecoder.forward` takes them.

        Raises:
            SignalError: scores are NaN or infinite.
        """
        longest = int(lengths.max()) if len(lengths) else 0
        fits = engine is not None and longest + max_steps <= engine.capacity
        return generate_targets(
            self.decoder, self.rows(ids), lengths, max_steps, engine=engine if fits else None
        )


def build_t2c_model(
    decoder: UnitDecoderConfig,
    spelling_channels: int,
    backbone: Backbone,
    unit_vocab_size: int,
    codebooks: int,
) -> T2CModel:
    """Build an untrained T2C model over a backbone's text rows.

    Args:
        decoder: shape of the unit decoder.
        spelling_channels: channels of the spelling network; 0 leaves it out.
        backbone: its output head's rows are the text rows.
        unit_vocab_size: unit tokens, or codes of each codebook.
        codebooks: K.
    """
    rows = TextRows(backbone.head_rows(), backbone.token_texts(), spelling_channels)
    return T2CModel(rows, UnitDecoder(decoder, rows.hidden_size, unit_vocab_size, codebooks))
