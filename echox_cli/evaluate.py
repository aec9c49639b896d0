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
from echox_cli.completion import Offers
from echox_cli.door import run_door
from echox_cli.offers import config_offers

PROGRAM = "echox-evaluate"
SUBJECTS = {
    "ablation": (AblationConfig, ablate),
    "codec": (CodecCopyConfig, copy_synthesis),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SUBJECTS:
        return run_door(f"{PROGRAM} {words[0]}", *SUBJECTS[words[0]], words[1:])
    return run_door(PROGRAM, EvaluateConfig, evaluate, words)


def offers(before: Sequence[str]) -> Offers:
    if before and before[0] in SUBJECTS:
        return config_offers(SUBJECTS[before[0]][0], before[1:])
    run = config_offers(EvaluateConfig, before)
    return run if before else Offers([*SUBJECTS, *run.candidates], run.plain)
