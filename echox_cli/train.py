"""`echox-train recipe=NAME [field=value ...]`: train the stages of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.train())

from echox.recipe import Recipe
from echox_cli.completion import Offers
from echox_cli.door import run_recipe_door
from echox_cli.offers import recipe_offers


def train(recipe: Recipe) -> None:
    """Run a recipe."""
    # Imported here so that --help and completion do not load the models.
    from echox.chain import run_recipe

    run_recipe(recipe)


def offers(before: Sequence[str]) -> Offers:
    return recipe_offers(before)


def main(argv: Sequence[str] | None = None) -> int:
    return run_recipe_door("echox-train", train, argv, "Train a speech-to-speech model, stage by stage, as a recipe says.")
