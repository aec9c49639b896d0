"""`echox-serve checkpoint=runs/NAME`: talk to a model, by a page or the Realtime protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.serve())

from echox.serving.config import ServeConfig
from echox_cli.command import run_command
from echox_cli.completion import Offers
from echox_cli.offers import config_offers


def serve(config: ServeConfig) -> None:
    """Serve a model until interrupted."""
    # Imported here so that --help and completion do not load the models.
    from echox.serving.serve import serve as run

    run(config)


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-serve`.

    Args:
        before: the finished words after the program's name.
    """
    return config_offers(ServeConfig, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-serve` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    return run_command("echox-serve", ServeConfig, serve, argv, "checkpoint")
