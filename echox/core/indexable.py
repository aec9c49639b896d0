"""Values that are read or made at access, by their number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol, TypeVar

E_co = TypeVar("E_co", covariant=True)


class Indexable(Protocol[E_co]):
    """Values [N] by their number from 0; a list is one, and so is what inherits this class.

    Unlike a `Sequence` it has no slices and need not find a value.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> E_co: ...

    def __iter__(self) -> Iterator[E_co]:
        return (self[index] for index in range(len(self)))
