"""Spellings of tokens as vectors: letters tell how a token sounds, which the LLM's rows do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz'0123456789.,!?-"
PAD, START, OTHER = 0, 1, 2  # START is a leading space: the token begins a word
FIRST_LETTER = 3  # id of LETTERS[0]
LETTERS_IN_GROUP = range(1, 5)
LETTERS_READ = 16  # of a token; longer ones are rare
GROUP_SCALE = 0.05  # standard deviation of new group vectors; the reason is in `NgramRows`


def letter_ids(text: str) -> list[int]:
    """The ids of a token's letters; case and surrounding spaces are dropped."""
    return [
        FIRST_LETTER + LETTERS.find(letter) if letter in LETTERS else OTHER
        for letter in text.strip().lower()
    ]


def spell(texts: list[str], length: int) -> Tensor:
    """Token strings as letter ids, a leading space as START.

    Args:
        texts: the V tokens.
        length: letters read of each.

    Returns:
        uint8 [V, length], zero-padded.
    """
    table = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(table, texts):
        if not text:
            continue
        ids = [START] if text.startswith(" ") else []
        ids = [*ids, *letter_ids(text)][:length]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.uint8)
    return table


class TextRows(nn.Module):
    """One vector per token: the LLM's frozen output row plus, where wanted, the token's spelling.

    An LLM's rows say what a token means, not how it sounds; a small corpus cannot teach the sound
    of every token one by one. The spelling is read by a convolution over letters, so that a token
    that no training example has is still pronounced. The rows are those of the output head because
    hidden states live in that space (the EchoX release ties them likewise).
    """

    rows: Tensor
    letters: Tensor

    def __init__(
        self,
        head_rows: Tensor,
        texts: list[str],
        spelling_channels: int,
        max_letters: int = LETTERS_READ,
    ) -> None:
        """Copy the rows, which stay frozen, and build the spelling network.

        Args:
            head_rows: the output head's weight [V, H].
            texts: the surface string of each token.
            spelling_channels: channels of the spelling network; 0 leaves it out.
            max_letters: letters read of each token.
        """
        super().__init__()
        V, H = head_rows.shape
        self.hidden_size = H
        rows = head_rows.detach().float()
        # Root mean square 1 over the table, so that language models of any scale fit the decoder.
        # Not in checkpoints: the rows come with the language model.
        self.register_buffer("rows", rows / rows.square().mean().sqrt(), persistent=False)
        self.spelling: nn.Module | None = None
        if spelling_channels:
            self.register_buffer("letters", spell(texts, max_letters), persistent=False)
            self.spelling = SpellingReader(spelling_channels, H)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> text vectors [..., H]."""
        vectors = self.rows[ids]
        if self.spelling is None:
            return vectors
        return vectors + self.spelling(self.letters[ids].long())


class SpellingReader(nn.Module):
    """Letter ids [..., C] -> one vector [..., H]."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(FIRST_LETTER + len(LETTERS), channels, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(LETTERS_READ, channels) * 0.1)
        self.near = nn.Conv1d(channels, 2 * channels, 3, padding=1)
        self.far = nn.Conv1d(2 * channels, 2 * channels, 3, padding=1)
        self.out = nn.Linear(6 * channels, hidden_size)

    def forward(self, letters: Tensor) -> Tensor:
        """Letter ids [..., C], zero-padded -> vectors [..., H]."""
        flat = letters.reshape(-1, letters.shape[-1])  # [N, C]
        # Masked after each layer: a convolution carries values into the padding.
        real = (flat != PAD)[:, None].to(self.position.dtype)  # [N, 1, C]
        states = (self.embed(flat) + self.position[: flat.shape[1]]).transpose(1, 2) * real
        states = F.gelu(self.near(states)) * real
        states = (states + F.gelu(self.far(states))) * real
        # First and second half apart keep the order of letters that a mean would lose.
        count = real.sum(2).clamp(min=1.0)  # [N, 1]; 1 for a token without letters
        indices = torch.arange(states.shape[2], device=states.device)[None, None]
        first_half = indices < (count[:, :, None] / 2)
        pooled = torch.cat(
            [(states * first_half).sum(2), (states * ~first_half).sum(2), states.sum(2) / count],
            dim=1,
        )
        return self.out(pooled).reshape(*letters.shape[:-1], -1)


class NgramRows(nn.Module):
    """One vector per token: the sum of its letter groups' vectors over the root of their number.

    It takes so few operations that thousands of tokens are read at each step, and no group is known
    to one token alone.

    Source: subword vectors of fastText, Bojanowski et al. 2017 (arXiv:1607.04606).
    """

    members: Tensor

    def __init__(self, texts: Sequence[str], channels: int, hidden_size: int) -> None:
        """Number the letter groups of all tokens and draw their vectors.

        Args:
            texts: the surface string of each token.
            channels: of each group's vector, before the projection.
            hidden_size: H.
        """
        super().__init__()
        groups = [letter_groups(text) for text in texts]
        # Sorted, so that the numbers and the random vectors do not depend on hashing. 0 is padding.
        distinct = sorted({group for members in groups for group in members})
        number = {group: index for index, group in enumerate(distinct, start=1)}
        table = torch.zeros(len(texts), max(map(len, groups)), dtype=torch.int32)
        for row, members in zip(table, groups):
            numbers = [number[group] for group in members]
            row[: len(members)] = torch.tensor(numbers, dtype=torch.int32)
        self.register_buffer("members", table, persistent=False)
        self.groups = nn.EmbeddingBag(len(number) + 1, channels, mode="sum", padding_idx=0)
        self.out = nn.Linear(channels, hidden_size, bias=False)
        # Vectors of about length 1, like those of the CTC head at its start; groups so small that
        # Adam's steps, whose size does not depend on the weight, change them soon.
        nn.init.normal_(self.groups.weight, std=GROUP_SCALE)
        nn.init.normal_(self.out.weight, std=1 / (GROUP_SCALE * (channels * hidden_size) ** 0.5))

    def forward(self, tokens: Tensor | None = None) -> Tensor:
        """Vectors [N, H] of tokens [N]; None is all tokens."""
        members = self.members if tokens is None else self.members[tokens]
        return self.out(self.groups(members) * (members > 0).sum(1, keepdim=True).rsqrt())


def letter_groups(text: str) -> list[str]:
    """The groups of one to four letters of a token, case dropped.

    The token starts with "^" where it begins a word, and ends with "$".
    """
    marked = ("^" if text.startswith(" ") else "") + text.strip().lower()[:LETTERS_READ] + "$"
    return [
        marked[start : start + size]
        for size in LETTERS_IN_GROUP
        for start in range(len(marked) - size + 1)
    ]
