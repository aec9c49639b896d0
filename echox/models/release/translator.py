"""The unit translator of the release (T2C, and Echo's unit decoder): text vectors, then units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.backbones.base import BackboneState
from echox.core.errors import CheckpointError
from echox.core.signals import valid_mask
from echox.kernels.codec_head_loss import CodecHead
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.release.causal import Prompt, PromptCache, forward_llama
from echox.models.release.sizes import TranslatorSize, llama_config


class UnitTranslator(nn.Module):
    """Causal model of text vectors followed by unit tokens.

    Text rows and unit rows at the language model's width, a projection to its own width, a Llama
    body, and a head over both vocabularies. Ids below V are the language model's; V .. V+U-1 are
    unit tokens.

    Args:
        config: of the body.
        text_width: channels H of the language model.
        text_size: tokens V of the language model.
        unit_count: unit tokens U.
        denoiser_width: channels inside the denoising adapter; None has none, as after T2C
            pretraining.
    """

    def __init__(
        self,
        config: transformers.LlamaConfig,
        text_width: int,
        text_size: int,
        unit_count: int,
        denoiser_width: int | None,
    ) -> None:
        super().__init__()
        self.text_size = text_size
        self.text_rows = nn.Embedding(text_size, text_width)
        self.unit_rows = nn.Embedding(unit_count, text_width)
        self.adapter = nn.Linear(text_width, config.hidden_size)
        self.body = transformers.LlamaModel(config)
        # The body is given embeddings; its own table would be dead weight in checkpoints.
        self.body.register_module("embed_tokens", None)
        # Over text too, as in the release: any id may be predicted.
        self.head = CodecHead(config.hidden_size, text_size + unit_count)
        self.denoiser = (
            None if denoiser_width is None else denoising_adapter(text_width, denoiser_width)
        )

    @classmethod
    def of(
        cls, config: Mapping[str, Any], size: TranslatorSize, denoiser_width: int | None
    ) -> UnitTranslator:
        """Untrained unit translator of a config.json.

        Args:
            config: a parsed config.json.
            size: of the body.
            denoiser_width: as in the constructor.
        """
        return cls(
            llama_config(config, **size.config_overrides()),
            config["hidden_size"],
            config["vocab_size"],
            config["unit_vocab_size"],
            denoiser_width,
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Embedding rows of text and unit ids: [...] -> [..., H].

        Text rows are shared with the language model and get no gradient here.
        """
        is_unit = ids >= self.text_size
        # Both tables are read at every position, and the row of the right one is taken.
        text = F.embedding(ids.masked_fill(is_unit, 0), self.text_rows.weight.detach())
        units = self.unit_rows((ids - self.text_size).clamp(min=0))
        return torch.where(is_unit[..., None], units, text)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed text and unit ids for the body: [...] -> [..., C]."""
        return self.adapter(self.rows(ids))

    def forward(
        self,
        embeddings: Tensor,
        visible: Tensor,
        cache: PromptCache | None = None,
        use_cache: bool = False,
    ) -> BackboneState:
        """Run the body over embeddings [B, S, C]; see `forward_llama`."""
        return forward_llama(self.body, embeddings, visible, cache, use_cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score text and unit ids from states: [..., C] -> [..., V + U]."""
        return self.head(hidden)

    def denoise(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the language model to vectors among the text rows.

        Args:
            hidden: [..., H].

        Returns:
            [..., H].

        Raises:
            CheckpointError: the weights are of T2C alone.
        """
        if self.denoiser is None:
            raise CheckpointError(
                "this checkpoint has no denoising adapter (unit_translator.aligner_MLP), so its "
                "hidden states cannot be turned into units; take one of Echo training"
            )
        return self.denoiser(hidden)

    def prompt(
        self, vectors: Tensor, lengths: Tensor, before: list[int], after: list[int]
    ) -> Prompt:
        """Prompts from text vectors of segments, to be continued by their units.

        Args:
            vectors: [B, S, H] right-padded, as `denoise` returns them.
            lengths: [B] vectors of each segment.
            before: n ids that open the text.
            after: m ids that close it and open the units.

        Returns:
            embeddings [B, n + S + m, C], right-padded.
        """
        B, S, H = vectors.shape
        opening, closing = (
            self.rows(torch.tensor(ids, device=vectors.device)).expand(B, -1, -1)
            for ids in (before, after)
        )
        n, m = len(before), len(after)
        total = lengths + n + m
        states = torch.cat([opening, vectors, vectors.new_zeros(B, m, H)], dim=1)  # [B, n+S+m, H]
        # The closing ids follow each segment at once; its padding goes behind them.
        place = (lengths + n)[:, None] + torch.arange(m, device=vectors.device)
        states = states.scatter(1, place[..., None].expand(-1, -1, H), closing.to(states.dtype))
        real = valid_mask(total, n + S + m)
        # Vectors past a segment's length are unspecified.
        return Prompt(self.adapter(states * real[..., None]), total, real)

    def prefix_prompt(self, ids: Tensor, lengths: Tensor, visible: Tensor) -> Prompt:
        """Prompts from the first ids of sequences.

        Args:
            ids: [B, L] text and unit ids.
            lengths: [B] ids of each prompt.
            visible: bool [B, L] keys that may be attended to.

        Returns:
            embeddings [B, P, C] with P the longest length.
        """
        size = int(lengths.max())
        is_visible = visible[:, :size] & valid_mask(lengths, size)
        return Prompt(self.embed(ids[:, :size]), lengths, is_visible)


def denoising_adapter(width: int, inner: int) -> DenoisingAdapter:
    """Untrained denoising adapter of the release, the paper's plain MLP.

    Args:
        width: channels H of the hidden states.
        inner: channels between its layers.
    """
    return DenoisingAdapter(DenoisingConfig(feed_forward=inner, candidates=0, norm=False), width)
