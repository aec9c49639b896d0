"""Numbers over steps: metrics.jsonl always, TensorBoard by config."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echox.disk import room_for
from echox.packages import TENSORBOARD, require


class MetricsLog:
    """Appends one JSON object a line: {"step", "split", and numbers}.

    Opened at step N, it first drops what an earlier, interrupted run wrote beyond N, a half-written last line included.
    """

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool = False) -> None:
        self.path = run_dir / "metrics.jsonl"
        _truncate(self.path, step)
        self.path.touch()
        self._board = _open_board(run_dir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Log `values` of "train" or "valid" after `step` steps.

        Raises:
            TrainingError: the disk is full.
        """
        # Opened for each line, so that nothing waits in a buffer to fail a second time.
        with room_for(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **finite(values)}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush what TensorBoard holds."""
        if self._board is not None:
            self._board.close()


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """`values` as JSON can say them: a number that is not finite becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _open_board(folder: Path, step: int) -> Any:
    require([TENSORBOARD])
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
