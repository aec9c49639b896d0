"""Metrics over steps: metrics.jsonl always, TensorBoard by config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echox.core.files import (
    append_text,
    atomic_write,
    complete_lines,
    make_folder,
    translate_disk_faults,
)
from echox.core.packages import TENSORBOARD, require


class MetricsLog:
    """A file with one JSON object a line: {"step", "split", and numbers}.

    Opened at step N, it drops the lines that an interrupted run wrote after step N, and a
    half-written last line.
    """

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool = False) -> None:
        make_folder(run_dir)
        self.path = run_dir / "metrics.jsonl"
        _truncate(self.path, step)
        with translate_disk_faults(self.path):
            self.path.touch()
        self._board = _open_board(run_dir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line, and report the values to TensorBoard.

        Args:
            step: number of steps done.
            split: "train" or "valid".
            values: metric -> value.

        Raises:
            DiskError: the disk is full or cannot be written.
        """
        # Opened for each line, so that nothing waits in a buffer to fail a second time.
        line = json.dumps({"step": step, "split": split, **finite(values)})
        append_text(self.path, f"{line}\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._board is not None:
            self._board.close()


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace numbers that are not finite by None, since JSON has none."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    text = "".join(line + "\n" for line in complete_lines(path) if _step_of(line) <= step)
    # By a rename, so that a kill meanwhile leaves the old file.
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _step_of(line: str) -> float:
    """Return a line's step; infinity, which drops it, for a half-written or damaged line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf


def _open_board(folder: Path, step: int) -> Any:
    # TensorBoard is optional: without this its import error would not say how to install it.
    require([TENSORBOARD])
    from torch.utils.tensorboard import SummaryWriter

    # Hides the events of an interrupted run after this step, as `_truncate` does with the lines.
    return SummaryWriter(str(folder), purge_step=step + 1)
