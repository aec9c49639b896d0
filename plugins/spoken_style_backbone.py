"""A worked example of a backbone around another one: it asks for answers that can be said aloud.

    echox-train recipe=echo_mini backbone=spoken_style

A language model that was tuned on chats answers with lists, symbols and digits. This one says in
the system message how a spoken answer is to be, whatever else stands there, and leaves all
computing to the backbone inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import transformers
from torch import Tensor, nn

from echox.backbones.base import BACKBONES, Backbone, BackboneConfig, BackboneState, Turn
from echox.backbones.hub import HubBackboneConfig
from echox.core.packages import OptionalPackage

STYLE = (
    "Your answer will be read aloud: use short plain sentences, no lists, no symbols, and write "
    "numbers as words."
)


@dataclass(kw_only=True, slots=True)
class SpokenStyleConfig(BackboneConfig):
    """A language model that is asked to answer as one speaks."""

    inner: BackboneConfig = field(default_factory=HubBackboneConfig)
    """Language model that computes, `backbone.inner=NAME` and `backbone.inner.weights=...`."""
    style: str = STYLE
    """Sentences at the end of every system message."""


@BACKBONES.register("spoken_style", SpokenStyleConfig)
class SpokenStyleBackbone(Backbone):
    """Another backbone, with a sentence on spoken style in every system message.

    Args:
        config: the style, and the backbone inside.
        inner: the backbone inside, where it is built already; None builds it.
    """

    def __init__(self, config: SpokenStyleConfig, inner: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.inner = BACKBONES.build(config.inner) if inner is None else inner
        self.hidden_size, self.vocab_size = self.inner.hidden_size, self.inner.vocab_size
        self.end_id, self.pad_id = self.inner.end_id, self.inner.pad_id
        self.other_end_ids, self.max_positions = self.inner.other_end_ids, self.inner.max_positions

    @classmethod
    def outline(cls, config: SpokenStyleConfig) -> SpokenStyleBackbone:
        return cls(config, _implementation(config).outline(config.inner))

    @classmethod
    def missing(cls, config: SpokenStyleConfig) -> list[str]:
        return _implementation(config).missing(config.inner)

    @classmethod
    def packages(cls, config: SpokenStyleConfig) -> Sequence[OptionalPackage]:
        return _implementation(config).packages(config.inner)

    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        """Add the style to the conversation's system message, or begin with one."""
        if turns and turns[0].role == "system":
            system = replace(turns[0], text=f"{turns[0].text} {self.config.style}")
            return self.inner.prompt([system, *turns[1:]])
        return self.inner.prompt([Turn("system", self.config.style), *turns])

    def fingerprint(self) -> str:
        settings = f"{self.inner.fingerprint()}|{self.config.style}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    # All else is the inner backbone's. What has a default in `Backbone` is passed on too, or the
    # default would be used instead of what the inner backbone does.

    def embed(self, ids: Tensor) -> Tensor:
        return self.inner.embed(ids)

    def forward(
        self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False
    ) -> BackboneState:
        return self.inner(embeddings, mask, cache, use_cache)

    def forward_prefix_shared(self, embeddings: Tensor, mask: Tensor, shared: int) -> Tensor:
        return self.inner.forward_prefix_shared(embeddings, mask, shared)

    def frozen_layers(self) -> int:
        return self.inner.frozen_layers()

    def forward_lower(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.inner.forward_lower(embeddings, mask)

    def forward_upper(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.inner.forward_upper(states, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.logits(hidden)

    def head_rows(self) -> Tensor:
        return self.inner.head_rows()

    def llama(self) -> transformers.LlamaModel | None:
        return self.inner.llama()

    def weight_of(self, projection: nn.Module) -> Tensor:
        return self.inner.weight_of(projection)

    def tokenize(self, text: str) -> list[int]:
        return self.inner.tokenize(text)

    def detokenize(self, ids: list[int]) -> str:
        return self.inner.detokenize(ids)

    def token_texts(self) -> list[str]:
        return self.inner.token_texts()

    def as_pretrained(self) -> AbstractContextManager[None]:
        return self.inner.as_pretrained()


def _implementation(config: SpokenStyleConfig) -> type[Backbone]:
    return BACKBONES.entry_of(config.inner).implementation
