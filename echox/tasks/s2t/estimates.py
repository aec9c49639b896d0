"""Estimated memory and lengths of S2T training, for outlines: nothing is read or run."""

from __future__ import annotations

from echox.models.footprint import MIXTURE_BYTES, SCORE_BYTES, layer_bytes
from echox.models.speech_adapter import SpeechAdapter
from echox.models.speech_llm import SpeechLLM
from echox.tasks.align.task import adapter_activations
from echox.tasks.base import named_parts
from echox.tasks.conversations import SpokenDataConfig
from echox.tasks.s2t.data import FRAMES_PER_TOKEN

# Assumed shares of a conversation's tokens, for want of the data.
SPEECH_SHARE, ANSWER_SHARE = 0.5, 0.25
WRITTEN_TOKENS = 256  # of a long conversation

SHARES_NOTE = (
    f"activations: {SPEECH_SHARE:.0%} of the tokens are taken to be heard "
    f"and {ANSWER_SHARE:.0%} to be answers"
)


def speech_llm_parts(path: str = "") -> dict[str, list[str]]:
    """Parts of the S2T model for `Outline.parts`.

    Args:
        path: prefix of the model's names in the stage's model, "" or "name.".
    """
    adapter = named_parts("adapter", f"{path}adapter", SpeechAdapter.parts)
    return {"encoder": [f"{path}encoder"], **adapter, "language model": [f"{path}backbone"]}


def speech_llm_activations(model: SpeechLLM, bytes_per_ctc_score: int) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token, speech included, by part.

    Args:
        model: the S2T model, on any device.
        bytes_per_ctc_score: bytes that CTC's loss keeps for each score; 0 without CTC.
    """
    # Encoder frames that stand behind a token of a conversation on average.
    frames = SPEECH_SHARE * FRAMES_PER_TOKEN
    adapter: dict[str, float] = {}
    if model.adapter.learns:
        adapter = adapter_activations(model.adapter, bytes_per_ctc_score + MIXTURE_BYTES)
    return {name: frames * size for name, size in adapter.items()} | {
        # Behind a frozen adapter, the backward pass ends at the lowest layer that is trained.
        "language model": layer_bytes(
            model.backbone, model.backbone.hidden_size, from_first_trained=not model.adapter.learns
        ),
        "text scores": ANSWER_SHARE * SCORE_BYTES * model.backbone.vocab_size,
    }


def longest_conversation(data: SpokenDataConfig, frame_rate_hz: float) -> int:
    """Tokens of a conversation with one clip as long as allowed and a long text.

    Args:
        data: limits the length of clips.
        frame_rate_hz: frames per second of the encoder.
    """
    return round(data.max_audio_s * frame_rate_hz) // FRAMES_PER_TOKEN + WRITTEN_TOKENS
