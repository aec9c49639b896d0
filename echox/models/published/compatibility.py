"""Where the EchoX release computes something else than its paper describes, each difference by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Compatibility:
    """The defaults are the paper's, for training from scratch; `RELEASE` is what published weights were trained with.

    Source: github.com/FreedomIntelligence/EchoX, state of 2025-09-19.
    """

    attend_over_turns: bool = False
    """Speech adapter: a frame attends to the frames of equal index in the other audios of its sample, not to its own audio over time.
    The release feeds [turns, frames, channels] to a layer that takes time first; an audio by itself is then not mixed at all."""
    look_back_at_kept_frames: bool = False
    """Speech adapter: the look-back sees the kept frames only; the paper's recovers what the dropped frames held."""
    hide_turn_ends: bool = False
    """Language model: end-of-turn tokens of a prompt with audio are never attended to, for their id is the padding id too; positions
    count them. A prompt without audio hides nothing, and neither does training."""
    t2c_begin_id: int | None = None
    """Unit translator: the id that stands where the text of a segment begins; None is the tokenizer's begin-of-text. The release has
    12800, a slip for 128000, which its weights have learned."""
    forget_answers_before_audio: bool = False
    """Training: answers given before a sample's first audio are no targets."""


PAPER = Compatibility()
RELEASE = Compatibility(
    attend_over_turns=True, look_back_at_kept_frames=True, hide_turn_ends=True, t2c_begin_id=12_800, forget_answers_before_audio=True
)
