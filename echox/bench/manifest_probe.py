"""What one process takes with a manifest, measured from within; imports no PyTorch, whose half gigabyte would hide the rest.

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

SEED = 0


def build(manifest: Path, processes: int) -> dict[str, Any]:
    """Make the index."""
    index = build_index(manifest, processes=processes, progress=False)
    return {"rows": len(index), "index_bytes": index.path.stat().st_size}


def open_and_access(manifest: Path, accesses: int) -> dict[str, Any]:
    """Open by the index that is there, then read rows anywhere."""
    began_s = time.perf_counter()
    rows = IndexedRows(build_index(manifest, progress=False), allow_outside=False, headers=Headers.NONE)
    row = rows[len(rows) // 2]
    open_s, open_bytes = time.perf_counter() - began_s, _peak_bytes()
    draw = random.Random(SEED)
    times_s = []
    for number in (draw.randrange(len(rows)) for _ in range(accesses)):
        began_s = time.perf_counter()
        row = rows[number]
        times_s.append(time.perf_counter() - began_s)
        # The generator's ids are numbers, so a wrong row would show.
        if int(row.id.removeprefix("row-")) != number:
            raise RuntimeError(f"row {number} is {row.id}")
    return {"open_s": open_s, "open_bytes": open_bytes, "access_us": 1e6 * statistics.median(times_s), "rows": len(rows)}


def read_whole(manifest: Path, accesses: int) -> dict[str, Any]:
    """What an index spares: parsing every line into a list."""
    began_s = time.perf_counter()
    with manifest.open("rb") as file:
        rows = [json.loads(line) for line in file]
    return {"open_s": time.perf_counter() - began_s, "open_bytes": _peak_bytes(), "rows": len(rows)}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"build": build, "open": open_and_access, "whole": read_whole}


def _peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, which on Linux begins with what the process that started this one held.
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    step, manifest, number = sys.argv[1:]
    imported_bytes = _peak_bytes()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    found = STEPS[step](Path(manifest), int(number))
    taken = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}
    print(json.dumps({**found, **taken, "imported_bytes": imported_bytes, "peak_bytes": _peak_bytes(), "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
