"""The release's language model as a backbone: its own prompt, and keys hidden within it."""

from __future__ import annotations

import hashlib
import json

import transformers
from torch import Tensor, nn

from echox.backbones.base import Backbone, BackboneState, Turn
from echox.core.errors import SignalError
from echox.models.release.causal import PromptCache, forward_llama
from echox.models.release.tokens import PROMPT_TOKENS, ReleaseTokens


class LanguageModel(Backbone):
    """A Llama with an untied output head, and the release's tokens."""

    def __init__(self, config: transformers.LlamaConfig, tokens: ReleaseTokens) -> None:
        """Build the layers, untrained.

        Args:
            config: of the body.
            tokens: the tokenizer of the checkpoint.
        """
        super().__init__()
        self.body = transformers.LlamaModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tokens = tokens
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        # The release pads with the end-of-turn token.
        self.end_id = self.pad_id = tokens.end_id
        self.max_positions = config.max_position_embeddings

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., H]."""
        return self.body.embed_tokens(ids)

    def forward(
        self,
        embeddings: Tensor,
        mask: Tensor,
        cache: PromptCache | None = None,
        use_cache: bool = False,
    ) -> BackboneState:
        """Run all layers; rows [B, S, H] are padded on the right.

        The mask [B, S_all] may hide tokens before a prompt's last one; positions count them.
        """
        return forward_llama(self.body, embeddings, mask, cache, use_cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> next-token logits [..., V]."""
        return self.head(hidden)

    def head_rows(self) -> Tensor:
        """Return the output head's weight [V, H]."""
        return self.head.weight

    def tokenize(self, text: str) -> list[int]:
        """Encode plain text as token ids, without begin-of-text."""
        return self.tokens.tokenizer(text, add_special_tokens=False).input_ids

    def detokenize(self, ids: list[int]) -> str:
        """Decode token ids to plain text; special tokens are dropped."""
        return self.tokens.text(ids)

    def token_texts(self) -> list[str]:
        """List the text of every token id, V strings; special tokens have ""."""
        return [self.tokens.text([token]) for token in range(self.vocab_size)]

    def prompt(self, turns: list[Turn]) -> list[list[int]]:
        """Render a conversation in the release's prompt, see `ReleaseTokens.prompt`.

        Returns:
            token ids around the audio placeholders, one list more than there are of them.

        Raises:
            SignalError: as `ReleaseTokens.prompt`; or the conversation is longer than those of
                the release's training.
        """
        ids = self.tokens.prompt(turns)
        # The release cut longer prompts in training, so the model has never read one.
        if len(ids) > PROMPT_TOKENS:
            raise SignalError(
                f"the conversation has {len(ids)} tokens, and EchoX was trained on {PROMPT_TOKENS} "
                "at most; shorten its text or drop its first turns"
            )
        pieces: list[list[int]] = [[]]
        for token in ids:
            if token == self.tokens.audio_id:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return pieces

    def fingerprint(self) -> str:
        """Hash the first values of every weight: 16 hexadecimal digits."""
        sums = [weight.flatten()[:64].double().sum().item() for weight in self.parameters()]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]
