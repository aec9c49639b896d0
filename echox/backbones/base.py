"""The backbone interface: a causal language model, embeddings -> hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import transformers
from torch import Tensor, nn

from echox.core.config import refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.core.meta_device import built_on_meta
from echox.core.packages import OptionalPackage
from echox.core.registry import Registry

AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


@dataclass(kw_only=True, slots=True)
class BackboneConfig:
    """Base class of every backbone's config."""


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
    """Transformer layers, counted from the top, that get adapters; null gives them to all. Below
    them nothing is trained, so their states of a text can be kept (`s2t.task.train_look_back`)."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "rank", "alpha")
        refuse_no_share(self, "dropout")
        if self.top_layers is not None and self.top_layers < 1:
            raise ConfigError(
                f"lora.top_layers is {self.top_layers}; use 1 or more, or null for all layers"
            )


@dataclass(frozen=True, slots=True)
class BackboneState:
    """Result of one forward pass of a backbone."""

    hidden: Tensor  # [B, S, H] after the final norm, the input of `logits`
    cache: Any  # opaque key/value cache for the next call, or None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, the input of a chat template."""

    role: str  # "system", "user" or "assistant"
    text: str
    has_audio: bool = False  # an audio precedes the text of this turn


class Backbone(nn.Module, ABC):
    """A causal language model with its tokenizer.

    Token ids are int64, and padding never influences real positions.

    Needed: `hidden_size`, `vocab_size`, `end_id`, `pad_id`, `embed`, `forward`, `logits`,
    `head_rows`, `tokenize`, `detokenize`, `token_texts`, `prompt`, `fingerprint`.

    Optional: `other_end_ids`, `max_positions`, `outline`, `missing`, `packages`,
    `forward_prefix_shared`, `frozen_layers`, `forward_lower`, `forward_upper`, `llama`,
    `weight_of`, `as_pretrained`.
    """

    hidden_size: int  # channels H
    vocab_size: int  # rows V of the output head, which may exceed the tokenizer's ids
    end_id: int  # ends an assistant turn
    other_end_ids: tuple[int, ...] = ()  # further ids that end an answer
    pad_id: int
    max_positions: int | None = None  # of a conversation with its answer; None is no limit

    @classmethod
    def outline(cls: type[AnyBackbone], config: Any) -> AnyBackbone:
        """Build the backbone with its true shapes on the meta device, without reading weights.

        Args:
            config: the backbone's config.

        Returns:
            a module that has shapes and dtypes, but cannot compute.

        Raises:
            AssetError: the shape of the configured model is not known on this machine.
        """
        return built_on_meta(lambda: cls(config))

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """List the files the backbone needs that echox can neither find, make nor fetch."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """List the optional packages the constructor imports; a run checks them first."""
        return ()

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., H]."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False
    ) -> BackboneState:
        """Run all layers.

        Args:
            embeddings: [B, S, H]; with a cache, the new positions only.
            mask: bool [B, S_all] over cached and new positions, True where real; rows may be
                padded on the left or on the right.
            cache: the cache of the previous call.
            use_cache: return a cache for the next call.

        Returns:
            hidden states [B, S, H] of the new positions, and the cache.
        """

    def forward_prefix_shared(self, embeddings: Tensor, mask: Tensor, shared: int) -> Tensor:
        """Run all layers on rows with a common prefix, which a backbone may compute once.

        Args:
            embeddings: [B, S, H] whole sequences, right-padded.
            mask: bool [B, S], True where real.
            shared: leading positions that are equal in every row, such as a chat template's start.

        Returns:
            hidden states [B, S, H], equal to those of `forward` without a cache.
        """
        return self(embeddings, mask).hidden

    def frozen_layers(self) -> int:
        """Count the lowest layers without a trained weight; 0 if the model cannot be split."""
        return 0

    def forward_lower(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Run the frozen layers alone.

        Args:
            embeddings: [B, S, H].
            mask: bool [B, S], True where real.

        Returns:
            states [B, S, H], the input of `forward_upper`.
        """
        return embeddings

    def forward_upper(self, states: Tensor, mask: Tensor) -> Tensor:
        """Run the layers above the frozen ones: `upper(lower(e, m), m)` is `self(e, m).hidden`.

        Args:
            states: [B, S, H] of `forward_lower`.
            mask: bool [B, S], True where real.

        Returns:
            hidden states [B, S, H] after the final norm.
        """
        return self(states, mask).hidden

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> next-token logits [..., V]."""

    @abstractmethod
    def head_rows(self) -> Tensor:
        """Return the output head's weight [V, H]; the unit decoder uses its rows as text input."""

    def llama(self) -> transformers.LlamaModel | None:
        """Return the Llama inside, if its logits are products with `head_rows`, else None.

        The decode engine runs such a model step by step with its own kernels.
        """
        return None

    def weight_of(self, projection: nn.Module) -> Tensor:
        """Return the weight [out, in] of a projection of `llama`, current adapters included."""
        return projection.get_parameter("weight")

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Encode plain text as token ids, without any special token."""

    @abstractmethod
    def detokenize(self, ids: list[int]) -> str:
        """Decode token ids to plain text; special tokens are dropped."""

    @abstractmethod
    def token_texts(self) -> list[str]:
        """List the text of every token id, V strings; special tokens have ""."""

    @abstractmethod
    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        """Render a conversation in the model's chat template, open for the assistant's answer.

        Args:
            turns: the conversation in order.

        Returns:
            N + 1 lists of token ids for N audios: audio i belongs between lists i and i + 1.

        Raises:
            ConfigError: the model has no chat template, or the template refuses the roles.
        """

    def as_pretrained(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes without the adapters echox trained."""
        return nullcontext()

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the weights' origin and the settings that change what the model computes."""


def add_lora(model: transformers.PreTrainedModel, config: LoraConfig) -> None:
    """Insert LoRA adapters into a language model, in place; rank 0 inserts none.

    Args:
        model: a transformers language model; the adapters' random weights are drawn here.
        config: rank, scale, and the layers to adapt.

    Raises:
        ConfigError: no layer has one of the names in `targets`, or the model has fewer than
            `top_layers` layers.
    """
    if not config.rank:
        return
    # Imported here, because a run without adapters does not need peft.
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    settings = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any float; peft only divides it
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        layers_to_transform=_top_layers(model, config.top_layers),
    )
    try:
        # In place, without peft's wrapper around the model, which keeps its class: `llama` of the
        # hub backbone asks for it.
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(
            f"lora.targets {list(config.targets)} name no layer of {type(model).__name__}; use "
            "names such as q_proj"
        ) from error
    _leave_casts_to_autocast(model)


def _leave_casts_to_autocast(model: transformers.PreTrainedModel) -> None:
    """Switch off peft's own cast of the inputs to the adapters' float32."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            # Autocast casts the inputs anyway; a cast before it would add thousands of copies a
            # step.
            layer.cast_input_dtype_enabled = False


def _top_layers(model: transformers.PreTrainedModel, count: int | None) -> list[int] | None:
    """Return the indices of the uppermost `count` layers in peft's form: None is all layers."""
    if count is None:
        return None
    layers = model.config.num_hidden_layers
    if count > layers:
        raise ConfigError(
            f"lora.top_layers is {count}, but {type(model).__name__} has {layers} layers"
        )
    return list(range(layers - count, layers))


BACKBONES: Registry[Backbone] = Registry("backbone", BackboneConfig)
