"""Runs of equal units, and the way back: merging with durations, expansion of words and durations; plain PyTorch, no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.signals import valid_mask

NOTHING = -1


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run each row's stream ended in, which the next chunk may continue."""

    unit: Tensor  # int64 [B], -1 where there is none
    duration: Tensor  # int64 [B] frames so far

    @classmethod
    def none(cls, batch: int, device: torch.device | str = "cpu") -> OpenRun:
        """Before the first chunk."""
        return cls(torch.full((batch,), NOTHING, device=device), torch.zeros(batch, dtype=torch.int64, device=device))


@dataclass(frozen=True, slots=True)
class Runs:
    """Merged units."""

    units: Tensor  # int64 [B, R], 0 past the length
    durations: Tensor  # int64 [B, R] frames, 0 past the length
    lengths: Tensor  # int64 [B] runs
    open: OpenRun  # what was held back


@dataclass(frozen=True, slots=True)
class Expansion:
    """What was spelled out, in a table of fixed size."""

    values: Tensor  # int64 [B, F], 0 past the length
    lengths: Tensor  # int64 [B] of what is in the table
    wanted: Tensor  # int64 [B] of what there was to spell; larger than `lengths` where the table was too small


@dataclass(frozen=True, slots=True)
class Spellings:
    """The units of each word, one after the other."""

    offsets: Tensor  # int64 [W + 1]: word w is units[offsets[w] : offsets[w + 1]]
    units: Tensor  # int64 [N]

    @classmethod
    def of(cls, words: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Spellings:
        """
        Args:
            words: the units of each word; a word may be empty.
        Raises:
            ConfigError: there is no word, or none has a unit.
        """
        units = [unit for word in words for unit in word]
        if not units:
            raise ConfigError(f"a unit language of {len(words)} words spells no unit; give the units of each word")
        sizes = torch.tensor([0, *map(len, words)])
        return cls(sizes.cumsum(0).to(device), torch.tensor(units, device=device))


def merged(units: Tensor, lengths: Tensor, open: OpenRun, last: Tensor) -> Runs:
    """See `dedup_units`; [B, T] -> Runs of T + 1 columns."""
    T = units.shape[1]
    # The open run comes first, as one frame of a longer duration.
    line = torch.cat([open.unit[:, None], units], 1)
    real = torch.cat([open.duration[:, None] > 0, valid_mask(lengths, T)], 1)
    frames = torch.cat([open.duration[:, None], torch.ones_like(units)], 1) * real
    before = torch.cat([torch.full_like(open.unit[:, None], NOTHING), line[:, :-1]], 1)
    starts = real & (line != before)
    found = starts.sum(1)
    column = torch.where(real, starts.cumsum(1) - 1, T + 1)  # the last one is thrown away
    spare = frames.new_zeros(len(line), T + 2)
    durations = spare.scatter_add(1, column, frames)[:, :-1]
    ids = spare.scatter(1, column, line)[:, :-1]
    held = ~last & (found > 0)
    end = (found - 1).clamp(min=0)[:, None]
    unit = torch.where(held, ids.gather(1, end)[:, 0], NOTHING)
    duration = torch.where(held, durations.gather(1, end)[:, 0], 0)
    count = found - held.long()
    kept = valid_mask(count, T + 1)
    return Runs(ids * kept, durations * kept, count, OpenRun(unit, duration))


def spelled(words: Tensor, lengths: Tensor, spellings: Spellings, capacity: int) -> Expansion:
    """See `expand_words`."""
    W = len(spellings.offsets) - 1
    known = valid_mask(lengths, words.shape[1]) & (words >= 0) & (words < W)
    words = words.where(known, 0)
    sizes = (spellings.offsets[words + 1] - spellings.offsets[words]) * known
    source, inside, expansion = _places(sizes, capacity)
    at = (spellings.offsets[words].gather(1, source) + inside).clamp(max=len(spellings.units) - 1)
    return _filled(spellings.units[at], expansion)


def lasting(units: Tensor, durations: Tensor, lengths: Tensor, capacity: int) -> Expansion:
    """See `expand_durations`."""
    sizes = durations.clamp(min=0) * valid_mask(lengths, units.shape[1])
    source, _, expansion = _places(sizes, capacity)
    return _filled(units.gather(1, source), expansion)


def _places(sizes: Tensor, capacity: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Sizes [B, U] -> for each place of the table [B, F] the item it belongs to and the how-manieth of it, and its lengths."""
    ends = sizes.cumsum(1)
    wanted = ends[:, -1]
    place = torch.arange(capacity, device=sizes.device).expand(len(sizes), -1).contiguous()
    source = torch.searchsorted(ends, place, right=True).clamp(max=sizes.shape[1] - 1)
    inside = place - (ends - sizes).gather(1, source)
    return source, inside, (wanted.clamp(max=capacity), wanted)


def _filled(values: Tensor, lengths: tuple[Tensor, Tensor]) -> Expansion:
    return Expansion(values * valid_mask(lengths[0], values.shape[1]), *lengths)
