"""Examples of manifests that are too large to be held in memory: made at access."""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from echox.core.config import to_plain
from echox.core.errors import AssetError, ManifestError, SignalError
from echox.core.files import atomic_write, json_hash
from echox.core.indexable import Indexable
from echox.core.progress import progress
from echox.data.manifest import OnBroken, Row
from echox.tasks.base import Examples, StageContext

log = logging.getLogger(__name__)
E = TypeVar("E")

# Names of the arrays in a file of lengths: row, number among the row's examples, and cost.
ARRAYS = ("numbers", "turns", "costs")
# What NumPy's reader raises for a damaged file; an empty one is an EOFError, and flipped bits can
# ask for a password or an unknown compression.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, SyntaxError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
# The number among a row's examples is kept in a byte.
MAX_EXAMPLES_PER_ROW = 256


class LazyExamples(Indexable[E]):
    """Examples made anew at each access; 13 bytes are kept of each.

    Args:
        rows: read at access.
        make: the examples of a row.
        arrays: [N] for each of `ARRAYS`.
        on_broken: skip a row that broke since it was indexed (the next example takes its place,
            and it is named once), or refuse it.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        make: Callable[[Row], Sequence[E]],
        arrays: Mapping[str, np.ndarray],
        on_broken: OnBroken,
    ) -> None:
        self.rows, self.make, self.on_broken = rows, make, on_broken
        self.row_numbers, self.example_numbers, self.costs = (arrays[name] for name in ARRAYS)
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.costs)

    def __getitem__(self, index: int) -> E:
        """Make an example, or the next one where its row broke since it was indexed.

        Raises:
            ManifestError, SignalError: the row broke, and broken rows are refused.
            ManifestError: every row broke.
        """
        # Around the end, so that the last examples have others to stand in for them.
        for number in (at % len(self) for at in range(index, index + len(self))):
            try:
                row = self.rows[int(self.row_numbers[number])]
                return self.make(row)[int(self.example_numbers[number])]
            except (ManifestError, SignalError) as error:
                if self.on_broken is OnBroken.refuse:
                    raise
                # Once, because every epoch meets the row again.
                if number not in self._reported:
                    self._reported.add(number)
                    log.warning("%s; the next row stands in for it", error)
        raise ManifestError(
            "every row broke since the manifests were indexed; "
            "see the warnings above, and mend them"
        )


def row_examples(
    rows: Sequence[Row],
    make: Callable[[Row], Sequence[E]],
    cost: Callable[[E], int],
    *,
    on_broken: OnBroken,
    lengths: Callable[[], Path],
) -> Indexable[E]:
    """Examples of rows: a list where the rows are held in memory, else made at access.

    Args:
        rows: of manifests.
        make: the examples of one row, empty where it has none.
        cost: an example's length, in the unit of `Examples.cost`.
        on_broken: what to do with a row that breaks after it was indexed.
        lengths: names the file that keeps the lengths of the examples, so that only the first
            start reads all rows.

    Raises:
        AssetError: that file cannot be written.
    """
    # Small manifests are held in memory; so are their examples.
    if isinstance(rows, (list, tuple)):
        return [example for row in rows for example in make(row)]
    file = lengths()
    arrays = _read_lengths(file)
    if arrays is None:
        arrays = _measure_rows(rows, make, cost)
        try:
            # Through an open file, because by a path numpy appends an ending of its own.
            with atomic_write(file) as unfinished, unfinished.open("wb") as out:
                numbers, turns, costs = (arrays[name] for name in ARRAYS)
                np.savez(out, numbers=numbers, turns=turns, costs=costs)
        except OSError as error:
            raise AssetError(
                f"the lengths {file} could not be kept: {error.strerror or error}; "
                "free space or choose another cache_dir"
            ) from error
    return LazyExamples(rows, make, arrays, on_broken)


class RowExamples(Examples[E]):
    """Examples of `row_examples`; where they are made at access, their costs are known without.

    Args:
        examples: of `row_examples`.
        cost: of one example, as `row_examples` took it.
    """

    def __init__(self, examples: Indexable[E], cost: Callable[[E], int]) -> None:
        self.examples, self.cost_of = examples, cost

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> E:
        return self.examples[index]

    def cost(self, index: int) -> int:
        if isinstance(self.examples, LazyExamples):
            return int(self.examples.costs[index])
        return self.cost_of(self.examples[index])

    def costs(self) -> np.ndarray:
        return self.examples.costs if isinstance(self.examples, LazyExamples) else super().costs()


def lengths_file(
    context: StageContext, split: str, config: Any, fingerprints: Mapping[str, str]
) -> Path:
    """File that keeps the lengths of a split's examples, named after all that they depend on.

    Args:
        context: of the stage, with the cache folder.
        split: "train" or "valid".
        config: of the task.
        fingerprints: of the manifests and of the tokenizer's checkpoint.
    """
    name = json_hash([split, to_plain(config), dict(fingerprints)], 24)
    return context.cache_dir / "lengths" / f"{name}.npz"


def _measure_rows(
    rows: Sequence[Row], make: Callable[[Row], Sequence[E]], cost: Callable[[E], int]
) -> dict[str, np.ndarray]:
    # Arrays of machine integers, because there may be millions of examples.
    row_numbers, example_numbers, costs = array("Q"), array("B"), array("L")
    for row_number, row in enumerate(progress(rows, "measuring rows", unit="row")):
        for example_number, example in enumerate(make(row)[:MAX_EXAMPLES_PER_ROW]):
            row_numbers.append(row_number)
            example_numbers.append(example_number)
            costs.append(cost(example))
    return {
        "numbers": np.array(row_numbers, dtype=np.int64),
        "turns": np.array(example_numbers, dtype=np.uint8),
        "costs": np.array(costs, dtype=np.int32),
    }


def _read_lengths(file: Path) -> dict[str, np.ndarray] | None:
    """Arrays of a file of lengths; None where it is missing or damaged, to be measured again."""
    try:
        with np.load(file) as arrays:
            lengths = {name: arrays[name] for name in ARRAYS}
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        log.warning("the lengths %s are damaged (%s); they are measured again", file, error)
        return None
    return lengths
