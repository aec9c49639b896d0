"""Monotonic alignment of units to text tokens, learned from pairs of text and units alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.core.signals import valid_mask
from echox.models.spelling import FIRST_LETTER, LETTERS, OTHER, letter_ids

# A log-probability of zero; finite, for -inf minus -inf would make NaN in the gradient.
IMPOSSIBLE = -1e9
LETTERS_ALIGNED = 24  # of a token; longer ones are cut


class UnitAligner(nn.Module):
    """A left-to-right hidden Markov model whose states are letters and whose emissions are units.

    Each letter, seen with its neighbours, has a distribution over units; training maximises the
    probability of the units summed over all monotonic alignments. Because it must explain the units
    (instead of choosing among the text, as attention does) it cannot fall into giving everything to
    one token, and it settles within a few hundred steps.

    Source of the training principle: Rabiner 1989, A Tutorial on Hidden Markov Models, section III.
    """

    def __init__(self, unit_count: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(FIRST_LETTER + len(LETTERS), width)
        self.near = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(3))
        self.emit = nn.Linear(width, unit_count)

    def forward(self, letters: Tensor, letter_lengths: Tensor, units: Tensor) -> Tensor:
        """Emission scores of the units that were recorded.

        Args:
            letters: letter ids [B, L], right-padded.
            letter_lengths: [B].
            units: [B, U].

        Returns:
            log p(unit u | letter l) [B, U, L]; IMPOSSIBLE at padded letters.
        """
        real = valid_mask(letter_lengths, letters.shape[1])[:, None]  # [B, 1, L]
        states = self.embed(letters).transpose(1, 2) * real
        # Masked after each layer, or padding would reach the last letters through the next one.
        for layer in self.near:
            states = (states + F.gelu(layer(states))) * real
        log_probs = self.emit(states.transpose(1, 2)).float().log_softmax(-1)  # [B, L, V]
        index = units[:, None, :].expand(-1, letters.shape[1], -1)
        return log_probs.gather(2, index).transpose(1, 2).masked_fill(~real, IMPOSSIBLE)


def alignment_loss(emissions: Tensor, letter_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
    """Negative log-likelihood over all alignments that give every letter at least one unit.

    Args:
        emissions: [B, U, L] from `UnitAligner`.
        letter_lengths: [B].
        unit_lengths: [B], each at least the row's letters.

    Returns:
        mean over the batch [], nats per unit.
    """
    B, U, L = emissions.shape
    # The forward algorithm: after unit u, the log-probability of being in each letter.
    forward = [F.pad(emissions[:, 0, :1], (0, L - 1), value=IMPOSSIBLE)]
    for u in range(1, U):
        advanced = F.pad(forward[-1][:, :-1], (1, 0), value=IMPOSSIBLE)
        forward.append(torch.logaddexp(forward[-1], advanced) + emissions[:, u])
    table = torch.stack(forward, dim=1)  # [B, U, L]
    rows = torch.arange(B, device=emissions.device)
    return (-table[rows, unit_lengths - 1, letter_lengths - 1] / unit_lengths).mean()


def best_alignment(emissions: Tensor, letter_lengths: Tensor, unit_lengths: Tensor) -> Tensor:
    """The likeliest alignment that gives every letter at least one unit, by the Viterbi algorithm.

    Args:
        emissions: [B, U, L] from `UnitAligner`.
        letter_lengths: [B].
        unit_lengths: [B], each at least the row's letters.

    Returns:
        units per letter, int64 [B, L], zero at padding; rows sum to unit_lengths.
    """
    B, U, L = emissions.shape
    # Unreachable letters lie below padded ones, whose emissions are IMPOSSIBLE.
    best = F.pad(emissions[:, 0, :1], (0, L - 1), value=2 * IMPOSSIBLE)
    advances = torch.zeros(B, U, L, dtype=torch.bool, device=emissions.device)
    for u in range(1, U):
        advanced = F.pad(best[:, :-1], (1, 0), value=2 * IMPOSSIBLE)
        advances[:, u] = advanced > best
        scores = torch.maximum(advanced, best) + emissions[:, u]
        best = torch.where((u < unit_lengths)[:, None], scores, best)
    # Back from each row's last letter, one letter down wherever the path advanced.
    counts = torch.zeros(B, L, dtype=torch.int64, device=emissions.device)
    letter = letter_lengths - 1
    rows = torch.arange(B, device=emissions.device)
    for u in range(U - 1, -1, -1):
        real = u < unit_lengths
        counts[rows, letter] += real
        letter = letter - (advances[rows, u, letter] & real).long()
    return counts


def states_of(text: str) -> list[int]:
    """The letters that a token is aligned by; a token without letters has one state."""
    return letter_ids(text)[:LETTERS_ALIGNED] or [OTHER]
