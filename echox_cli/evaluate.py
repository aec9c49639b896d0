"""`echox-evaluate ...`: score a finished run; `echox-evaluate ablation ...`: compare ways to train its Echo stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox.ablation import AblationConfig, ablate
from echox.evaluation.report import EvaluateConfig, evaluate
from echox_cli.door import run_door


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ablation"]:
        return run_door("echox-evaluate ablation", AblationConfig, ablate, words[1:])
    return run_door("echox-evaluate", EvaluateConfig, evaluate, words)


if __name__ == "__main__":
    sys.exit(main())
