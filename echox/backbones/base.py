"""The backbone interface: a causal language model that takes embeddings and gives hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.packages import OptionalPackage
from echox.registry import Registry


@dataclass(kw_only=True, slots=True)
class BackboneConfig:
    """Base of every backbone's config."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters on the backbone (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 16
    """Rank of every adapter; 0 leaves the backbone frozen as it is."""
    alpha: float = 32.0
    """Scale: the adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Probability of dropping an adapter's input in training."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of the linear layers that get an adapter."""
    top_layers: int | None = None
    """Transformer layers, counted from the top, that get adapters; null gives them to all. Below them nothing is trained, so their states
    of a text can be kept (`s2t.task.train_look_back`)."""

    def __post_init__(self) -> None:
        if self.top_layers is not None and self.top_layers < 1:
            raise ConfigError(f"lora.top_layers is {self.top_layers}; use 1 or more, or null for all layers")


@dataclass(frozen=True, slots=True)
class BackboneState:
    """One forward pass of a backbone."""

    hidden: Tensor  # [B, S, H] after the final norm: what `logits` takes
    cache: Any  # opaque key/value cache for the next call, or None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation as a chat template sees it."""

    role: str  # "system", "user" or "assistant"
    text: str
    has_audio: bool = False  # an audio stands before the text of this turn


class Backbone(nn.Module, ABC):
    """A causal LM with its tokenizer. Token ids are int64; padding never influences real positions."""

    hidden_size: int
    vocab_size: int
    end_id: int  # ends an assistant turn
    other_end_ids: tuple[int, ...] = ()  # end an answer too, where a model says one of them instead
    pad_id: int
    max_positions: int | None = None  # of a conversation with its answer; None where there is no limit

    @classmethod
    def outline(cls, config: Any) -> Backbone:
        """The backbone with its true shapes on the meta device: no weights are read, and it computes nothing."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """Files it needs that are not here and that echox does not make or fetch from a pinned package."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """Packages that building it asks for beside echox; they are asked for before a run begins."""
        return ()

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., H]."""

    @abstractmethod
    def forward(self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False) -> BackboneState:
        """Run the decoder.

        Args:
            embeddings: [B, S, H]; with a cache, only the new positions.
            mask: bool [B, S_all] over cached and new positions, True where real; left or right padded.
            cache: what the previous call returned.
        """

    def whole(self, embeddings: Tensor, mask: Tensor, shared: int) -> Tensor:
        """Hidden states of whole sequences [B, S, H], as `forward` gives them without a cache.

        Args:
            shared: columns at the front that are the same in every row (a chat template's opening, say); a backbone may compute
                them once for all rows.
        """
        return self(embeddings, mask).hidden

    def frozen_layers(self) -> int:
        """Transformer layers at the bottom in which nothing is trained; 0 where `lower` and `upper` cannot run apart."""
        return 0

    def lower(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Run the frozen layers alone.

        Args:
            embeddings: [B, S, H]; mask: bool [B, S], True where real.
        Returns:
            states [B, S, H], which `upper` takes.
        """
        return embeddings

    def upper(self, states: Tensor, mask: Tensor) -> Tensor:
        """Run the layers above the frozen ones: `upper(lower(e, m), m)` is `self(e, m).hidden`.

        Args:
            states: [B, S, H] of `lower`; mask: bool [B, S], True where real.
        Returns:
            hidden [B, S, H], after the final norm.
        """
        return self(states, mask).hidden

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> next-token logits [..., V]."""

    @abstractmethod
    def head_rows(self) -> Tensor:
        """The output head's weight [V, H]: the space hidden states live in, the text rows of the unit decoder."""

    def llama(self) -> transformers.LlamaModel | None:
        """The model inside, where it is a Llama whose logits are products with `head_rows`: a loop of ours can then step it."""
        return None

    def weight_of(self, projection: nn.Linear) -> Tensor:
        """The weight [out, in] of a projection of `llama`, with what is trained beside it as it is now."""
        return projection.weight

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Plain text -> ids, without any special token."""

    @abstractmethod
    def detokenize(self, ids: list[int]) -> str:
        """Ids -> plain text, special tokens dropped."""

    @abstractmethod
    def token_texts(self) -> list[str]:
        """The surface string of every id, length V ("" for special tokens)."""

    @abstractmethod
    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        """A conversation in this model's chat template, opened for the assistant's answer.

        Returns:
            n + 1 id lists for n audios: audio i belongs between lists i and i + 1.
        """

    def as_pretrained(self) -> AbstractContextManager[None]:
        """Inside, the model as it came, without what echox trained on top (LoRA); the default trains nothing on top."""
        return nullcontext()

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of the weights' origin and the settings that change what the model computes."""


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters into a language model's layers, in place; rank 0 adds none.

    Raises:
        ConfigError: no layer has one of the names, or `top_layers` are more than there are.
    """
    if not config.rank:
        return
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    settings = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        layers_to_transform=_top(model, config.top_layers),
    )
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(f"lora.targets {list(config.targets)} name no layer of {type(model).__name__}; use names such as q_proj") from error
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            # Autocast brings inputs to the adapter's format; to float32 and back first is thousands of copies a step.
            layer.cast_input_dtype_enabled = False


def _top(model: nn.Module, count: int | None) -> list[int] | None:
    """Numbers of the uppermost `count` transformer layers, as peft takes them; None for all."""
    if count is None:
        return None
    layers = model.config.num_hidden_layers
    if count > layers:
        raise ConfigError(f"lora.top_layers is {count}, but {type(model).__name__} has {layers} layers")
    return list(range(layers - count, layers))


BACKBONES: Registry[Backbone] = Registry("backbone", BackboneConfig)
