"""A finished run's speech side behind a language model that was tuned elsewhere: what may be joined, and what is recorded of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echox import checkpoint
from echox.backbones.base import BACKBONES, Backbone
from echox.config import to_plain
from echox.errors import CheckpointError
from echox.recipe import Recipe, restore


def refitted(recipe: Recipe, parents: Mapping[str, Path]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of an Echo stage on the recipe's own language model, all else as the finished run has it.

    Encoder, codec, and the shapes of adapter and unit decoder are the finished run's; the language model, Echo's own plan, its data and
    the folders are the recipe's. LoRA and adapter go on from the run's S2T; T2C reads the new model's rows.

    Args:
        parents: the finished run's checkpoints of s2t and t2c.
    Returns:
        the recipe, and what its checkpoint's lineage records of the change.
    Raises:
        CheckpointError: the language model is of another width or vocabulary than the one the run was trained with.
    """
    meta = checkpoint.verify(parents["s2t"])
    before = restore(meta["recipe"])
    # Built whole, though shapes would do for the comparison: the lineage is to name the weights.
    model = BACKBONES.build(recipe.backbone)
    former = BACKBONES.entry_of(before.backbone).implementation.outline(before.backbone)
    _refuse_other_family(model, former, recipe, parents["s2t"])
    kept = {name: getattr(before, name) for name in ("encoder", "codec", "align", "s2t", "t2c")}
    fitted = dataclasses.replace(recipe, **kept, stage="echo", corpus=None)
    change = {"run": recipe.refit, "from": to_plain(before.backbone), "to": to_plain(recipe.backbone), "backbone": model.fingerprint()}
    return fitted, {"refit": change}


def _refuse_other_family(model: Backbone, former: Backbone, recipe: Recipe, parent: Path) -> None:
    way_out = "refit takes the same model tuned further; train all stages for another one"
    name = to_plain(recipe.backbone).get("weights", type(recipe.backbone).__name__)
    if model.hidden_size != former.hidden_size:
        raise CheckpointError(f"{name} has hidden states of {model.hidden_size} channels, but {parent} was trained on {former.hidden_size}; {way_out}")
    if model.vocab_size != former.vocab_size:
        raise CheckpointError(f"{name} has a vocabulary of {model.vocab_size}, but {parent} was trained on one of {former.vocab_size}; {way_out}")
    ours, theirs = model.token_texts(), former.token_texts()
    changed = [token for token, (now, then) in enumerate(zip(ours, theirs)) if now != then]
    if changed:
        token = changed[0]
        raise CheckpointError(
            f"{name} has other tokens than {parent} was trained on, {len(changed)} in number, such as {token}, "
            f"which is {ours[token]!r} and was {theirs[token]!r}; {way_out}"
        )
