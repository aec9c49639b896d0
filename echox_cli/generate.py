"""`echox-generate manifest=...` or `input=question.wav output=answer.wav`: answer speech aloud."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.generate())

from echox.inference.batch_run import GenerateConfig, generate
from echox_cli.command import run_command
from echox_cli.completion import Offers
from echox_cli.offers import config_offers


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-generate`.

    Args:
        before: the finished words after the program's name.
    """
    return config_offers(GenerateConfig, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-generate` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    return run_command("echox-generate", GenerateConfig, generate, argv)
