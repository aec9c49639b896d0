"""Encoded clips that are kept: every answer of a conversation reads its earlier questions too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from echox.core.recently_used import RecentlyUsed

POSITIONS = 16_384  # of the language model that the clips kept take at most


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """A clip as the language model reads it, and what was heard in it."""

    vectors: Tensor  # [L, H]
    windows: list[tuple[int, ...]]  # of each window of the encoder the tokens that begin in it


class ClipCache:
    """The clips that were encoded last, by their samples."""

    def __init__(self, positions: int = POSITIONS) -> None:
        """Begin empty.

        Args:
            positions: vectors that are kept at most.
        """
        self._kept: RecentlyUsed[EncodedClip] = RecentlyUsed(positions)

    def encode(
        self,
        clips: Sequence[Tensor],
        encode: Callable[[Sequence[Tensor]], list[EncodedClip]],
    ) -> list[EncodedClip]:
        """Encode clips [T], those that are not known in one call.

        Args:
            clips: of one or more conversations.
            encode: encodes one or more.
        """
        # By content: a caller may fill one buffer with question after question.
        keys = [hashlib.blake2b(clip.numpy().tobytes()).digest() for clip in clips]
        found = {key: known for key in keys if (known := self._kept.get(key)) is not None}
        new = {key: clip for key, clip in zip(keys, clips) if key not in found}
        if new:
            found |= zip(new, encode(list(new.values())))
        for key, clip in found.items():
            self._kept.put(key, clip, len(clip.vectors))
        return [found[key] for key in keys]
