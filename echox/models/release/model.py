"""The released EchoX model: speech adapter, language model and unit translator.

The encoder before them and the vocoder behind them are parts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from echox.core.errors import CheckpointError, SignalError
from echox.core.signals import Features
from echox.encoders.base import Encoder
from echox.models.compatibility import Compatibility
from echox.models.release.causal import Prompt
from echox.models.release.hearing import windowed
from echox.models.release.language import LanguageModel
from echox.models.release.tokens import ReleaseTokens
from echox.models.release.translator import UnitTranslator
from echox.models.speech_adapter import SpeechAdapter, SpeechVectors
from echox.models.speech_llm import (
    AUDIO,
    PAD,
    Prompted,
    SpeechLLM,
    check_positions,
    splice_speech,
)


class PublishedEchoX(nn.Module):
    """The modules of a released checkpoint, and the tokenizer that belongs to them.

    Args:
        adapter: encoder features -> vectors of the language model.
        language: the text model.
        translator: hidden states -> unit tokens; None in Soundwave, which has no speech output.
        tokens: the tokenizer, with the ids of the prompt.
        compatibility: the form that is computed.
    """

    def __init__(
        self,
        adapter: SpeechAdapter,
        language: LanguageModel,
        translator: UnitTranslator | None,
        tokens: ReleaseTokens,
        compatibility: Compatibility,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.language = language
        self.translator = translator
        self.tokens = tokens
        self.compatibility = compatibility

    def require_translator(self) -> UnitTranslator:
        """Return what decodes units from hidden states.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        if self.translator is None:
            raise CheckpointError(
                f"the checkpoint in {self.tokens.origin} has no unit translator, "
                "as Soundwave has none; take an EchoX to get speech"
            )
        return self.translator

    def expand(
        self, ids: Tensor, speech: SpeechVectors | None, clip_rows: Tensor
    ) -> tuple[Prompted, Tensor]:
        """Replace audio placeholders by the vectors of the clips.

        Args:
            ids: [B, N] token ids, PAD-padded.
            speech: A clips, those of each row one after the other; None where there are none.
            clip_rows: [A] the row of each clip, ascending.

        Returns:
            embeddings [B, P, H] and where the ids went; and ids [B, P] with a placeholder repeated
            for each of its vectors, PAD at padding.
        """
        # `splice_speech` knows the placeholder by echox's own mark.
        marked = torch.where(ids == self.tokens.audio_id, AUDIO, ids)
        spliced = splice_speech(self.language, marked, speech, clip_rows)
        P = spliced.mask.shape[1]
        # A position to which no id was moved lies inside an audio.
        repeated = scatter_rows(ids, spliced.positions, ids != PAD, P, self.tokens.audio_id)
        return spliced, repeated.masked_fill(~spliced.mask, PAD)

    def segment_prompt(self, vectors: Tensor, lengths: Tensor) -> Prompt:
        """Prompts of the unit translator from text vectors of segments [B, S, H], lengths [B]."""
        return self.require_translator().prompt(
            vectors, lengths, self.tokens.before_text(self.compatibility), self.tokens.after_text()
        )


class ReleaseSpeechLLM(SpeechLLM):
    """A released model behind its frozen encoder; adapter and backbone are those inside it."""

    def __init__(self, encoder: Encoder, release: PublishedEchoX) -> None:
        # Not `SpeechLLM`'s: its parts would be registered, and saved, twice.
        nn.Module.__init__(self)
        self.encoder = encoder
        self.release = release

    @property
    def adapter(self) -> SpeechAdapter:  # type: ignore[override]  # registered in `release`
        """The released speech adapter."""
        return self.release.adapter

    @property
    def backbone(self) -> LanguageModel:  # type: ignore[override]  # registered in `release`
        """The released language model."""
        return self.release.language

    def encode_clips(self, clips: Sequence[Tensor]) -> Features:
        """Encode clips [T] in whole windows, in the precision of the released weights."""
        weight = self.backbone.head_rows()
        features = self.encode_audio(windowed(clips, self.encoder.rate_hz).to(weight.device))
        # Whisper may run in another precision.
        return Features(features.values.to(weight.dtype), features.lengths, features.rate_hz)

    def prompt(
        self,
        ids: Tensor,
        speech: SpeechVectors | None,
        clip_rows: Tensor,
        answer_tokens: int = 0,
    ) -> Prompted:
        """Replace the placeholders of prompts by the clips' vectors; see `SpeechLLM.prompt`.

        Raises:
            SignalError: as there, or a row has more or fewer placeholders than clips.
        """
        release = self.release
        ids = ids.masked_fill(ids == AUDIO, release.tokens.audio_id)
        is_audio = ids == release.tokens.audio_id
        check_placeholders(is_audio.sum(1), clip_rows)
        prompted, repeated = release.expand(ids, speech, clip_rows)
        check_positions(prompted.mask.shape[1], answer_tokens, self.backbone.max_positions)
        if release.compatibility.hide_turn_ends:
            # The end-of-turn token is the padding token too, which the release masks.
            has_audio = is_audio.any(1, keepdim=True)
            visible = prompted.mask & ~(has_audio & (repeated == release.tokens.end_id))
            prompted = replace(prompted, mask=visible)
        return prompted


def check_placeholders(placeholders: Tensor, clip_rows: Tensor) -> None:
    """Check that every conversation has one audio placeholder for each of its clips.

    Args:
        placeholders: [B] number of them in each row.
        clip_rows: [A] the row of each clip.

    Raises:
        SignalError: a row has more or fewer placeholders than clips.
    """
    counts = torch.bincount(clip_rows, minlength=len(placeholders))
    for count, clips in zip(placeholders.tolist(), counts.tolist()):
        if count != clips:
            raise SignalError(
                f"the conversation has {count} audio placeholders (<audio_patch>) "
                f"but {clips} audios came with it; give one audio for each"
            )


def scatter_rows(values: Tensor, positions: Tensor, wanted: Tensor, size: int, fill: int) -> Tensor:
    """Move values of each row to other positions.

    Args:
        values: [B, N].
        positions: [B, N] where each goes.
        wanted: bool [B, N], False for values to leave out.
        size: positions P of the result.
        fill: value elsewhere.

    Returns:
        [B, P].
    """
    # Values that are left out are scattered to a spare column that is cut off.
    out = values.new_full((values.shape[0], size + 1), fill)
    return out.scatter(1, torch.where(wanted, positions, size), values)[:, :size]
