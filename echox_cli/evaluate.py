"""`echox-evaluate ...`: score a finished run; `... ablation ...`: compare ways to train its Echo stage; `... codec ...`: copy speech."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.evaluate())

from echox.ablation import AblationConfig, ablate
from echox.evaluation.codec_copy import CodecCopyConfig, copy_synthesis
from echox.evaluation.report import EvaluateConfig, evaluate
from echox_cli.door import run_door


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ablation"]:
        return run_door("echox-evaluate ablation", AblationConfig, ablate, words[1:])
    if words[:1] == ["codec"]:
        return run_door("echox-evaluate codec", CodecCopyConfig, copy_synthesis, words[1:])
    return run_door("echox-evaluate", EvaluateConfig, evaluate, words)
