"""Examples of rows that are too many to be held: made when they are asked for, with their lengths known beforehand."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from echox.config import to_plain
from echox.data.manifest import OnBroken, Row
from echox.data.writing import appearing
from echox.errors import AssetError, ManifestError, SignalError
from echox.progress import progress
from echox.tasks.base import StageContext

log = logging.getLogger(__name__)
E = TypeVar("E")


class MadeAtAccess(Sequence[E], Generic[E]):
    """Examples made anew at each access; 13 bytes are kept of each.

    Args:
        rows: read at access.
        make: the examples of a row.
        places: row, number among the row's examples, and cost of each example: [N] each.
        on_broken: skip a row that broke since it was indexed (the next example stands in for it, and it is named once), or refuse it.
    """

    def __init__(self, rows: Sequence[Row], make: Callable[[Row], Sequence[E]], places: Mapping[str, np.ndarray], on_broken: OnBroken) -> None:
        self.rows, self.make, self.on_broken = rows, make, on_broken
        self.numbers, self.turns, self.costs = (places[name] for name in ("numbers", "turns", "costs"))
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.costs)

    def __getitem__(self, index: int) -> E:
        """
        Raises:
            ManifestError: the row broke since, and broken rows are refused; or all rows broke.
        """
        for number in (at % len(self) for at in range(index, index + len(self))):
            try:
                return self.make(self.rows[int(self.numbers[number])])[int(self.turns[number])]
            except (ManifestError, SignalError) as error:
                if self.on_broken is OnBroken.refuse:
                    raise
                if number not in self._named:
                    self._named.add(number)
                    log.warning("%s; the next row stands in for it", error)
        raise ManifestError("every row broke since the manifests were indexed; see the warnings above, and mend them")


def made_of(
    rows: Sequence[Row], make: Callable[[Row], Sequence[E]], cost: Callable[[E], int], *, on_broken: OnBroken, lengths: Callable[[], Path]
) -> Sequence[E]:
    """The examples of rows: a list where the rows are held, else made at access.

    Args:
        make: the examples of one row, none where it has none.
        cost: an example's length, as `Examples.cost` has it.
        lengths: names the file that keeps places and lengths of the examples, so that only the first start reads all rows.
    Raises:
        AssetError: that file cannot be written.
    """
    if isinstance(rows, (list, tuple)):
        return [example for row in rows for example in make(row)]
    file = lengths()
    places = _kept(file)
    if places is None:
        places = _measured(rows, make, cost)
        try:
            with appearing(file) as unfinished, unfinished.open("wb") as out:
                np.savez(out, **places)
        except OSError as error:
            raise AssetError(f"the lengths {file} could not be kept: {error.strerror or error}; free space or choose another cache_dir") from error
    return MadeAtAccess(rows, make, places, on_broken)


def cost_of(examples: Sequence[E], index: int, cost: Callable[[E], int]) -> int:
    """The cost of one of `made_of`'s examples."""
    return int(examples.costs[index]) if isinstance(examples, MadeAtAccess) else cost(examples[index])


def costs_of(examples: Sequence[E], cost: Callable[[E], int]) -> np.ndarray:
    """The costs [N] of `made_of`'s examples."""
    return examples.costs if isinstance(examples, MadeAtAccess) else np.fromiter(map(cost, examples), dtype=np.int64, count=len(examples))


def lengths_file(context: StageContext, split: str, config: Any, fingerprints: Mapping[str, str]) -> Path:
    """Where the lengths of a split's examples are kept: under all that they follow from."""
    about = json.dumps([split, to_plain(config), dict(fingerprints)], sort_keys=True)
    return context.cache_dir / "lengths" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.npz"


def _measured(rows: Sequence[Row], make: Callable[[Row], Sequence[E]], cost: Callable[[E], int]) -> dict[str, np.ndarray]:
    numbers, turns, costs = array("Q"), array("B"), array("L")
    for number, row in enumerate(progress(rows, "measuring rows", unit="row")):
        for turn, example in enumerate(make(row)[:256]):
            numbers.append(number)
            turns.append(turn)
            costs.append(cost(example))
    return {"numbers": np.array(numbers, dtype=np.int64), "turns": np.array(turns, dtype=np.uint8), "costs": np.array(costs, dtype=np.int32)}


def _kept(file: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(file) as found:
            return {name: found[name] for name in ("numbers", "turns", "costs")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
