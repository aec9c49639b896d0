"""The denoising adapter and the voice: from hidden states of the language model to unit-language words."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.errors import ConfigError
from echox.models.spelling import TextRows
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_loop import UnitLoop
from echox.models.unit_loop.text_speech import speak_targets


@dataclass(kw_only=True, slots=True)
class DenoisingConfig:
    """Shape of the denoising adapter."""

    feed_forward: int = 1536
    """Channels between its two layers; the LLM's feed-forward width in EchoX."""
    dropout: float = 0.1
    """Probability of dropping a channel between the layers in training."""
    candidates: int = 1
    """Tokens whose text vectors are mixed by the LLM's own next-token probabilities as a starting point: 1 starts from greedy text, 0 is the paper's plain MLP."""
    temperature: float = 0.25
    """Divides the logits before several candidates are mixed; below 1 the mix is nearer to the token that greedy text says."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"denoiser.temperature is {self.temperature}; use a number above 0")


class DenoisingAdapter(nn.Module):
    """Hidden states -> vectors in the space of the unit decoder's text.

    With one candidate, the result is the text vector of the likeliest token plus the MLP's correction, which starts at zero: before the
    first step Echo speaks exactly what T2C makes of the greedy text, so training can only depart from there. With several, it is the
    vector expected under the state's sharpened next-token distribution; that keeps what the model was unsure about, but a mix of two
    tokens' vectors is a text the unit decoder never heard, and it is mumbled. With none, it is EchoX's MLP, which has to learn the
    whole map and needs the paper's hours.
    Source: EchoX (arXiv:2509.09174), denoising adapter; the starting point is ours.
    """

    def __init__(self, config: DenoisingConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, config.feed_forward)
        self.drop = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.feed_forward, hidden_size)
        if config.candidates:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, hidden: Tensor, logits: Tensor, rows: TextRows) -> Tensor:
        """Hidden states [..., H] and their next-token logits [..., V] -> text vectors [..., H]."""
        correction = self.down(self.drop(F.relu(self.up(self.norm(hidden)))))
        if not self.config.candidates:
            return correction
        return rows.expected(logits / self.config.temperature, self.config.candidates).to(correction.dtype) + correction


class TextVoice(nn.Module):
    """T2C: token ids -> text vectors -> words. The frozen rows come from the language model, all else is trained."""

    def __init__(self, rows: TextRows, decoder: UnitDecoder) -> None:
        super().__init__()
        self.rows = rows
        self.decoder = decoder

    def speak(self, ids: Tensor, lengths: Tensor, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """Token ids [B, S] -> unit-language words per row, greedy; see `UnitDecoder.generate`."""
        return self.decoder.generate(self.rows(ids), lengths, max_words, loop)

    def targets(self, ids: Tensor, lengths: Tensor, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """The same with the decoder's marks kept: pseudo-labels per row, as its `forward` takes targets.

        Args:
            loop: one of this decoder's present weights to speak in; texts too long for it go without.
        """
        fits = loop is not None and (int(lengths.max()) if len(lengths) else 0) + max_words <= loop.capacity
        return speak_targets(self.decoder, self.rows(ids), lengths, max_words, loop=loop if fits else None)


def join_voice(decoder: UnitDecoderConfig, spelling_channels: int, backbone: Backbone, word_count: int, codebooks: int) -> TextVoice:
    """An untrained voice over a backbone's text rows that speaks `word_count` unit-language words, or so many codes of each codebook."""
    rows = TextRows(backbone.head_rows(), backbone.token_texts(), spelling_channels)
    return TextVoice(rows, UnitDecoder(decoder, rows.hidden_size, word_count, codebooks))
