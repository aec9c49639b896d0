"""The decode engine: requests enter free slots, step together and leave as they finish."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor

from echox.core.errors import ConfigError, SignalError
from echox.decoding.graphs import Graphs
from echox.decoding.polling import Finish, HostCopy, ImmediateFinishPoller, PinnedFinishPoller
from echox.decoding.slots import Slots
from echox.decoding.steps import Request, Rows, Steps


class Impl(enum.Enum):
    """How steps are run."""

    auto = "auto"  # captured on a GPU, plain on a CPU
    plain = "plain"  # operation by operation
    graph = "graph"  # as captured CUDA graphs


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a request, on the host."""

    tokens: Tensor  # int64 [U, K], the stop token included
    failed: bool  # scores were NaN or infinite: decoding stopped after these tokens
    states: Tensor | None  # [U, C] hidden states that predicted the tokens, where kept


@dataclass(frozen=True, slots=True)
class Progress:
    """What a request has decoded so far, from some token on, on the host."""

    tokens: Tensor  # int64 [N, K], the stop token included
    states: Tensor | None  # [N, C] hidden states that predicted them, where kept
    ended: bool  # nothing follows; the request was collected with this
    failed: bool = False  # scores were NaN or infinite: decoding stopped after these tokens


AnySteps = TypeVar("AnySteps", bound=Steps, covariant=True)


