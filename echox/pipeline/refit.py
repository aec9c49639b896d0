"""Recipe of Echo on the speech side of a finished run and a language model tuned elsewhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echox.backbones.base import BACKBONES, Backbone
from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.config import to_plain
from echox.core.errors import CheckpointError, ConfigError
from echox.pipeline.recipe import Recipe, from_dict
from echox.pipeline.tasks import existing_parents
from echox.tasks.base import Use
from echox.tasks.recorded import with_places


@dataclass(frozen=True, slots=True)
class Refit:
    """A recipe's language model joined with the speech side of a finished run."""

    recipe: Recipe  # of the stage that answers aloud
    before: Recipe  # of the finished run
    parent: Path  # checkpoint of it that the stage builds on


def joined(recipe: Recipe) -> Refit:
    """Join a recipe's language model with the speech side of the finished run `recipe.refit`.

    Encoder, codec, and the shapes of adapter and unit decoder are the finished run's; the language
    model, Echo's own plan, its data and the folders are the recipe's. LoRA and adapter start from
    the run's S2T, and T2C reads the embeddings of the new language model. Nothing is built.

    Raises:
        ConfigError: the recipe has no stage that answers aloud.
        CheckpointError: a stage of the finished run is missing.
    """
    stage = recipe.last(Use.answer_aloud)
    if stage is None:
        raise ConfigError(
            "refit trains a stage that answers aloud, such as echo; the recipe has none"
        )
    parent = next(iter(existing_parents(recipe, stage, recipe.require_refit()).values()))
    finished = Checkpoint(parent, checkpoint.described(parent), {}, None)
    before = from_dict(with_places(finished, finished.meta["recipe"]))
    # The finished stages' own plans, by which their checkpoints are read.
    plans = {**before.stages, stage: recipe.stages[stage]}
    fitted = dataclasses.replace(
        recipe, encoder=before.encoder, codec=before.codec, stages=plans, stage=stage, corpus=None
    )
    return Refit(fitted, before, parent)


def check_family(refit: Refit) -> None:
    """Check that the new language model is of the family that the run was trained with.

    Only outlines are built, so that a refit is refused before weights are read.

    Raises:
        CheckpointError: it has another width, another vocabulary or other tokens.
    """
    configs = (refit.recipe.backbone, refit.before.backbone)
    model, former = (
        BACKBONES.entry_of(config).implementation.outline(config) for config in configs
    )
    _refuse_other_family(model, former, refit.recipe, refit.parent)


def lineage_of(refit: Refit) -> dict[str, Any]:
    """Return the change of the language model, as the checkpoint's lineage records it."""
    # Built with its weights, of which the fingerprint is.
    model = BACKBONES.build(refit.recipe.backbone)
    change = {
        "run": refit.recipe.refit,
        "from": to_plain(refit.before.backbone),
        "to": to_plain(refit.recipe.backbone),
        "backbone": model.fingerprint(),
    }
    return {"refit": change}


def _refuse_other_family(model: Backbone, former: Backbone, recipe: Recipe, parent: Path) -> None:
    # Hidden states and token ids enter the trained adapter and unit decoder.
    way_out = "refit takes the same model tuned further; train all stages for another one"
    name = to_plain(recipe.backbone).get("weights", type(recipe.backbone).__name__)
    if model.hidden_size != former.hidden_size:
        raise CheckpointError(
            f"{name} has hidden states of {model.hidden_size} channels, "
            f"but {parent} was trained on {former.hidden_size}; {way_out}"
        )
    if model.vocab_size != former.vocab_size:
        raise CheckpointError(
            f"{name} has a vocabulary of {model.vocab_size}, "
            f"but {parent} was trained on one of {former.vocab_size}; {way_out}"
        )
    texts, former_texts = model.token_texts(), former.token_texts()
    pairs = enumerate(zip(texts, former_texts))
    changed = [token for token, (text, former_text) in pairs if text != former_text]
    if changed:
        token = changed[0]
        raise CheckpointError(
            f"{name} has other tokens than {parent} was trained on, {len(changed)} in number, "
            f"such as {token}, which is {texts[token]!r} and was {former_texts[token]!r}; {way_out}"
        )
