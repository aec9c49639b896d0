"""`echox-generate manifest=... ` or `echox-generate input=question.wav output=answer.wav`: answer spoken questions aloud."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.generate())

from echox.generation.manifest_run import GenerateConfig, generate
from echox_cli.completion import Offers
from echox_cli.door import run_door
from echox_cli.offers import config_offers


def offers(before: Sequence[str]) -> Offers:
    return config_offers(GenerateConfig, before)


def main(argv: Sequence[str] | None = None) -> int:
    return run_door("echox-generate", GenerateConfig, generate, argv)
