"""Any causal language model of the Hugging Face library, with LoRA."""

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
from echox.backbones.base import BACKBONES, Backbone, BackboneConfig, BackboneState, LoraConfig, Turn, add_lora
from echox.backbones.chat import other_ends, special_ids, turn_end, written
from echox.key_values import cached
from echox.packages import OptionalPackage

AUDIO_MARK = "\ufffc"  # stands where an audio goes while the template is rendered; never reaches the model
BYTE_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@dataclass(kw_only=True, slots=True)
class HubBackboneConfig(BackboneConfig):
    """A Hugging Face causal LM, frozen, with optional LoRA."""

    weights: str = "smollm2_135m"
    """Catalogue name, hub id or local folder; "random" builds a tiny byte-level Llama for tests, "random:NAME" that model's true shapes
    untrained, for speed work."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters trained in S2T and Echo."""
    system: str = "Answer in one short sentence."
    """System message of every conversation that has none; empty for none."""
    attention: str = "sdpa"
    """Attention kernel of the library: sdpa, eager, flash_attention_2; on CPUs eager trains short conversations 1.7 times faster."""
    random_width: int = 64
    """Channels of the random model."""


# Tokens that a pass over the shared opening must save, for it costs as much as so many: every operation is called once more, and every
# weight read. Of SmolLM2-135M on a CPU, where 98 saved tokens made a step 6 % longer.
FRONT_COST = 128


@BACKBONES.register("hub", HubBackboneConfig)
class HubBackbone(Backbone):
    """Llama, Qwen, SmolLM2 and whatever else `AutoModelForCausalLM` loads."""

    def __init__(self, config: HubBackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.model, self.tokenizer = _load(config)
        self.model.requires_grad_(False)
        self.hidden_size = self.model.config.hidden_size
        self.vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self.end_id = turn_end(self.tokenizer)
        self.other_end_ids = other_ends(self.tokenizer, self.model.generation_config.eos_token_id, self.end_id)
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id
        self.max_positions = getattr(self.model.config, "max_position_embeddings", None)
        self._origin = _probe(self.model)
        add_lora(self.model, config.lora)
        self._frozen_layers = _frozen_below(self.model.base_model)

    @classmethod
    def outline(cls, config: HubBackboneConfig) -> HubBackbone:
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: HubBackboneConfig) -> list[str]:
        return missing_weights(config.weights)

    @classmethod
    def packages(cls, config: HubBackboneConfig) -> Sequence[OptionalPackage]:
        return packages_to_fetch(config.weights)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def forward(self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False) -> BackboneState:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        body = self.model.base_model
        if use_cache and cache is None:
            cache = transformers.DynamicCache(config=body.config)
        output = body(inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions, use_cache=use_cache, **cached(body, cache))
        return BackboneState(output.last_hidden_state, cache if use_cache else None)

    def whole(self, embeddings: Tensor, mask: Tensor, shared: int) -> Tensor:
        B = embeddings.shape[0]
        if (B - 1) * shared < FRONT_COST:
            return super().whole(embeddings, mask, shared)
        front = self(embeddings[:1, :shared], mask[:1, :shared], use_cache=True)
        front.cache.batch_repeat_interleave(B)
        rest = self(embeddings[:, shared:], mask, front.cache, use_cache=True)
        return torch.cat([front.hidden.expand(B, -1, -1), rest.hidden], dim=1)

    def frozen_layers(self) -> int:
        return self._frozen_layers

    def lower(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        with self._running(slice(0, self.frozen_layers()), norm=False):
            return self(embeddings, mask).hidden

    def upper(self, states: Tensor, mask: Tensor) -> Tensor:
        with self._running(slice(self.frozen_layers(), None), norm=True):
            return self(states, mask).hidden

    @contextmanager
    def _running(self, chosen: slice, *, norm: bool) -> Iterator[None]:
        """Inside, all layers but the chosen hand their input on; masks and positions are made by the library as ever."""
        body = self.model.base_model
        layers, final_norm = body.layers, body.norm
        places = range(len(layers))[chosen]
        body.layers = nn.ModuleList(layer if place in places else _HandsOn() for place, layer in enumerate(layers))
        body.norm = final_norm if norm else nn.Identity()
        try:
            yield
        finally:
            body.layers, body.norm = layers, final_norm

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    def head_rows(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def llama(self) -> transformers.LlamaModel | None:
        plain = type(self.model) is transformers.LlamaForCausalLM and not (self.model.config.attention_bias or self.model.config.mlp_bias)
        return self.model.model if plain else None

    def weight_of(self, projection: nn.Linear) -> Tensor:
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not isinstance(projection, BaseTunerLayer) or projection.disable_adapters or projection.merged:
            return projection.weight
        return sum((projection.get_delta_weight(name) for name in projection.active_adapters), projection.weight.float())

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def detokenize(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def token_texts(self) -> list[str]:
        special = special_ids(self.tokenizer)
        known = len(self.tokenizer)
        return ["" if i in special or i >= known else self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(self.vocab_size)]

    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        if self.config.system and all(turn.role != "system" for turn in turns):
            turns = [Turn("system", self.config.system), *turns]
        # A text may hold the mark itself, and must not be split there.
        contents = [(AUDIO_MARK if turn.has_audio else "") + turn.text.replace(AUDIO_MARK, "") for turn in turns]
        messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents)]
        return [self.tokenize(piece) for piece in written(self.tokenizer, messages, opened=True).split(AUDIO_MARK)]

    @contextmanager
    def as_pretrained(self) -> Iterator[None]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        trained = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            # Switching adapters sets this flag too, and not always back to what it was.
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self._origin, self.config.system]).encode()).hexdigest()[:16]


