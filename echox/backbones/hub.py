"""Any causal language model of the transformers library, with LoRA."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.assets.fetch import packages_to_fetch
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of, tokenizer_folder, untrained
from echox.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneConfig,
    BackboneState,
    LoraConfig,
    Turn,
    add_lora,
)
from echox.backbones.byte_tokenizer import byte_tokenizer
from echox.backbones.chat import other_ends, render_prompt, special_ids, turn_end
from echox.backbones.layer_subset import count_frozen_layers, only_layers
from echox.core.config import refuse_below
from echox.core.packages import OptionalPackage
from echox.core.transformers_compat import cache_kwargs

# Tokens that a separate pass over a shared prefix must save to be worth it: it launches every
# operation and reads every weight once more. Chosen on SmolLM2-135M on a CPU, where a pass that
# saved 98 tokens made a step 6 % longer.
PREFIX_COST_TOKENS = 128


@dataclass(kw_only=True, slots=True)
class HubBackboneConfig(BackboneConfig):
    """A Hugging Face causal LM, frozen, with optional LoRA.

    Raises:
        ConfigError: a number is out of range.
    """

    weights: str = "smollm2_135m"
    """Catalogue name, hub id or local folder; "random" builds a tiny byte-level Llama for tests,
    "random:NAME" that model's true shapes untrained, for speed work."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters trained in S2T and Echo."""
    system: str = "Answer in one short sentence."
    """System message of every conversation that has none; empty for none."""
    attention: str = "sdpa"
    """Attention kernel of the library: sdpa, eager, flash_attention_2; on CPUs eager trains short
    conversations 1.7 times faster."""
    random_width: int = 64
    """Channels of the random model."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "random_width")


@BACKBONES.register("hub", HubBackboneConfig)
class HubBackbone(Backbone):
    """Llama, Qwen, SmolLM2 and whatever else `AutoModelForCausalLM` loads, with LoRA adapters."""

    def __init__(self, config: HubBackboneConfig) -> None:
        """Load the weights, or build the random model that `config.weights` asks for.

        Raises:
            AssetError: the weights are missing, damaged or not a causal language model's.
            ConfigError: the chat template or the LoRA targets do not fit the model.
        """
        super().__init__()
        self.config = config
        self.model, self.tokenizer = _load(config)
        self.model.requires_grad_(False)
        self.hidden_size = self.model.config.hidden_size
        # Not the tokenizer's size: the head of many models is padded to a round number of rows.
        self.vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self.end_id = turn_end(self.tokenizer)
        eos_ids = self.model.generation_config.eos_token_id
        self.other_end_ids = other_ends(self.tokenizer, eos_ids, self.end_id)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = pad_id if pad_id is not None else self.end_id
        self.max_positions = getattr(self.model.config, "max_position_embeddings", None)
        # Before the adapters: the fingerprint is of the pretrained weights, whatever LoRA adds.
        self._origin = _probe(self.model)
        add_lora(self.model, config.lora)
        self._frozen_layers = count_frozen_layers(self._body)

    @classmethod
    def outline(cls, config: HubBackboneConfig) -> HubBackbone:
        """Build the backbone with its true shapes on the meta device, without reading weights."""
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: HubBackboneConfig) -> list[str]:
        """List the weight files that are neither here nor in a pinned package."""
        return missing_weights(config.weights)

    @classmethod
    def packages(cls, config: HubBackboneConfig) -> Sequence[OptionalPackage]:
        """List the packages needed to convert the weights, none where they are here already."""
        return packages_to_fetch(config.weights)

    @property
    def _body(self) -> transformers.PreTrainedModel:
        """The model without its head; in the library, a module of `model` or `model` itself."""
        body = self.model.base_model
        if not isinstance(body, transformers.PreTrainedModel):
            raise TypeError(f"{type(self.model).__name__} has no body that is a model of its own")
        return body

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., H]."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False
    ) -> BackboneState:
        """Run all layers on embeddings [B, S, H] under a mask [B, S_all]; see `Backbone`."""
        # Counted over real tokens only, so that left padding does not shift positions.
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        # Without the head: whoever needs logits of some positions asks `logits` for those alone.
        body = self._body
        if use_cache and cache is None:
            cache = transformers.DynamicCache(config=body.config)
        output = body(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=use_cache,
            **cache_kwargs(body, cache),
        )
        return BackboneState(output.last_hidden_state, cache if use_cache else None)

    def forward_prefix_shared(self, embeddings: Tensor, mask: Tensor, shared: int) -> Tensor:
        """Run all layers, the first `shared` positions once for all rows: -> [B, S, H]."""
        B = embeddings.shape[0]
        if (B - 1) * shared < PREFIX_COST_TOKENS:
            return super().forward_prefix_shared(embeddings, mask, shared)
        # [1, shared, H] states, and keys and values that every row then attends to.
        prefix = self(embeddings[:1, :shared], mask[:1, :shared], use_cache=True)
        prefix.cache.batch_repeat_interleave(B)
        rest = self(embeddings[:, shared:], mask, prefix.cache, use_cache=True)
        return torch.cat([prefix.hidden.expand(B, -1, -1), rest.hidden], dim=1)

    def frozen_layers(self) -> int:
        """Count the lowest layers without an adapter; 0 in other layouts than Llama's."""
        return self._frozen_layers

    def forward_lower(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Run the frozen layers alone: embeddings [B, S, H] -> states [B, S, H]."""
        with only_layers(self._body, slice(0, self.frozen_layers()), norm=False):
            return self(embeddings, mask).hidden

    def forward_upper(self, states: Tensor, mask: Tensor) -> Tensor:
        """Run the layers above the frozen ones and the final norm: [B, S, H] -> [B, S, H]."""
        with only_layers(self._body, slice(self.frozen_layers(), None), norm=True):
            return self(states, mask).hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> next-token logits [..., V]."""
        return self.model.get_output_embeddings()(hidden)

    def head_rows(self) -> Tensor:
        """Return the output head's weight [V, H]."""
        return self.model.get_output_embeddings().weight

    def llama(self) -> transformers.LlamaModel | None:
        """Return the Llama inside, or None for other types and for Llamas with biases."""
        # The exact type, because a subclass may compute something else.
        if type(self.model) is not transformers.LlamaForCausalLM:
            return None
        # The decode engine's kernels add no bias.
        has_bias = self.model.config.attention_bias or self.model.config.mlp_bias
        return None if has_bias else self.model.model

    def weight_of(self, projection: nn.Module) -> Tensor:
        """Return the weight [out, in] of a projection, with its active LoRA product added."""
        from peft.tuners.lora import Linear as LoraLinear

        if not isinstance(projection, LoraLinear):
            return super().weight_of(projection)
        if projection.disable_adapters or projection.merged:
            return projection.weight
        deltas = (projection.get_delta_weight(name) for name in projection.active_adapters)
        # In float32, where small adapter weights do not vanish beside a half-precision base.
        return sum(deltas, projection.weight.float())

    def tokenize(self, text: str) -> list[int]:
        """Encode plain text as token ids, without any special token."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def detokenize(self, ids: list[int]) -> str:
        """Decode token ids to plain text; special tokens are dropped."""
        # The clean-up would join "don 't" and remove spaces before punctuation.
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()

    def token_texts(self) -> list[str]:
        """List the text of every token id, V strings; special and unused ids have ""."""
        special = special_ids(self.tokenizer)
        size = len(self.tokenizer)

        def text(token: int) -> str:
            if token in special or token >= size:
                return ""
            return self.tokenizer.decode([token], clean_up_tokenization_spaces=False)

        return [text(token) for token in range(self.vocab_size)]

    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        """Render a conversation in the chat template, open for the assistant's answer.

        Returns:
            N + 1 lists of token ids for N audios: audio i belongs between lists i and i + 1.

        Raises:
            ConfigError: the chat template refuses the roles.
        """
        if self.config.system and all(turn.role != "system" for turn in turns):
            turns = [Turn("system", self.config.system), *turns]
        return [self.tokenize(piece) for piece in render_prompt(self.tokenizer, turns)]

    @contextmanager
    def as_pretrained(self) -> Iterator[None]:
        """Switch the LoRA adapters off inside the block."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            # peft sets `requires_grad` with the switch, and not always back to what it was.
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)

    def fingerprint(self) -> str:
        """Hash the pretrained weights and the system message: 16 hexadecimal digits."""
        settings = json.dumps([self._origin, self.config.system])
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _load(config: HubBackboneConfig) -> tuple[transformers.PreTrainedModel, Any]:
    """Return the float32 language model and its tokenizer."""
    if config.weights == "random":
        return _random_model(config)
    if config.weights.startswith(UNTRAINED):
        return _untrained(config)
    folder = asset_folder(config.weights)
    with loading("a causal language model with its tokenizer", folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=config.attention
        )
        return model, transformers.AutoTokenizer.from_pretrained(folder)


