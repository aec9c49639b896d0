"""Requests of unit decoding and their progress, as tensors on the device.

A batch has B rows, each the slot of one request; the head has V rows, K codebooks among them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.noise import mixed_seed

FOREVER = 2**31 - 1  # tokens; a request without a limit of its own


class Impl(enum.Enum):
    """Implementation of unit decoding."""

    auto = "auto"  # kernels on a GPU; PyTorch on a CPU and for codebooks too large for the kernels
    torch = "torch"  # plain PyTorch
    triton = "triton"  # kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRequest:
    """Settings by which the units of one request are chosen.

    Filters are applied in the order of the fields; the likeliest token passes all of them.

    Raises:
        ConfigError: a setting is out of its range.
    """

    seed: int = 0
    """The same seed and the same hidden states give the same tokens, in whatever batch."""
    repetition_penalty: float = 1.0
    """Scores of earlier tokens are divided by it if positive and multiplied by it if negative; 1 is
    none (Keskar et al. 2019, arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """What is subtracted from the scores of earlier tokens."""
    allowed: Sequence[tuple[int, int]] | None = None
    """(first, past the last) rows of the head that may be chosen, in ranges; None is all. With K
    codebooks each needs some."""
    stop_ids: Sequence[int] = ()
    """Rows of the head that end the request. To be chosen they must lie in `allowed` too; left out
    there, they end it where they are forced."""
    min_length: int = 0
    """Tokens before which no stop token may be chosen."""
    max_length: int = FOREVER
    """Tokens after which the request ends."""
    temperature: float = 0.0
    """Divides the scores before a token is drawn; 0 takes the likeliest."""
    top_k: int = 0
    """Only tokens that are among the k likeliest of their codebook, or equal to one of them; 0 is
    no limit."""
    top_p: float = 1.0
    """Only tokens such that those likelier hold less than this share of the mass that top_k left
    (Holtzman et al. 2019, arXiv:1904.09751)."""
    min_p: float = 0.0
    """Only tokens at least this likely, as a share of the likeliest's probability."""

    def __post_init__(self) -> None:
        for holds, sentence in self._rules():
            if not holds:
                raise ConfigError(sentence)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """Return whether each setting is in its range, and the error where it is not."""
        return (
            (
                self.repetition_penalty > 0,
                "repetition_penalty divides scores and must be positive, "
                f"not {self.repetition_penalty}",
            ),
            (
                math.isfinite(self.presence_penalty),
                f"presence_penalty must be a number, not {self.presence_penalty}",
            ),
            (self.min_length >= 0, f"min_length is a number of tokens, not {self.min_length}"),
            (self.max_length >= 1, f"max_length must be at least 1 token, not {self.max_length}"),
            (
                0 <= self.temperature < math.inf,  # False for NaN, as all comparisons
                f"temperature must be 0 (greedy) or positive, not {self.temperature}",
            ),
            (self.top_k >= 0, f"top_k is a number of tokens, 0 for all, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p is a probability in (0, 1], not {self.top_p}"),
            (0 <= self.min_p <= 1, f"min_p is a probability in [0, 1], not {self.min_p}"),
        )


GREEDY = UnitRequest()


@dataclass(frozen=True, slots=True)
class Needs:
    """Steps of sampling that the requests of a batch need between them.

    A CPU skips the others. A GPU decides by row, from `UnitParams`.
    """

    penalties: bool
    bars: bool
    stops: bool
    draws: bool
    best: int  # how many of the best scores decide top_k and top_p; 0 where no request has either
    top_k: bool
    top_p: bool
    min_p: bool

    @classmethod
    def of(cls, requests: Sequence[UnitRequest]) -> Needs:
        """Return what a batch of requests needs."""
        # Filters matter only where a token is drawn: the likeliest passes all of them.
        drawing = [request for request in requests if request.temperature > 0]
        # Top-p without top-k may need any number of scores.
        best = [request.top_k or (FOREVER if request.top_p < 1 else 0) for request in drawing]
        return cls(
            penalties=any(
                request.repetition_penalty != 1 or request.presence_penalty != 0
                for request in requests
            ),
            bars=any(request.allowed is not None for request in requests),
            stops=any(request.stop_ids for request in requests),
            draws=bool(drawing),
            best=max(best, default=0),
            top_k=any(request.top_k for request in drawing),
            top_p=any(request.top_p < 1 for request in drawing),
            min_p=any(request.min_p > 0 for request in drawing),
        )


# Settings that are one number each, and their dtypes on the device.
_NUMBERS = {
    "repetition_penalty": torch.float32,
    "presence_penalty": torch.float32,
    "min_length": torch.int64,
    "max_length": torch.int64,
    "temperature": torch.float32,
    "top_k": torch.int64,
    "top_p": torch.float32,
    "min_p": torch.float32,
}


@dataclass(slots=True)
class UnitParams:
    """Settings of the requests of a batch, on the device.

    Rows are rewritten in place, so a captured graph sees new requests. The loop may write
    `min_length` and `max_length` of a row itself, between steps; the other settings go through
    `put`.
    """

    repetition_penalty: Tensor  # float32 [B]
    presence_penalty: Tensor  # float32 [B]
    barred: Tensor  # bool [B, V] rows of the head that may not be chosen
    stops: Tensor  # bool [B, V] rows of the head that end the request
    min_length: Tensor  # int64 [B]
    max_length: Tensor  # int64 [B]
    temperature: Tensor  # float32 [B]
    top_k: Tensor  # int64 [B], V where there is no limit
    top_p: Tensor  # float32 [B]
    min_p: Tensor  # float32 [B]
    requests: list[UnitRequest]  # [B] what the tensors were written from
    needs: Needs = field(init=False)

    def __post_init__(self) -> None:
        self.needs = Needs.of(self.requests)

    @classmethod
    def of(cls, requests: Sequence[UnitRequest], head: UnitHead) -> UnitParams:
        """Write the settings of B requests into tensors [B] and masks [B, V].

        Raises:
            ConfigError: a request names rows that the head does not have, or allows none of a
                codebook.
        """
        B, V, device = len(requests), len(head.weight), head.weight.device
        numbers = {
            name: torch.zeros(B, dtype=dtype, device=device) for name, dtype in _NUMBERS.items()
        }
        masks = {
            name: torch.zeros(B, V, dtype=torch.bool, device=device) for name in ("barred", "stops")
        }
        params = cls(**numbers, **masks, requests=list(requests))
        params.put(0, requests, head)
        return params

    def put(self, first: int, requests: Sequence[UnitRequest], head: UnitHead) -> None:
        """Give the rows from `first` on to other requests.

        It takes as many copies to the device for many of them as for one, and reads nothing.

        Raises:
            ConfigError: as `of`.
        """
        rows, device = slice(first, first + len(requests)), self.stops.device
        barred = _stack_masks([_barred_mask(request, head) for request in requests], device)
        stops = _stack_masks([_stop_mask(request, head) for request in requests], device)
        self.barred[rows] = barred
        self.stops[rows] = stops
        values = {name: [getattr(request, name) for request in requests] for name in _NUMBERS}
        values["top_k"] = [k or len(head.weight) for k in values["top_k"]]
        for dtype in (torch.float32, torch.int64):
            names = [name for name, kind in _NUMBERS.items() if kind is dtype]
            columns = on_device([values[name] for name in names], dtype, device)
            for name, column in zip(names, columns):
                getattr(self, name)[rows] = column
        self.requests[rows] = requests
        self.needs = Needs.of(self.requests)


def on_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, which is not waited for."""
    return _copy_to(torch.tensor(values, dtype=dtype), device)


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    # Only from pinned memory does a copy to a GPU return before it is done.
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _stack_masks(masks: Sequence[np.ndarray | None], device: torch.device) -> Tensor | bool:
    """Return masks [V] as one bool [N, V]; False where there is none, which costs no copy."""
    V = next((len(mask) for mask in masks if mask is not None), None)
    if V is None:
        return False
    stacked = np.stack([np.zeros(V, bool) if mask is None else mask for mask in masks])
    return _copy_to(torch.from_numpy(stacked), device)


def _stop_mask(request: UnitRequest, head: UnitHead) -> np.ndarray | None:
    """Return the rows [V] of the head that end the request; None where none does."""
    V = len(head.weight)
    if any(not 0 <= stop < V for stop in request.stop_ids):
        raise ConfigError(
            f"stop_ids {list(request.stop_ids)} must be rows of the head, 0 .. {V - 1}"
        )
    if not request.stop_ids:
        return None
    mask = np.zeros(V, bool)
    mask[list(request.stop_ids)] = True
    return mask


def _barred_mask(request: UnitRequest, head: UnitHead) -> np.ndarray | None:
    """Return the rows [V] of the head that may not be chosen; None where all may."""
    if request.allowed is None:
        return None
    V = len(head.weight)
    if any(not 0 <= first < past <= V for first, past in request.allowed):
        raise ConfigError(
            f"allowed {list(request.allowed)} must be ranges (first, past the last) "
            f"of the head's rows, 0 .. {V}"
        )
    for k, (start, stop) in enumerate(zip(head.cuts, head.cuts[1:])):
        if not any(first < stop and past > start for first, past in request.allowed):
            raise ConfigError(
                f"allowed {list(request.allowed)} has no entry of codebook {k}, "
                f"rows {start} .. {stop - 1}; add a range there"
            )
    mask = np.ones(V, bool)
    for first, past in request.allowed:
        mask[first:past] = False
    return mask


@dataclass(slots=True)
class UnitState:
    """Progress of the requests of a batch, on the device. `sample_units` advances it in place."""

    seed: Tensor  # int64 [B], mixed
    length: Tensor  # int64 [B] tokens generated; the position noise is drawn for
    finished: Tensor  # bool [B]; such a row gets `pad_id` and changes no more
    # bool [B]; finished because its scores were NaN or infinite, nothing was allowed, or a forced
    # id was out of range.
    failed: Tensor
    # bool [B, V] rows of the head generated before, kept where a penalty needs them; a caller may
    # mark a prompt's.
    seen: Tensor

    @classmethod
    def empty(cls, batch: int, head: UnitHead) -> UnitState:
        """Return the state of free slots: every row is finished until a request is put there."""
        device = head.weight.device
        seed, length = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
        finished = torch.ones(batch, dtype=torch.bool, device=device)
        seen = torch.zeros(batch, len(head.weight), dtype=torch.bool, device=device)
        return cls(seed, length, finished, torch.zeros_like(finished), seen)

    @classmethod
    def of(cls, requests: Sequence[UnitRequest], head: UnitHead) -> UnitState:
        """Return the state of B requests at their beginning, one for each row."""
        state = cls.empty(len(requests), head)
        state.put(0, requests)
        return state

    def put(self, first: int, requests: Sequence[UnitRequest]) -> None:
        """Put requests at their beginning into the rows from `first` on; reads no value."""
        rows = slice(first, first + len(requests))
        seeds = [mixed_seed(request.seed) for request in requests]
        self.seed[rows] = on_device(seeds, torch.int64, self.seed.device)
        self.length[rows] = 0
        for mask in (self.finished, self.failed, self.seen):
            mask[rows] = False
