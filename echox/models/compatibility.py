"""Where the EchoX release computes something else than its paper describes, as named settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echox.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Compatibility:
    """Deviations from the paper; the defaults have none, `RELEASE` is what weights came with.

    Source: github.com/FreedomIntelligence/EchoX, state of 2025-09-19; Soundwave, ccb2933.
    """

    attend_over_turns: bool = False
    """Speech adapter: a frame attends to the frames of equal index in the other audios of its
    sample, not to its own audio over time. The release feeds [turns, frames, channels] to a layer
    that takes time first; an audio by itself is then not mixed at all."""
    look_back_at_kept_frames: bool = False
    """Speech adapter: the look-back sees the kept frames only; the paper's recovers what the
    dropped frames held."""
    hide_turn_ends: bool = False
    """Language model: end-of-turn tokens of a prompt with audio are never attended to, for their
    id is the padding id too; positions count them. A prompt without audio hides nothing."""
    hide_turn_ends_in_training: bool = False
    """Soundwave's training hides them as its inference does; EchoX's overwrites the mask and
    attends to all."""
    t2c_begin_id: int | None = None
    """Unit translator: the id that stands where the text of a segment begins; None is the
    tokenizer's begin-of-text. The release has 12800, a slip for 128000, which its weights have
    learned."""
    forget_answers_before_audio: bool = False
    """Training: answers given before a sample's first audio are no targets."""
    denoise_towards_reference: bool = False
    """Training: denoised states are drawn towards the tokens of the reference answer; the paper's
    towards the model's own greedy reading."""


PAPER = Compatibility()
# What EchoX's published weights were trained with.
RELEASE = Compatibility(
    attend_over_turns=True,
    look_back_at_kept_frames=True,
    hide_turn_ends=True,
    t2c_begin_id=12_800,
    forget_answers_before_audio=True,
    denoise_towards_reference=True,
)
# The same speech adapter; there is no unit translator.
SOUNDWAVE = dataclasses.replace(
    RELEASE, hide_turn_ends_in_training=True, t2c_begin_id=None, forget_answers_before_audio=False
)

# Key in config.json of folders that echox trained in another form than the release's.
FORM = "echox_form"


def form_of(config: Mapping[str, Any]) -> Compatibility:
    """The form in which the weights beside a config.json were trained.

    Args:
        config: a parsed config.json.

    Raises:
        ConfigError: it names a setting that does not exist.
    """
    if FORM not in config:
        return SOUNDWAVE if config.get("model_type") == "Soundwave" else RELEASE
    try:
        return Compatibility(**config[FORM])
    except TypeError as error:
        raise ConfigError(
            f"config.json has {FORM} {config[FORM]!r}, "
            f"which this version of echox does not know ({error})"
        ) from error


def with_form(config: Mapping[str, Any], compatibility: Compatibility) -> dict[str, Any]:
    """A config.json that records a form.

    The key is left out where `model_type` alone implies the form.

    Raises:
        ConfigError: as `form_of`.
    """
    plain = {key: value for key, value in config.items() if key != FORM}
    if form_of(plain) == compatibility:
        return plain
    return {**plain, FORM: dataclasses.asdict(compatibility)}
