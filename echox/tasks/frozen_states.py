"""States of a language model's frozen lower layers, computed once for each training conversation.

Where the speech adapter is frozen and LoRA stands in the upper layers alone, the lower layers make the same of a conversation at every step, and
most of a step would go into computing that again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.data.cache import ArrayCache
from echox.models.speech_llm import IGNORE
from echox.signals import Batch, valid_mask
from echox.tasks.spoken import Clip, clip_key, padded

BATCH_COST = 4096  # tokens that run through the frozen layers at once, padding included


@dataclass(frozen=True, slots=True)
class StatesBatch(Batch):
    """Conversations as the layers that learn meet them."""

    states: Tensor  # [B, P, H] float32 after the frozen layers, right-padded
    lengths: Tensor  # [B]
    targets: Tensor  # [B, S] ids that end the conversations, IGNORE-padded
    target_lengths: Tensor  # [B]

    def mask(self) -> Tensor:
        """Bool [B, P], True where real."""
        return valid_mask(self.lengths, self.states.shape[1])

    def predicting(self, hidden: Tensor) -> Tensor:
        """Those of hidden [B, P, H] that predict the targets, row by row: [N, H]."""
        before = torch.arange(self.targets.shape[1], device=hidden.device)
        at = (self.lengths - self.target_lengths - 1)[:, None] + before
        at = at.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2])
        return hidden.gather(1, at)[self.targets != IGNORE]


@dataclass(frozen=True, slots=True)
class KeptConversation:
    """A training conversation whose states are kept."""

    row_id: str
    key: str
    target: tuple[int, ...]


class FrozenStates:
    """The states of conversations on disk."""

    def __init__(self, folder: Path, makers: Mapping[str, object]) -> None:
        """Args: makers: whatever the states depend on beside the conversation, by its name, JSON-ready."""
        self.cache = ArrayCache(folder, _digest(dict(makers)))

    def fill(self, keys: Sequence[str], compute: Callable[[list[int]], list[Tensor]], costs: Sequence[int]) -> None:
        """Compute what is missing; safe to kill and call again.

        Args:
            keys: of `conversation_key`, one a conversation.
            compute: places in `keys` -> states [P_i, H] of each conversation.
            costs: tokens of each.
        """
        places = {key: place for place, key in enumerate(keys)}
        self.cache.fill(
            keys,
            lambda chosen: compute([places[key] for key in chosen]),
            costs=costs,
            batch_cost=BATCH_COST,
            label="frozen layers",
        )

    def batch(self, rows: Sequence[KeptConversation]) -> StatesBatch:
        """Conversations -> one padded batch."""
        states = [self.cache[row.key] for row in rows]
        return StatesBatch(
            row_ids=tuple(row.row_id for row in rows),
            count=sum(len(row.target) for row in rows),
            states=pad_sequence(states, batch_first=True).float(),
            lengths=torch.tensor([len(state) for state in states]),
            targets=padded([row.target for row in rows], IGNORE),
            target_lengths=torch.tensor([len(row.target) for row in rows]),
        )


def conversation_key(prompt: Sequence[int], target: Sequence[int], clips: Sequence[Clip]) -> str:
    """What a conversation's states are kept under: its ids and its clips as their files are now."""
    return _digest([list(prompt), list(target), [clip_key(clip) for clip in clips]])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
