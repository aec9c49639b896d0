"""Hidden states of a language model's frozen lower layers, computed once per conversation.

Where the speech adapter is frozen and LoRA adapts the upper layers alone, the lower layers compute
the same states of a conversation at every step, which would take most of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.core.files import json_hash
from echox.core.signals import Batch, padded, valid_mask
from echox.core.sources import Code
from echox.data.cache import ArrayCache
from echox.data.code_caches import adopt
from echox.models.speech_llm import IGNORE
from echox.tasks.conversations import Clip, clip_key

BATCH_COST = 4096  # tokens that run through the frozen layers at once, padding included


@dataclass(frozen=True, slots=True)
class StatesBatch(Batch):
    """B conversations as the trained layers read them: states [B, P, H], targets [B, S]."""

    states: Tensor  # [B, P, H] float32 after the frozen layers, right-padded
    lengths: Tensor  # [B] positions
    targets: Tensor  # [B, S] ids that end the conversations, IGNORE-padded
    target_lengths: Tensor  # [B] ids

    def mask(self) -> Tensor:
        """Bool [B, P], True where real."""
        return valid_mask(self.lengths, self.states.shape[1])

    def target_states(self, hidden: Tensor) -> Tensor:
        """States that predict the targets, row by row.

        Args:
            hidden: [B, P, H] hidden states of the batch.

        Returns:
            [N, H] for the N targets of all rows.
        """
        within = torch.arange(self.targets.shape[1], device=hidden.device)
        # The targets are a row's last ids, and each is predicted one position earlier.
        at = (self.lengths - self.target_lengths - 1)[:, None] + within
        # Clamped where a row's padded targets reach past the longest row.
        at = at.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2])
        return hidden.gather(1, at)[self.targets != IGNORE]


@dataclass(frozen=True, slots=True)
class CachedConversation:
    """A training conversation with target [S], whose states are cached."""

    row_id: str
    key: str  # of the states
    target: tuple[int, ...]  # ids of the answer


class FrozenStates:
    """Cache of the states of conversations on disk.

    Args:
        folder: of the cache.
        makers: what the states depend on besides the conversation, by name, JSON-ready.
        code: of the encoder and the language model.
    """

    def __init__(self, folder: Path, makers: Mapping[str, object], code: Code) -> None:
        earlier = json_hash(dict(makers), 24)
        fingerprint = json_hash({**makers, "code": code.digest}, 24)
        if code.is_own:
            adopt(folder, earlier, fingerprint)
        self.cache = ArrayCache(folder, fingerprint)

    def fill(
        self,
        keys: Sequence[str],
        compute: Callable[[list[int]], list[Tensor]],
        costs: Sequence[int],
    ) -> None:
        """Compute the states that are missing; safe to kill and call again.

        Args:
            keys: of `conversation_key`, one for each conversation.
            compute: indices in `keys` -> states [P, H] of each conversation.
            costs: tokens of each conversation.

        Raises:
            AssetError: the disk is full or the folder cannot be written.
        """
        # A key that occurs twice is computed once, from the last conversation that has it.
        indices = {key: index for index, key in enumerate(keys)}
        self.cache.fill(
            keys,
            lambda missing: compute([indices[key] for key in missing]),
            costs=costs,
            batch_cost=BATCH_COST,
            label="frozen layers",
        )

    def batch(self, examples: Sequence[CachedConversation]) -> StatesBatch:
        """Pad the states of conversations to one batch [B, P, H]."""
        states = [self.cache[example.key] for example in examples]
        return StatesBatch(
            row_ids=tuple(example.row_id for example in examples),
            count=sum(len(example.target) for example in examples),
            # The cache holds bfloat16 where the context says so; the layers above take float32.
            states=pad_sequence(states, batch_first=True).float(),
            lengths=torch.tensor([len(state) for state in states]),
            targets=padded([example.target for example in examples], IGNORE),
            target_lengths=torch.tensor([len(example.target) for example in examples]),
        )


def conversation_key(prompt: Sequence[int], target: Sequence[int], clips: Sequence[Clip]) -> str:
    """Key of a conversation's states: its token ids, and its clips as their files are now."""
    return json_hash([list(prompt), list(target), [clip_key(clip) for clip in clips]], 24)
