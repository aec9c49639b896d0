"""The unit translator (T2C, and the voice of Echo): text vectors, then unit words, in one causal sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.errors import CheckpointError
from echox.kernels.codec_head_loss import CodecHead
from echox.models.published.causal import CausalModel, Prompt
from echox.signals import valid_mask


class UnitTranslator(CausalModel):
    """Text rows and unit rows at the language model's width, a projection to its own width, a Llama, a head over both vocabularies.

    Ids below V are the language model's; V .. V+U-1 are unit words.
    """

    def __init__(
        self, config: transformers.LlamaConfig, text_width: int, text_size: int, unit_count: int, denoiser_width: int | None, padding_id: int
    ) -> None:
        """
        Args:
            config: of the body; text_width: H; text_size: V; unit_count: U.
            denoiser_width: channels inside the denoising adapter; None has none, as after T2C pretraining.
            padding_id: a text id whose row is never trained.
        """
        super().__init__()
        self.text_size = text_size
        self.padding_id = padding_id
        self.text_rows = nn.Embedding(text_size, text_width)
        self.unit_rows = nn.Embedding(unit_count, text_width)
        self.adapter = nn.Linear(text_width, config.hidden_size)
        self.body = transformers.LlamaModel(config)
        self.body.embed_tokens = None
        self.head = CodecHead(config.hidden_size, text_size + unit_count)
        self.denoiser = None if denoiser_width is None else denoising_adapter(text_width, denoiser_width)

    def rows(self, ids: Tensor) -> Tensor:
        """Ids [...] -> rows [..., H]; text rows are shared with the language model and get no gradient here."""
        is_unit = ids >= self.text_size
        text = F.embedding(ids.masked_fill(is_unit, 0), self.text_rows.weight.detach())
        units = self.unit_rows((ids - self.text_size).clamp(min=0))
        return torch.where(is_unit[..., None], units, text)

    def trained_text(self, ids: Tensor) -> Tensor:
        """Text ids [...] -> rows [..., H] that do get a gradient, all but the padding's."""
        return F.embedding(ids, self.text_rows.weight, padding_idx=self.padding_id)

    def embed(self, ids: Tensor) -> Tensor:
        return self.adapter(self.rows(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def denoise(self, hidden: Tensor) -> Tensor:
        """Hidden states of the language model [..., H] -> vectors among the text rows [..., H].

        Raises:
            CheckpointError: the weights are of T2C alone.
        """
        if self.denoiser is None:
            raise CheckpointError(
                "this checkpoint has no denoising adapter (unit_translator.aligner_MLP) and cannot speak hidden states; take one of Echo training"
            )
        return self.denoiser(hidden)

    def prompt(self, vectors: Tensor, lengths: Tensor, before: list[int], after: list[int]) -> Prompt:
        """Segments of text vectors between their frames.

        Args:
            vectors: [B, S, H] right-padded, as `denoise` makes them; lengths: [B].
            before, after: ids that open the text and the units.
        """
        B, S, H = vectors.shape
        opening, closing = (self.rows(torch.tensor(ids, device=vectors.device)).expand(B, -1, -1) for ids in (before, after))
        n, m = len(before), len(after)
        total = lengths + n + m
        states = torch.cat([opening, vectors, vectors.new_zeros(B, m, H)], dim=1)
        place = (lengths + n)[:, None] + torch.arange(m, device=vectors.device)
        states = states.scatter(1, place[..., None].expand(-1, -1, H), closing.to(states.dtype))
        real = valid_mask(total, n + S + m)
        return Prompt(self.adapter(states * real[..., None]), total, real)


    def given(self, ids: Tensor, lengths: Tensor, visible: Tensor) -> Prompt:
        """The fronts of sequences, to be continued: ids [B, L], lengths [B], visible bool [B, L] keys that may be attended to."""
        size = int(lengths.max())
        return Prompt(self.embed(ids[:, :size]), lengths, visible[:, :size] & valid_mask(lengths, size))


def denoising_adapter(width: int, inner: int) -> nn.Sequential:
    """Hidden states -> vectors among the text rows."""
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Dropout(0.1), nn.Linear(inner, width))
