"""A process that does one step with a manifest and measures its time and memory from within.

It imports no PyTorch, whose half gigabyte would hide the rest.
`python -m echox.bench.manifest_probe STEP MANIFEST NUMBER` prints one JSON object.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echox.data.indexed_rows import IndexedRows
from echox.data.manifest_index import build_index
from echox.data.row_reader import Headers

SEED = 0  # of the rows that are read


def build(manifest: Path, processes: int) -> dict[str, Any]:
    """Build the index.

    Args:
        manifest: of any size.
        processes: that build it.

    Returns:
        "rows", and "index_bytes" of the file.
    """
    index = build_index(manifest, processes=processes, progress=False)
    return {"rows": len(index), "index_bytes": index.path.stat().st_size}


def open_and_access(manifest: Path, accesses: int) -> dict[str, Any]:
    """Open a manifest by its index, then read rows at random.

    Args:
        manifest: whose index is built.
        accesses: rows that are read.

    Returns:
        "open_s" seconds up to the first row, "open_bytes" of memory then, "access_us" microseconds
        of a row (median), and "rows".

    Raises:
        RuntimeError: the index returns another row than the one that was asked for.
    """
    start_s = time.perf_counter()
    index = build_index(manifest, progress=False)
    rows = IndexedRows(index, allow_outside=False, headers=Headers.NONE)
    # In the middle, which an index has to find without reading what is before.
    row = rows[len(rows) // 2]
    open_s, open_bytes = time.perf_counter() - start_s, _peak_bytes()
    rng = random.Random(SEED)
    times_s = []
    for number in (rng.randrange(len(rows)) for _ in range(accesses)):
        start_s = time.perf_counter()
        row = rows[number]
        times_s.append(time.perf_counter() - start_s)
        # The generator's ids are numbers, so a wrong row would be noticed.
        if int(row.id.removeprefix("row-")) != number:
            raise RuntimeError(f"row {number} is {row.id}")
    return {
        "open_s": open_s,
        "open_bytes": open_bytes,
        "access_us": 1e6 * statistics.median(times_s),
        "rows": len(rows),
    }


def read_all(manifest: Path, accesses: int) -> dict[str, Any]:
    """Parse every line into a list, as is done without an index.

    Args:
        manifest: of a size that memory can hold.
        accesses: not used; all steps have the same arguments.

    Returns:
        "open_s" seconds, "open_bytes" of memory with all rows, and "rows".
    """
    start_s = time.perf_counter()
    with manifest.open("rb") as file:
        rows = [json.loads(line) for line in file]
    return {"open_s": time.perf_counter() - start_s, "open_bytes": _peak_bytes(), "rows": len(rows)}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "build": build,
    "open": open_and_access,
    "whole": read_all,
}


def _peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, which on Linux begins with what the process that started this one held.
        lines = status.read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    # macOS counts in bytes, other systems in KiB.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def main() -> None:
    """Run one step, and print its results with time and memory."""
    step, manifest, number = sys.argv[1:]
    imported_bytes = _peak_bytes()
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    results = STEPS[step](Path(manifest), int(number))
    times = {"wall_s": time.perf_counter() - start_s, "cpu_s": time.process_time() - cpu_start_s}
    memory = {"imported_bytes": imported_bytes, "peak_bytes": _peak_bytes()}
    # An import of PyTorch would have spoilt the numbers.
    print(json.dumps({**results, **times, **memory, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
