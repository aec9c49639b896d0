"""`echox-evaluate ...`: score what was generated."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox.evaluation.report import EvaluateConfig, evaluate
from echox_cli.door import run_door


def main(argv: Sequence[str] | None = None) -> int:
    return run_door("echox-evaluate", EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
