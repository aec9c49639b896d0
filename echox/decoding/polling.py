"""Which requests have finished: known at once on a CPU, some steps late on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.unit_decode import UnitState

# Steps between two copies of the flags: a copy and its event cost host time at every step.
EVERY = 4
# Copies that may be under way: the host runs at most AHEAD * EVERY steps ahead of the GPU.
AHEAD = 4


@dataclass(frozen=True, slots=True)
class Finish:
    """A request that has finished."""

    ticket: int
    length: int  # tokens
    failed: bool  # its scores were NaN or infinite


@dataclass(frozen=True, slots=True)
class HostCopy:
    """Tensors on the host, or on their way there."""

    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None = None  # recorded behind the copies; None if they are complete

    def arrived(self) -> bool:
        """Whether the copies are complete, without waiting."""
        return self.event is None or self.event.query()

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the copies and return the tensors."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


class FinishPoller(ABC):
    """Reads the finished flags after every step."""

    @abstractmethod
    def poll(self, state: UnitState, tickets: Sequence[int]) -> list[Finish]:
        """The requests that are known to have finished.

        On a GPU the flags are copied asynchronously, so a request is reported up to
        `AHEAD * EVERY` steps late and possibly more than once; callers ignore repeats.

        Args:
            state: progress of the active slots, one row [A] each.
            tickets: `tickets[i]` is the request in slot i.
        """

    @abstractmethod
    def fetch(self, *tensors: Tensor) -> HostCopy:
        """Start copying tensors of a slot to the host, before the slot is reused."""


class ImmediateFinishPoller(FinishPoller):
    """The poller of a CPU, where reading a value costs nothing."""

    def poll(self, state: UnitState, tickets: Sequence[int]) -> list[Finish]:
        """The requests in active slots that have finished by this step."""
        finished = state.finished.tolist()
        # Most steps finish nothing, and then the other two tensors need not be read.
        if True not in finished:
            return []
        table = zip(tickets, finished, state.length.tolist(), state.failed.tolist())
        return [Finish(ticket, length, failed) for ticket, ended, length, failed in table if ended]

    def fetch(self, *tensors: Tensor) -> HostCopy:
        """Complete copies."""
        # Clones: the views would change with the slot's next request.
        return HostCopy(tuple(tensor.clone() for tensor in tensors))


class PinnedFinishPoller(FinishPoller):
    """The poller of a GPU: copies to pinned memory, each followed by an event."""

    def __init__(self) -> None:
        self._steps = 0
        self._pending: deque[tuple[HostCopy, tuple[int, ...]]] = deque()

    def poll(self, state: UnitState, tickets: Sequence[int]) -> list[Finish]:
        """The requests whose flags have arrived; see `FinishPoller.poll`."""
        self._steps += 1
        if self._steps % EVERY == 0:
            flags = torch.stack([state.finished, state.length, state.failed])  # int64 [3, A]
            self._pending.append((self.fetch(flags), tuple(tickets)))
        finishes: list[Finish] = []
        # The oldest copy is waited for only where too many are under way.
        while self._pending and (len(self._pending) > AHEAD or self._pending[0][0].arrived()):
            copy, active = self._pending.popleft()
            finished, length, failed = (column.tolist() for column in copy.wait()[0])
            finishes += [
                Finish(ticket, length[slot], bool(failed[slot]))
                for slot, ticket in enumerate(active)
                if finished[slot]
            ]
        return finishes

    def fetch(self, *tensors: Tensor) -> HostCopy:
        """Copies in pinned memory, complete once the event of this call has passed."""
        pinned = tuple(
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        )
        event = torch.cuda.Event()
        event.record()
        return HostCopy(pinned, event)