def _frozen_below(body: nn.Module) -> int:
    """Layers below the first that learns, in a model whose layers and final norm stand where Llama has them; 0 in others."""
    if not isinstance(getattr(body, "layers", None), nn.ModuleList) or not hasattr(body, "norm"):
        return 0
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in body.layers]
    return learns.index(True) if any(learns) else 0


class _HandsOn(nn.Module):
    """A transformer layer that does nothing."""

    def forward(self, states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return states


def _load(config: HubBackboneConfig) -> tuple[nn.Module, Any]:
    if config.weights == "random":
        return _random_model(config)
    if config.weights.startswith(UNTRAINED):
        return _untrained(config)
    return _pretrained(config)


def _pretrained(config: HubBackboneConfig) -> tuple[nn.Module, Any]:
    folder = asset_folder(config.weights)
    with loading("a causal language model with its tokenizer", folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=config.attention)
        return model, transformers.AutoTokenizer.from_pretrained(folder)


def _random_model(config: HubBackboneConfig) -> tuple[nn.Module, Any]:
    tokenizer = byte_tokenizer()
    width = config.random_width
    shape = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    with _one_draw():
        return transformers.LlamaForCausalLM(shape), tokenizer


def _untrained(config: HubBackboneConfig) -> tuple[nn.Module, Any]:
    """The shapes of a known model; its tokenizer where that is here, else bytes, which are ids of any vocabulary."""
    reference = config.weights.removeprefix(UNTRAINED)
    folder = tokenizer_folder(reference)
    with loading("a causal language model with its tokenizer", reference), _one_draw():
        model = transformers.AutoModelForCausalLM.from_config(shape_of(reference), dtype=torch.float32, attn_implementation=config.attention)
        return model, byte_tokenizer() if folder is None else transformers.AutoTokenizer.from_pretrained(folder)


@contextmanager
def _one_draw() -> Iterator[None]:
    """Random, but the same weights in every stage and on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer made on the spot: one token per byte, plus role and end marks and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=specials[1:], chat_template=BYTE_TEMPLATE)


def _probe(model: nn.Module) -> list[float]:
    """A few sums that tell one set of weights from another, cheap at any size."""
    with torch.no_grad():
        return [p.flatten()[:64].double().sum().item() for p in model.parameters() if not p.is_meta]
