"""What unit decoding works on: the head, what requests ask for, and how far they are. All of it lives on the device.

B rows of a batch, each the seat of one request; V rows of the head's weight, K codebooks among them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.unit_decode.noise import mixed_seed

FOREVER = 2**31 - 1  # tokens; a request without a limit of its own


class Impl(enum.Enum):
    """How unit decoding is computed."""

    auto = "auto"  # kernels on a GPU, PyTorch on a CPU and for codebooks too large for the kernels
    torch = "torch"  # plain PyTorch
    triton = "triton"  # kernels


@dataclass(frozen=True, slots=True)
class UnitHead:
    """The output layer of a unit decoder and the table its next step reads, laid out for decoding. Made by `of`, which may copy."""

    weight: Tensor  # [V, D]; on a CPU float32 and stored by columns, which is fastest and gives a row the same bits in any batch
    bias: Tensor | None  # [V], as the weight
    cuts: tuple[int, ...]  # [K + 1] rising rows of the weight; codebook k owns rows cuts[k] .. cuts[k + 1] - 1
    softcap: float  # bound of the scores, c * tanh(z / c); 0 is none
    pad_id: int  # what a row that has ended says, in every codebook
    embedding: Tensor | None  # [V, E] vectors of the next step, by rows of the weight; None where the caller makes them
    ids: Tensor  # int32 [V] 0 .. V-1
    at: Tensor  # int64 [K + 1], the cuts
    columns: Tensor | None  # int64 [K, C] rows of the weight by codebook, of C the largest, -1 past a codebook's end; None where all are of one size

    @classmethod
    def of(
        cls,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        segments: Sequence[int] | None = None,
        softcap: float | None = None,
        pad_id: int = 0,
        embedding: Tensor | None = None,
    ) -> UnitHead:
        """
        Args:
            weight: [V, D] rows of units, or of K codebooks one after the other; bias: [V]. Of a vocabulary of text and units give the
                rows that may be said alone, `weight[rows]`: the head costs what it reads.
            segments: [K + 1] rising rows from 0 to V; None is one codebook.
            pad_id: id that a row says once it has ended.
            embedding: [V, E] what the next step reads, with any projection folded in; vectors of K codebooks are added.
        Raises:
            ConfigError: shapes do not fit.
        """
        cuts = (0, len(weight)) if segments is None else tuple(segments)
        _check_head(weight, bias, cuts, pad_id, embedding)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        embedding = None if embedding is None else embedding.detach().contiguous()
        if weight.is_cuda:
            weight = weight.contiguous()
        else:
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight = weight.to(wide).T.contiguous().T
            bias = None if bias is None else bias.to(wide)
        ids = torch.arange(len(weight), dtype=torch.int32, device=weight.device)
        at = torch.tensor(cuts, device=weight.device)
        return cls(weight, bias, cuts, softcap or 0.0, pad_id, embedding, ids, at, _columns(cuts, weight.device))

    @property
    def codebooks(self) -> int:
        """K."""
        return len(self.cuts) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """[K] entries of each codebook."""
        return tuple(stop - start for start, stop in zip(self.cuts, self.cuts[1:]))


def _check_head(weight: Tensor, bias: Tensor | None, cuts: tuple[int, ...], pad_id: int, embedding: Tensor | None) -> None:
    if weight.dim() != 2:
        raise ConfigError(f"a head's weight must be [V, D], and is {list(weight.shape)}")
    V = len(weight)
    if bias is not None and list(bias.shape) != [V]:
        raise ConfigError(f"bias {list(bias.shape)} and weight {list(weight.shape)} do not fit; they must be [V] and [V, D]")
    if len(cuts) < 2 or cuts[0] != 0 or cuts[-1] != V or any(stop <= start for start, stop in zip(cuts, cuts[1:])):
        raise ConfigError(f"segments {list(cuts)} must rise from 0 to the weight's {V} rows; give [0, V] for one codebook")
    smallest = min(stop - start for start, stop in zip(cuts, cuts[1:]))
    if not 0 <= pad_id < smallest:
        raise ConfigError(f"pad_id {pad_id} is no entry of every codebook; the smallest has {smallest}")
    if embedding is not None and (embedding.dim() != 2 or len(embedding) != V):
        raise ConfigError(f"embedding {list(embedding.shape)} must be [V, E] with a vector for each of the head's {V} rows")


def _columns(cuts: tuple[int, ...], device: torch.device) -> Tensor | None:
    sizes = [stop - start for start, stop in zip(cuts, cuts[1:])]
    if len(set(sizes)) == 1:
        return None
    rows = [[start + column if column < size else -1 for column in range(max(sizes))] for start, size in zip(cuts, sizes)]
    return torch.tensor(rows, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRequest:
    """How one request wants its units chosen. Filters are applied in the order of the fields; the likeliest token passes all of them."""

    seed: int = 0
    """The same seed and the same hidden states give the same tokens, in whatever batch."""
    repetition_penalty: float = 1.0
    """Scores of tokens said before are divided by it if positive and multiplied by it if negative; 1 is none (Keskar et al. 2019, arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """What is subtracted from scores of tokens said before."""
    allowed: Sequence[tuple[int, int]] | None = None
    """(first, past the last) rows of the head that may be chosen, in ranges; None is all. With K codebooks each needs some."""
    stop_ids: Sequence[int] = ()
    """Rows of the head that end the request. To be chosen they must lie in `allowed` too; left out there, they end it where they are forced."""
    min_length: int = 0
    """Tokens before which no stop token may be said."""
    max_length: int = FOREVER
    """Tokens after which the request ends."""
    temperature: float = 0.0
    """Divides the scores before a token is drawn; 0 takes the likeliest."""
    top_k: int = 0
    """Only tokens that are among the k likeliest of their codebook, or equal to one of them; 0 is no limit."""
    top_p: float = 1.0
    """Only tokens such that those likelier hold less than this share of the mass that top_k left."""
    min_p: float = 0.0
    """Only tokens at least this likely, as a share of the likeliest's probability."""

    def __post_init__(self) -> None:
        for holds, sentence in (
            (self.repetition_penalty > 0, f"repetition_penalty divides scores and must be positive, not {self.repetition_penalty}"),
            (math.isfinite(self.presence_penalty), f"presence_penalty must be a number, not {self.presence_penalty}"),
            (self.min_length >= 0, f"min_length is a number of tokens, not {self.min_length}"),
            (self.max_length >= 1, f"max_length must be at least 1 token, not {self.max_length}"),
            (0 <= self.temperature < math.inf, f"temperature must be 0 (greedy) or positive, not {self.temperature}"),
            (self.top_k >= 0, f"top_k is a number of tokens, 0 for all, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p is a probability in (0, 1], not {self.top_p}"),
            (0 <= self.min_p <= 1, f"min_p is a probability in [0, 1], not {self.min_p}"),
        ):
            if not holds:
                raise ConfigError(sentence)


GREEDY = UnitRequest()


@dataclass(frozen=True, slots=True)
class Needs:
    """Which steps the requests of a batch need between them; a CPU skips the others. A GPU decides by row, from `UnitParams`."""

    penalties: bool
    bars: bool
    stops: bool
    draws: bool
    best: int  # how many of the best scores decide top_k and top_p; 0 where nobody has either
    top_k: bool
    top_p: bool
    min_p: bool

    @classmethod
    def of(cls, requests: Sequence[UnitRequest]) -> Needs:
        drawing = [request for request in requests if request.temperature > 0]
        return cls(
            penalties=any(request.repetition_penalty != 1 or request.presence_penalty != 0 for request in requests),
            bars=any(request.allowed is not None for request in requests),
            stops=any(request.stop_ids for request in requests),
            draws=bool(drawing),
            best=max((request.top_k or (FOREVER if request.top_p < 1 else 0) for request in drawing), default=0),
            top_k=any(request.top_k for request in drawing),
            top_p=any(request.top_p < 1 for request in drawing),
            min_p=any(request.min_p > 0 for request in drawing),
        )


@dataclass(slots=True)
class UnitParams:
    """What the requests of a batch ask for, on the device. Rows are rewritten in place, so a captured graph sees new requests.

    The loop may write `min_length` and `max_length` of a row itself, between steps; the other settings go through `put`.
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
        """One request for each row of the batch.

        Raises:
            ConfigError: a request names rows the head does not have, or leaves a codebook nothing to say.
        """
        B, V, device = len(requests), len(head.weight), head.weight.device

        def numbers(dtype: torch.dtype) -> Tensor:
            return torch.zeros(B, dtype=dtype, device=device)

        floats, ints = [numbers(torch.float32) for _ in range(5)], [numbers(torch.int64) for _ in range(3)]
        masks = [torch.zeros(B, V, dtype=torch.bool, device=device) for _ in range(2)]
        made = cls(floats[0], floats[1], *masks, ints[0], ints[1], floats[2], ints[2], floats[3], floats[4], list(requests))
        made.put(0, requests, head)
        return made

    def put(self, first: int, requests: Sequence[UnitRequest], head: UnitHead) -> None:
        """Give the rows from `first` on to other requests, in as many copies to the device for many of them as for one; nothing is read.

        Raises:
            ConfigError: as `of`.
        """
        rows, device = slice(first, first + len(requests)), self.stops.device
        barred = _masks([_barred(request, head) for request in requests], device)
        stops = _masks([_stops(request, head) for request in requests], device)
        for mask, written in ((self.barred, barred), (self.stops, stops)):
            mask[rows] = written
        values = {name: [getattr(request, name) for request in requests] for name in _NUMBERS}
        values["top_k"] = [k or len(head.weight) for k in values["top_k"]]
        for dtype in (torch.float32, torch.int64):
            names = [name for name in _NUMBERS if getattr(self, name).dtype is dtype]
            for name, column in zip(names, on_device([values[name] for name in names], dtype, device)):
                getattr(self, name)[rows] = column
        self.requests[rows] = requests
        self.needs = Needs.of(self.requests)


# Settings that are one number each.
_NUMBERS = ("repetition_penalty", "presence_penalty", "min_length", "max_length", "temperature", "top_k", "top_p", "min_p")


def on_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on a device, which is not waited for."""
    return _sent(torch.tensor(values, dtype=dtype), device)


def _sent(made: Tensor, device: torch.device) -> Tensor:
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def _masks(rows: Sequence[np.ndarray | None], device: torch.device) -> Tensor | bool:
    """bool [N, V] of the rows' masks; False where none has any."""
    if all(row is None for row in rows):
        return False
    width = next(len(row) for row in rows if row is not None)
    return _sent(torch.from_numpy(np.stack([np.zeros(width, bool) if row is None else row for row in rows])), device)


def _stops(request: UnitRequest, head: UnitHead) -> np.ndarray | None:
    """[V] rows of the head that end the request; None where none does."""
    V = len(head.weight)
    if any(not 0 <= stop < V for stop in request.stop_ids):
        raise ConfigError(f"stop_ids {list(request.stop_ids)} must be rows of the head, 0 .. {V - 1}")
    if not request.stop_ids:
        return None
    mask = np.zeros(V, bool)
    mask[list(request.stop_ids)] = True
    return mask


def _barred(request: UnitRequest, head: UnitHead) -> np.ndarray | None:
    """[V] rows of the head that may not be said; None where all may."""
    if request.allowed is None:
        return None
    V = len(head.weight)
    if any(not 0 <= first < past <= V for first, past in request.allowed):
        raise ConfigError(f"allowed {list(request.allowed)} must be ranges (first, past the last) of the head's rows, 0 .. {V}")
    for k, (start, stop) in enumerate(zip(head.cuts, head.cuts[1:])):
        if not any(first < stop and past > start for first, past in request.allowed):
            raise ConfigError(f"allowed {list(request.allowed)} leaves nothing to say in codebook {k}, rows {start} .. {stop - 1}; add a range there")
    mask = np.ones(V, bool)
    for first, past in request.allowed:
        mask[first:past] = False
    return mask


@dataclass(slots=True)
class UnitState:
    """How far the requests of a batch are, on the device. `sample_units` advances it in place."""

    seed: Tensor  # int64 [B], mixed
    length: Tensor  # int64 [B] tokens said; the position noise is drawn for
    finished: Tensor  # bool [B]; such a row says `pad_id` and changes no more
    failed: Tensor  # bool [B]; finished because its scores were NaN or infinite, nothing was allowed, or a forced id was out of range
    seen: Tensor  # bool [B, V] rows of the head said before, kept where a penalty asks for it; a caller may mark a prompt's

    @classmethod
    def empty(cls, batch: int, head: UnitHead) -> UnitState:
        """All seats free: every row is finished until a request is put there."""
        device = head.weight.device
        numbers = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2)]
        finished = torch.ones(batch, dtype=torch.bool, device=device)
        seen = torch.zeros(batch, len(head.weight), dtype=torch.bool, device=device)
        return cls(*numbers, finished, torch.zeros_like(finished), seen)

    @classmethod
    def of(cls, requests: Sequence[UnitRequest], head: UnitHead) -> UnitState:
        """One request for each row, at its beginning."""
        made = cls.empty(len(requests), head)
        made.put(0, requests)
        return made

    def put(self, first: int, requests: Sequence[UnitRequest]) -> None:
        """Seat requests at their beginning, in the rows from `first` on. Nothing is read from the device."""
        rows = slice(first, first + len(requests))
        self.seed[rows] = on_device([mixed_seed(request.seed) for request in requests], torch.int64, self.seed.device)
        self.length[rows] = 0
        for mask in (self.finished, self.failed, self.seen):
            mask[rows] = False
