"""Encoded clips that are kept: every answer of a conversation reads its earlier questions too."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

POSITIONS = 16_384  # of the language model that the clips kept take at most


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """A clip as the language model reads it, and what was heard in it."""

    vectors: Tensor  # [L, H]
    windows: list[tuple[int, ...]]  # of each window of the encoder the tokens that begin in it


@dataclass(slots=True)
class ClipCache:
    """The clips that were encoded last, by their samples."""

    positions: int = POSITIONS
    """How many vectors are kept at most."""
    _kept: OrderedDict[bytes, EncodedClip] = field(default_factory=OrderedDict)
    _count: int = 0  # vectors

    def encode(
        self,
        clips: Sequence[Tensor],
        encode: Callable[[Sequence[Tensor]], list[EncodedClip]],
    ) -> list[EncodedClip]:
        """Encode clips [T], those that are not known in one batch.

        Args:
            clips: of one or more conversations.
            encode: encodes a batch of one or more.
        """
        # By content: a caller may fill one buffer with question after question.
        keys = [hashlib.blake2b(clip.numpy().tobytes()).digest() for clip in clips]
        new = {key: clip for key, clip in zip(keys, clips) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if new:
            found |= zip(new, encode(list(new.values())))
        for key, clip in found.items():
            self._keep(key, clip)
        return [found[key] for key in keys]

    def _keep(self, key: bytes, clip: EncodedClip) -> None:
        if key not in self._kept:
            self._count += len(clip.vectors)
        self._kept[key] = clip
        self._kept.move_to_end(key)
        while self._count > self.positions:
            self._count -= len(self._kept.popitem(last=False)[1].vectors)