def _random_model(config: HubBackboneConfig) -> tuple[transformers.PreTrainedModel, Any]:
    tokenizer = byte_tokenizer()
    width = config.random_width
    shape = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # The library's 0.02 is for wide models; in a narrow one every token would score about the
        # same, and no training could change that.
        initializer_range=width**-0.5,
    )
    with _fixed_seed():
        return transformers.LlamaForCausalLM(shape), tokenizer


def _untrained(config: HubBackboneConfig) -> tuple[transformers.PreTrainedModel, Any]:
    """Build a known model's shapes untrained, with its tokenizer where that is on this machine."""
    reference = config.weights.removeprefix(UNTRAINED)
    folder = tokenizer_folder(reference)
    with loading("a causal language model with its tokenizer", reference), _fixed_seed():
        model = transformers.AutoModelForCausalLM.from_config(
            shape_of(reference), dtype=torch.float32, attn_implementation=config.attention
        )
        if folder is None:
            # Bytes are valid ids of any vocabulary.
            return model, byte_tokenizer()
        return model, transformers.AutoTokenizer.from_pretrained(folder)


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Draw the same random weights in every stage and on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _probe(model: nn.Module) -> list[float]:
    """Sum the first values of each tensor, which tells weights apart and is cheap at any size."""
    with torch.no_grad():
        return [p.flatten()[:64].double().sum().item() for p in model.parameters() if not p.is_meta]
