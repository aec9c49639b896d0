"""Keys and values of prompts' beginnings, which the prompts of a conversation have in common.

A prompt names the ends of its parts, and each part is prefilled by itself whether or not it is
kept here. So keys and values depend on the prompt alone, and round alike in every number format.
"""

from __future__ import annotations

import hashlib

from torch import Tensor

from echox.core.recently_used import RecentlyUsed
from echox.decoding.body import CachedBody
from echox.decoding.steps import Request


class PromptCache:
    """The parts of prompts that were prefilled last."""

    def __init__(self, positions: int) -> None:
        """Begin empty.

        Args:
            positions: of all parts that are kept.
        """
        self._kept: RecentlyUsed[Tensor] = RecentlyUsed(positions)

    def prefill(self, body: CachedBody, request: Request, slot: int) -> None:
        """Fill a slot from a request's prompt, but for its last vector, which the first step reads.

        Args:
            body: whose slot it is.
            request: with the ends of its parts; the rest behind them is not kept.
            slot: to fill.
        """
        begin, key = 0, b""
        for end in request.parts:
            part = request.inputs[begin:end]
            key = hashlib.blake2b(key + _content(part)).digest()
            self._fill(body, part, key, slot, begin)
            begin = end
        if begin < len(request.inputs) - 1:
            body.prefill(request.inputs[None, begin:-1], slot, begin)

    def _fill(self, body: CachedBody, part: Tensor, key: bytes, slot: int, begin: int) -> None:
        positions = slice(begin, begin + len(part))
        kept = self._kept.get(key)
        if kept is not None:
            body.cache[:, :, slot, :, positions] = kept
            return
        body.prefill(part[None], slot, begin)
        self._kept.put(key, body.cache[:, :, slot, :, positions].clone(), len(part))


def _content(part: Tensor) -> bytes:
    return part.float().contiguous().cpu().numpy().tobytes()
