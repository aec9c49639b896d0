"""Text rows of the unit decoder: the LLM's own output rows, and how each token is spelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz'0123456789.,!?-"
PAD, START, OTHER = 0, 1, 2  # START marks a leading space: the token begins a word
FIRST_LETTER = 3
LETTERS_IN_GROUP = range(1, 5)
LETTERS_READ = 16  # of a token; longer ones are rare
GROUP_SCALE = 0.05


def spell(texts: list[str], length: int) -> Tensor:
    """Token strings -> letter ids uint8 [V, length], zero-padded; case is dropped, a leading space becomes START."""
    rows = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(rows, texts):
        if not text:
            continue
        marks = [START] if text.startswith(" ") else []
        marks += [FIRST_LETTER + LETTERS.find(c) if c in LETTERS else OTHER for c in text.strip().lower()]
        row[: len(marks[:length])] = torch.tensor(marks[:length], dtype=torch.uint8)
    return rows


class TextRows(nn.Module):
    """One vector per token of the LLM's vocabulary: its frozen output row plus, where wanted, its spelling.

    An LLM's rows say what a token means, not how it sounds; a small corpus cannot teach the sound of every token one by one.
    The spelling is read by a convolution over letters, so that a token never heard in training is still pronounced.
    The rows are those of the output head because hidden states live in that space (the EchoX release ties them likewise).
    """

    def __init__(self, head_rows: Tensor, texts: list[str], spelling_channels: int, letters: int = 16) -> None:
        """Args: head_rows [V, H], frozen here; texts: surface string of each id; spelling_channels: 0 leaves spelling out."""
        super().__init__()
        V, H = head_rows.shape
        self.hidden_size = H
        rows = head_rows.detach().float()
        self.register_buffer("rows", rows / rows.square().mean().sqrt(), persistent=False)  # unit RMS over the table
        self.spelling: nn.Module | None = None
        if spelling_channels:
            self.register_buffer("letters", spell(texts, letters), persistent=False)
            self.spelling = SpellingReader(spelling_channels, H)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> text vectors [..., H]."""
        vectors = self.rows[ids]
        if self.spelling is None:
            return vectors
        return vectors + self.spelling(self.letters[ids].long())

    def expected(self, logits: Tensor, candidates: int) -> Tensor:
        """The expected text vector under next-token logits [..., V], over the `candidates` likeliest tokens -> [..., H]."""
        if candidates == 1:
            # As greedy text chooses: of equal scores, which are common in bfloat16, `topk` may take another.
            return self(logits.float().argmax(-1)).float()
        top = logits.float().topk(candidates, dim=-1)
        return torch.einsum("...k,...kh->...h", top.values.softmax(-1), self(top.indices).float())


class SpellingReader(nn.Module):
    """Letter ids [..., C] -> one vector [..., H]."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(FIRST_LETTER + len(LETTERS), channels, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(16, channels) * 0.1)
        self.near = nn.Conv1d(channels, 2 * channels, 3, padding=1)
        self.far = nn.Conv1d(2 * channels, 2 * channels, 3, padding=1)
        self.out = nn.Linear(6 * channels, hidden_size)

    def forward(self, letters: Tensor) -> Tensor:
        flat = letters.reshape(-1, letters.shape[-1])
        real = (flat != PAD)[:, None].to(self.position.dtype)
        states = (self.embed(flat) + self.position[: flat.shape[1]]).transpose(1, 2) * real
        states = F.gelu(self.near(states)) * real
        states = (states + F.gelu(self.far(states))) * real
        # First and second half apart keep the order of letters that a mean would lose.
        count = real.sum(2).clamp(min=1.0)
        halves = torch.arange(states.shape[2], device=states.device)[None, None] < (count[:, :, None] / 2)
        pooled = torch.cat([(states * halves).sum(2), (states * ~halves).sum(2), states.sum(2) / count], dim=1)
        return self.out(pooled).reshape(*letters.shape[:-1], -1)


class NgramRows(nn.Module):
    """One vector per token: the sum of what its groups of letters are, by the square root of their number.

    It takes so few operations that thousands of tokens are read at each step, and no group is known to one token alone.
    Source: subword vectors of fastText, Bojanowski et al. 2017 (arXiv:1607.04606).
    """

    def __init__(self, texts: Sequence[str], channels: int, hidden_size: int) -> None:
        """Args: texts: surface string of each token; channels: of each group of letters, before they become vectors."""
        super().__init__()
        groups = [letter_groups(text) for text in texts]
        number = {group: place for place, group in enumerate(sorted({group for found in groups for group in found}), start=1)}
        members = torch.zeros(len(texts), max(map(len, groups)), dtype=torch.int32)
        for row, found in zip(members, groups):
            row[: len(found)] = torch.tensor([number[group] for group in found], dtype=torch.int32)
        self.register_buffer("members", members, persistent=False)
        self.groups = nn.EmbeddingBag(len(number) + 1, channels, mode="sum", padding_idx=0)
        self.out = nn.Linear(channels, hidden_size, bias=False)
        # Rows as long as 1, which those of the CTC head are at their start; groups so small that Adam's steps change them soon.
        nn.init.normal_(self.groups.weight, std=GROUP_SCALE)
        nn.init.normal_(self.out.weight, std=1 / (GROUP_SCALE * (channels * hidden_size) ** 0.5))

    def forward(self, tokens: Tensor | None = None) -> Tensor:
        """Vectors [N, H] of tokens [N], or of all."""
        members = self.members if tokens is None else self.members[tokens]
        return self.out(self.groups(members) * (members > 0).sum(1, keepdim=True).rsqrt())


def letter_groups(text: str) -> list[str]:
    """The groups of one to four letters of a token, which starts with "^" where it begins a word and ends with "$"; case is dropped."""
    marked = ("^" if text.startswith(" ") else "") + text.strip().lower()[:LETTERS_READ] + "$"
    return [marked[start : start + size] for size in LETTERS_IN_GROUP for start in range(len(marked) - size + 1)]
