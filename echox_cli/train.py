"""`echox-train recipe=NAME [field=value ...]`: train the stages of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.train())

from echox.pipeline.recipe import Recipe
from echox_cli.command import run_recipe_command
from echox_cli.completion import Offers
from echox_cli.offers import recipe_offers


def train(recipe: Recipe) -> None:
    """Train the stages of a recipe."""
    # Imported here so that --help and completion do not load the models.
    from echox.pipeline.run import run_recipe

    run_recipe(recipe)


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-train`.

    Args:
        before: the finished words after the program's name.
    """
    return recipe_offers(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-train` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    return run_recipe_command(
        "echox-train",
        train,
        argv,
        "Train a speech-to-speech model, stage by stage, as a recipe says.",
    )
