"""`echox-evaluate`: score a finished run, compare ways to train, or score copies of speech.

echox-evaluate ...            score a finished run
echox-evaluate ablation ...   compare ways to train its Echo stage
echox-evaluate codec ...      copy speech through a codec
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.evaluate())

from echox.evaluation.codec_copy import CodecCopyConfig, copy_synthesis
from echox.evaluation.report import EvaluateConfig, evaluate
from echox.pipeline.ablation import AblationConfig, ablate
from echox_cli.command import run_command
from echox_cli.completion import Offers
from echox_cli.offers import config_offers

PROGRAM = "echox-evaluate"
# Subject -> config and function; without a subject the command scores a run.
SUBJECTS = {
    "ablation": (AblationConfig, ablate),
    "codec": (CodecCopyConfig, copy_synthesis),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-evaluate` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SUBJECTS:
        return run_command(f"{PROGRAM} {words[0]}", *SUBJECTS[words[0]], words[1:])
    return run_command(PROGRAM, EvaluateConfig, evaluate, words)


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-evaluate`.

    Args:
        before: the finished words after the program's name.
    """
    if before and before[0] in SUBJECTS:
        return config_offers(SUBJECTS[before[0]][0], before[1:])
    run = config_offers(EvaluateConfig, before)
    # A subject can only be the first word.
    return run if before else Offers([*SUBJECTS, *run.candidates], run.plain)
