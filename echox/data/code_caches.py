"""Caches that belong to the code that made them, also where an earlier version named them."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

from echox.core.sources import Code
from echox.data.cache import ArrayCache

log = logging.getLogger(__name__)


def cache_of_code(
    folder: Path, maker: str, code: Code, precision: str, contents: str
) -> ArrayCache:
    """Open the cache of what a part computed with its code as it is now.

    A cache that an earlier version named without the code is taken over where that code is echox's
    own. Where only caches of other code are there, a line says that they are made again.

    Args:
        folder: of the caches of such parts.
        maker: names the part's weights and settings.
        code: of the part.
        precision: in which it computes.
        contents: what the cache holds, for the line.
    """
    name = f"{maker}-{code.digest}-{precision}"
    if code.is_own:
        adopt(folder, f"{maker}-{precision}", name)
    if not (folder / name).exists():
        same_maker = re.compile(f"{re.escape(maker)}(-[0-9a-f]{{8}})?-{re.escape(precision)}")
        others = [path for path in folder.glob("*") if same_maker.fullmatch(path.name)]
        if others:
            log.warning(
                "the code that made the %s in %s has changed since; they are made again, and that "
                "folder may be deleted",
                contents,
                ", ".join(sorted(map(str, others))),
            )
    return ArrayCache(folder, name)


def adopt(folder: Path, earlier: str, name: str) -> None:
    """Give a cache that an earlier version named otherwise its present name.

    Args:
        folder: of the caches.
        earlier: name in an earlier version.
        name: the present name; where it exists, the other is left alone.
    """
    if (folder / earlier).exists() and not (folder / name).exists():
        # Another process may do the same at the same time; where nothing can be written, the
        # earlier cache is of no use.
        with suppress(OSError):
            (folder / earlier).rename(folder / name)