class DecodeEngine(Generic[AnySteps]):
    """Decodes many requests at once; the result of a request does not depend on the others.

    Weights are copied at construction, so build a new engine after training. An engine may be
    shared between callers and threads: whoever waits for a request advances all of them.
    """

    def __init__(
        self,
        steps: AnySteps,
        *,
        slots: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        keep_states: bool = False,
        impl: Impl = Impl.auto,
    ) -> None:
        """Copy the weights and allocate the slots and the key/value cache.

        Args:
            steps: the adapter of the decoder type.
            slots: requests that are stepped together; further ones queue.
            capacity: positions of a request: its prompt and all tokens but the last.
            dtype: of weights, keys and values; None is autocast's where that is on, and the
                weights' own elsewhere.
            keep_states: return the hidden states too.
            impl: how steps are run.

        Raises:
            ConfigError: graphs are asked for where there is no GPU, or the body has biases.
        """
        self.steps = steps
        self.device = steps.head.weight.device
        on_gpu = self.device.type == "cuda"
        if impl is Impl.graph and not on_gpu:
            raise ConfigError(
                "impl=graph captures CUDA graphs, and this unit decoder is on "
                f"{self.device.type}; use impl=auto"
            )
        self.slots, self.capacity = slots, capacity
        self.dtype = dtype or _current_dtype(steps)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._active: list[int] = []  # ticket by slot
        # By slot, the position of its next step; beyond the true one where a row has finished
        # and the host does not know it yet.
        self._positions: list[int] = []
        self._finished: dict[int, tuple[Finish, HostCopy]] = {}  # by ticket, until collected
        self._tickets = count()
        self._lock = Lock()
        self._poller = PinnedFinishPoller() if on_gpu else ImmediateFinishPoller()
        with _inference(self.device):
            self._batch = Slots(steps, slots, capacity, self.dtype, keep_states)
            # Captured before the first request: capture runs steps, which need free slots.
            captured = on_gpu and impl is not Impl.plain
            self._graphs = Graphs(self._batch, slots, capacity) if captured else None
        self._rows: Rows | None = None

    def add(self, request: Request) -> int:
        """Queue a request.

        Returns:
            its ticket, the key for `wait`.

        Raises:
            SignalError: the request may take more positions than `capacity`.
        """
        prompt, limit = len(request.inputs) - 1, request.sampling.max_length
        if prompt + limit > self.capacity:
            raise SignalError(
                f"a text of {prompt} positions and up to {limit} tokens of speech need "
                f"{prompt + limit} positions, and the unit decoder has {self.capacity}; "
                "shorten the text, or allow fewer tokens"
            )
        with self._lock:
            ticket = next(self._tickets)
            self._waiting.append((ticket, request))
            return ticket

    def wait(self, tickets: Sequence[int]) -> list[Completion]:
        """Step until these requests have finished; each can be collected once.

        All other requests advance meanwhile.

        Raises:
            KeyError: a ticket is of no request, or was collected before.
            ConfigError: as `advance`.
        """
        for ticket in tickets:
            while ticket not in self._finished:
                # Checked again after `advance`: another thread may have finished it meanwhile.
                if not self.advance() and ticket not in self._finished:
                    raise KeyError(
                        f"ticket {ticket} is of no request that waits, is decoded or has finished"
                    )
        return [self._completion(ticket) for ticket in tickets]

    def progress(self, ticket: int, first: int = 0) -> Progress:
        """Return what a request has decoded, for callers that use tokens before the last one.

        On a GPU this waits for the step that is under way, so ask every few steps.

        Args:
            ticket: of `add`. Once `ended` is returned it is collected and unknown.
            first: index of the first token that is wanted.

        Raises:
            KeyError: the ticket is of no request, or was collected or cancelled before.
        """
        with self._lock:
            if ticket in self._finished:
                completion = self._completion(ticket)
                states = None if completion.states is None else completion.states[first:]
                return Progress(completion.tokens[first:], states, True, completion.failed)
            batch = self._batch
            if ticket in self._active:
                slot = self._active.index(ticket)
                taken = slice(first, int(batch.state.length[slot]))
            elif any(ticket == waiting for waiting, _ in self._waiting):
                slot, taken = 0, slice(0)
            else:
                raise KeyError(f"ticket {ticket} is of no request that waits or is decoded")
            # Clones: the views would change with the next step.
            states = None if batch.states is None else batch.states[slot, taken].cpu().clone()
            return Progress(batch.tokens[slot, taken].cpu().clone(), states, False)

    def prefill(self, request: Request) -> None:
        """Prefill the parts of a prompt and keep them, for requests that begin with them.

        Nothing is done while requests have all the slots, since it takes a free one.
        """
        with self._lock, _inference(self.device):
            slot = len(self._active)
            if slot < self.slots and len(request.inputs) <= self.capacity:
                self._batch.prompts.prefill(self._batch.body, request, slot)

    def cancel(self, tickets: Iterable[int]) -> None:
        """Free the slots of requests whose result nobody wants.

        Tickets that are unknown by now are passed over.
        """
        with self._lock, _inference(self.device):
            for ticket in tickets:
                self._finished.pop(ticket, None)
                self._waiting = deque(each for each in self._waiting if each[0] != ticket)
                if ticket in self._active:
                    self._free(self._active.index(ticket))

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or is decoded."""
        return not self._active and not self._waiting

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Decode any number of requests.

        Raises:
            SignalError: a request may take more positions than `capacity`.
            ConfigError: as `advance`.
        """
        return self.wait([self.add(request) for request in requests])

    def advance(self) -> bool:
        """Admit waiting requests and take one step.

        Returns:
            whether there was anything to do.

        Raises:
            ConfigError: a waiting request allows or stops at rows that the head does not have.
        """
        with self._lock, _inference(self.device):
            self._admit()
            if not self._active:
                return False
            self._step()
            for slot, finish in self._finished_slots():
                self._retire(slot, finish)
            return True

    def _finished_slots(self) -> list[tuple[int, Finish]]:
        """Slots known to have finished, the last one first."""
        slots = {ticket: slot for slot, ticket in enumerate(self._active)}
        finishes = self._poller.poll(self._active_rows().state, self._active)
        # A GPU may report a request again after it has left its slot.
        by_slot = {slots[each.ticket]: each for each in finishes if each.ticket in slots}
        # From the last slot: rows that finish together then never move into each other's slots.
        return sorted(by_slot.items(), key=lambda item: item[0], reverse=True)

    def _completion(self, ticket: int) -> Completion:
        finish, copy = self._finished.pop(ticket)
        tokens, *states = copy.wait()
        return Completion(tokens, finish.failed, states[0] if states else None)

    def _admit(self) -> None:
        first = len(self._active)
        free = min(len(self._waiting), self.slots - first)
        entering = [self._waiting.popleft() for _ in range(free)]
        if not entering:
            return
        self._batch.admit(first, [request for _, request in entering])
        self._active += [ticket for ticket, _ in entering]
        self._positions += [len(request.inputs) - 1 for _, request in entering]
        self._rows = None

    def _active_rows(self) -> Rows:
        # The views change only when requests enter or leave, not at every step.
        if self._rows is None:
            self._rows = self._batch.rows(len(self._active))
        return self._rows

    def _step(self) -> None:
        # Clamped, for rows that have finished are counted on until the host knows it.
        filled = min(max(self._positions) + 1, self.capacity)
        if self._graphs is not None:
            self._graphs.step(len(self._active), filled)
        else:
            uniform = min(self._positions) + 1 == filled
            self._batch.step(self._active_rows(), filled, uniform)
        self._positions = [position + 1 for position in self._positions]

    def _retire(self, slot: int, finish: Finish) -> None:
        """Copy a slot's result out and free the slot."""
        batch = self._batch
        results = [batch.tokens[slot, : finish.length]]
        if batch.states is not None:
            results.append(batch.states[slot, : finish.length])
        self._finished[finish.ticket] = finish, self._poller.fetch(*results)
        if finish.failed:
            batch.body.clear(slot)
        self._free(slot)

    def _free(self, slot: int) -> None:
        """Move the last active slot into the place of one that is done with."""
        batch, last = self._batch, len(self._active) - 1
        if slot != last:
            batch.move(last, slot, min(self._positions[last], self.capacity))
            self._active[slot] = self._active[last]
            self._positions[slot] = self._positions[last]
        batch.state.finished[last] = True
        del self._active[last], self._positions[last]
        self._rows = None


@contextmanager
def _inference(device: torch.device) -> Iterator[None]:
    """No gradients, and the engine's own precision instead of autocast's."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def _current_dtype(steps: Steps) -> torch.dtype:
    kind = steps.head.weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return next(steps.body.parameters()).dtype
