"""Which units sound which text token: a monotonic alignment learned from pairs of text and units alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.models.spelling import FIRST_LETTER, LETTERS, OTHER
from echox.signals import valid_mask

IMPOSSIBLE = -1e9


class UnitAligner(nn.Module):
    """A left-to-right hidden Markov model whose states are letters and whose emissions are units.

    Each letter, seen with its neighbours, has a distribution over units; training maximises the probability of the units summed
    over all monotonic alignments. Because it must explain the units (instead of choosing among the text, as attention does) it
    cannot fall into giving everything to one token, and it settles within a few hundred steps.
    Source of the training principle: Rabiner 1989, A Tutorial on Hidden Markov Models, section III.
    """

    def __init__(self, unit_count: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(FIRST_LETTER + len(LETTERS), width)
        self.near = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(3))
        self.emit = nn.Linear(width, unit_count)

    def forward(self, letters: Tensor, letter_lengths: Tensor, units: Tensor) -> Tensor:
        """Emission scores.

        Args:
            letters: [B, L] letter ids, right-padded; units: [B, U].
        Returns:
            log p(unit u | letter l) [B, U, L]; IMPOSSIBLE at padded letters.
        """
        real = valid_mask(letter_lengths, letters.shape[1])[:, None]
        states = self.embed(letters).transpose(1, 2) * real
        for layer in self.near:
            states = (states + F.gelu(layer(states))) * real
        log_probs = self.emit(states.transpose(1, 2)).float().log_softmax(-1)  # [B, L, V]
        index = units[:, None, :].expand(-1, letters.shape[1], -1)
        return log_probs.gather(2, index).transpose(1, 2).masked_fill(~real, IMPOSSIBLE)


def alignment_loss(emissions: Tensor, letter_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
    """Negative log-likelihood per unit, summed over all alignments that give every letter at least one unit.

    Args:
        emissions: [B, U, L] from `UnitAligner`.
    Returns:
        [] mean over the batch, nats per unit.
    """
    B, U, L = emissions.shape
    reached = [F.pad(emissions[:, 0, :1], (0, L - 1), value=IMPOSSIBLE)]
    for u in range(1, U):
        stepped = F.pad(reached[-1][:, :-1], (1, 0), value=IMPOSSIBLE)
        reached.append(torch.logaddexp(reached[-1], stepped) + emissions[:, u])
    table = torch.stack(reached, dim=1)  # [B, U, L]
    rows = torch.arange(B, device=emissions.device)
    return (-table[rows, unit_lengths - 1, letter_lengths - 1] / unit_lengths).mean()


def best_alignment(emissions: Tensor, letter_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
    """The likeliest alignment that gives every letter at least one unit.

    Args:
        emissions: [B, U, L]; every row needs unit_lengths >= letter_lengths.
    Returns:
        units per letter, int64 [B, L], zero at padding; rows sum to unit_lengths.
    """
    B, U, L = emissions.shape
    best = F.pad(emissions[:, 0, :1], (0, L - 1), value=2 * IMPOSSIBLE)
    moved = torch.zeros(B, U, L, dtype=torch.bool, device=emissions.device)
    for u in range(1, U):
        stepped = F.pad(best[:, :-1], (1, 0), value=2 * IMPOSSIBLE)
        moved[:, u] = stepped > best
        best = torch.where((u < unit_lengths)[:, None], torch.maximum(stepped, best) + emissions[:, u], best)
    counts = torch.zeros(B, L, dtype=torch.int64, device=emissions.device)
    at = letter_lengths - 1
    rows = torch.arange(B, device=emissions.device)
    for u in range(U - 1, -1, -1):
        live = u < unit_lengths
        counts[rows, at] += live
        at = at - (moved[rows, u, at] & live).long()
    return counts


def states_of(text: str) -> list[int]:
    """The letters a token is aligned by: its spelling without the leading space; a token without letters has one state."""
    marks = [FIRST_LETTER + LETTERS.find(c) if c in LETTERS else OTHER for c in text.strip().lower()]
    return marks[:24] or [OTHER]
