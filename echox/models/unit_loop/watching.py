"""Learning which rows have ended: at once on a CPU, some steps late on a GPU, which is never waited for in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.unit_decode import UnitState

EVERY = 4  # steps between two looks at a GPU
AHEAD = 4  # looks that may be on their way: the host runs at most so far ahead


@dataclass(frozen=True, slots=True)
class End:
    """A request that has ended."""

    ticket: int
    length: int  # tokens it said
    failed: bool


class Watch(ABC):
    """Looks at the state after every step."""

    @abstractmethod
    def look(self, state: UnitState, tickets: Sequence[int]) -> list[End]:
        """Requests known to have ended, as far as one knows now; `tickets` say who sits in the first rows. One may be told twice."""

    @abstractmethod
    def fetch(self, *found: Tensor) -> Parcel:
        """Tensors of a row that is about to be given away, on their way to the host."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Tensors on the host, or on their way there."""

    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None = None  # when they have arrived; None is now

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def opened(self) -> tuple[Tensor, ...]:
        """The tensors, waited for."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


class PlainWatch(Watch):
    """For a CPU, where reading a value costs nothing."""

    def look(self, state: UnitState, tickets: Sequence[int]) -> list[End]:
        finished = state.finished.tolist()
        if True not in finished:
            return []
        table = zip(tickets, finished, state.length.tolist(), state.failed.tolist())
        return [End(ticket, length, failed) for ticket, ended, length, failed in table if ended]

    def fetch(self, *found: Tensor) -> Parcel:
        return Parcel(tuple(tensor.clone() for tensor in found))


class PinnedWatch(Watch):
    """For a GPU: copies into pinned memory, and an event says when they are there."""

    def __init__(self) -> None:
        self._steps = 0
        self._looks: deque[tuple[Parcel, tuple[int, ...]]] = deque()

    def look(self, state: UnitState, tickets: Sequence[int]) -> list[End]:
        self._steps += 1
        if self._steps % EVERY == 0:
            self._looks.append((self.fetch(torch.stack([state.finished, state.length, state.failed])), tuple(tickets)))
        ends: list[End] = []
        while self._looks and (len(self._looks) > AHEAD or self._looks[0][0].arrived()):
            parcel, seated = self._looks.popleft()
            finished, length, failed = (row.tolist() for row in parcel.opened()[0])
            ends += [End(ticket, length[row], bool(failed[row])) for row, ticket in enumerate(seated) if finished[row]]
        return ends

    def fetch(self, *found: Tensor) -> Parcel:
        pinned = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True) for tensor in found)
        event = torch.cuda.Event()
        event.record()
        return Parcel(pinned, event)
