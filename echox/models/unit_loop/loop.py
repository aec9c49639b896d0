"""The loop itself: requests enter free slots at any time, all seated ones take a step together, those that have ended leave."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Lock

import torch
from torch import Tensor

from echox.errors import ConfigError, SignalError
from echox.models.unit_loop.graphs import Graphs
from echox.models.unit_loop.seats import Seats
from echox.models.unit_loop.steps import Ask, Rows, Steps
from echox.models.unit_loop.watching import End, Parcel, PinnedWatch, PlainWatch


class Impl(enum.Enum):
    """How steps are run."""

    auto = "auto"  # captured on a GPU, plain on a CPU
    plain = "plain"  # operation by operation
    graph = "graph"  # as captured CUDA graphs


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a request got, on the host."""

    tokens: Tensor  # int64 [U, K], the token that stopped it included
    failed: bool  # its scores were no numbers: the tokens before that are all there are
    states: Tensor | None  # [U, C] hidden states that predicted the tokens, where they are kept


class UnitLoop:
    """Speaks many requests at once; what one says does not depend on which others there are.

    Weights are read once, when it is made: make another after training. It may be shared: whoever waits for a request moves all on.
    """

    def __init__(
        self,
        steps: Steps,
        *,
        slots: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        keep_states: bool = False,
        impl: Impl = Impl.auto,
    ) -> None:
        """
        Args:
            slots: requests that are stepped together; further ones wait.
            capacity: positions a request may take, its prompt and all tokens but the last.
            dtype: of weights, keys and values; None is autocast's where that is on, and the weights' own elsewhere.
            keep_states: give the hidden states too.
        Raises:
            ConfigError: graphs are asked for where there is no GPU.
        """
        self.steps = steps
        self.device = steps.head.weight.device
        on_gpu = self.device.type == "cuda"
        if impl is Impl.graph and not on_gpu:
            raise ConfigError(f"impl=graph captures CUDA graphs, and this unit decoder is on {self.device.type}; use impl=auto")
        self.slots, self.capacity = slots, capacity
        self.dtype = dtype or _current_dtype(steps)
        self._waiting: deque[tuple[int, Ask]] = deque()
        self._seated: list[int] = []  # tickets by slot
        self._fills: list[int] = []  # by slot, the position its next step stands at, or more where it has ended
        self._left: dict[int, tuple[End, Parcel]] = {}
        self._tickets = count()
        self._turn = Lock()
        self._watch = PinnedWatch() if on_gpu else PlainWatch()
        with _deciding(self.device):
            self._seats = Seats(steps, slots, capacity, self.dtype, keep_states)
            self._graphs = Graphs(self._seats, slots, capacity) if on_gpu and impl is not Impl.plain else None
        self._rows: Rows | None = None

    def add(self, ask: Ask) -> int:
        """Let a request wait for a slot.

        Returns:
            its ticket, to `wait` for.
        Raises:
            SignalError: it may take more positions than there are.
        """
        longest = len(ask.inputs) - 1 + ask.request.max_length
        if longest > self.capacity:
            raise SignalError(
                f"a text of {len(ask.inputs) - 1} positions and up to {ask.request.max_length} tokens of speech need {longest} positions, "
                f"and the unit decoder has {self.capacity}; shorten the text, or allow fewer tokens"
            )
        with self._turn:
            ticket = next(self._tickets)
            self._waiting.append((ticket, ask))
            return ticket

    def wait(self, tickets: Sequence[int]) -> list[Spoken]:
        """Step until these requests have ended; each can be waited for once. All others move on meanwhile.

        Raises:
            KeyError: a ticket is of no request, or was waited for before.
        """
        for ticket in tickets:
            while ticket not in self._left:
                if not self.advance() and ticket not in self._left:
                    raise KeyError(f"ticket {ticket} is of no request that waits, speaks or has ended")
        return [self._taken(ticket) for ticket in tickets]

    def run(self, asks: Iterable[Ask]) -> list[Spoken]:
        """Speak requests, in any number."""
        return self.wait([self.add(ask) for ask in asks])

    def advance(self) -> bool:
        """Seat who waits, and take one step.

        Returns:
            whether there was anything to do.
        """
        with self._turn, _deciding(self.device):
            self._seat()
            if not self._seated:
                return False
            self._step()
            slots = {ticket: slot for slot, ticket in enumerate(self._seated)}
            ends = {slots[end.ticket]: end for end in self._watch.look(self._current().state, self._seated) if end.ticket in slots}
            # The last ones first: rows that end together then leave without moving into each other's places.
            for slot in sorted(ends, reverse=True):
                self._leave(slot, ends[slot])
            return True

    def _taken(self, ticket: int) -> Spoken:
        end, parcel = self._left.pop(ticket)
        tokens, *states = parcel.opened()
        return Spoken(tokens, end.failed, states[0] if states else None)

    def _seat(self) -> None:
        first = len(self._seated)
        entering = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.slots - first))]
        if not entering:
            return
        self._seats.seat(first, [ask for _, ask in entering])
        self._seated += [ticket for ticket, _ in entering]
        self._fills += [len(ask.inputs) - 1 for _, ask in entering]
        self._rows = None

    def _current(self) -> Rows:
        if self._rows is None:
            self._rows = self._seats.rows(len(self._seated))
        return self._rows

    def _step(self) -> None:
        filled = min(max(self._fills) + 1, self.capacity)
        if self._graphs is not None:
            self._graphs.step(len(self._seated), filled)
        else:
            self._seats.step(self._current(), filled, level=min(self._fills) + 1 == filled)
        self._fills = [at + 1 for at in self._fills]

    def _leave(self, slot: int, end: End) -> None:
        """Take a row's result and put the last row into its place."""
        last = len(self._seated) - 1
        found = [self._seats.said[slot, : end.length]] + ([] if self._seats.states is None else [self._seats.states[slot, : end.length]])
        self._left[end.ticket] = end, self._watch.fetch(*found)
        if end.failed:
            self._seats.body.forget(slot)
        if slot != last:
            self._seats.move(last, slot, min(self._fills[last], self.capacity))
            self._seated[slot], self._fills[slot] = self._seated[last], self._fills[last]
        self._seats.state.finished[last] = True
        del self._seated[last], self._fills[last]
        self._rows = None


@contextmanager
def _deciding(device: torch.device) -> Iterator[None]:
    """No gradients, and the loop's own precision instead of autocast's."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def _current_dtype(steps: Steps) -> torch.dtype:
    kind = steps.head.weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else next(steps.body.parameters()).dtype
