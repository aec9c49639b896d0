"""Recipe of Echo on the speech side of a finished run and a language model tuned elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from echox.backbones.base import BACKBONES, Backbone
from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.config import to_plain
from echox.core.errors import CheckpointError, ConfigError
from echox.pipeline.recipe import Recipe, from_dict
from echox.pipeline.tasks import finished_parents
from echox.tasks.base import Use
from echox.tasks.recorded import with_places


def refitted(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """Join a recipe's language model with the speech side of the finished run `recipe.refit`.

    Encoder, codec, and the shapes of adapter and unit decoder are the finished run's; the language
    model, Echo's own plan, its data and the folders are the recipe's. LoRA and adapter start from
    the run's S2T, and T2C reads the embeddings of the new language model.

    Returns:
        the recipe of the Echo stage, and the change as its checkpoint's lineage records it.

    Raises:
        ConfigError: the recipe has no stage that answers aloud.
        CheckpointError: a stage of the finished run is missing, or the language model has another
            width or vocabulary than the one the run was trained with.
    """
    stage = recipe.last(Use.answer_aloud)
    if stage is None:
        raise ConfigError(
            "refit trains a stage that answers aloud, such as echo; the recipe has none"
        )
    parent = next(iter(finished_parents(recipe, stage, recipe.require_refit()).values()))
    finished = Checkpoint(parent, checkpoint.verify(parent), {}, None)
    before = from_dict(with_places(finished, finished.meta["recipe"]))
    # Built with its weights, since the lineage records their fingerprint.
    model = BACKBONES.build(recipe.backbone)
    former = BACKBONES.entry_of(before.backbone).implementation.outline(before.backbone)
    _refuse_other_family(model, former, recipe, parent)
    # The finished stages' own plans, by which their checkpoints are read.
    plans = {**before.stages, stage: recipe.stages[stage]}
    fitted = dataclasses.replace(
        recipe, encoder=before.encoder, codec=before.codec, stages=plans, stage=stage, corpus=None
    )
    change = {
        "run": recipe.refit,
        "from": to_plain(before.backbone),
        "to": to_plain(recipe.backbone),
        "backbone": model.fingerprint(),
    }
    return fitted, {"refit": change}


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
