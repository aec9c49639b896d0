"""The published EchoX model: speech adapter, language model and unit translator, between an encoder and a vocoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.errors import CheckpointError, SignalError
from echox.models.published.adapter import ShrinkingAdapter, ShrunkSpeech
from echox.models.published.causal import Generated, LanguageModel, Prompt, decode
from echox.models.published.compatibility import Compatibility
from echox.models.published.speaking import SLOTS, speak_prompt, translator_loop
from echox.models.published.tokens import ReleaseTokens
from echox.models.published.translator import UnitTranslator
from echox.models.speech_llm import AUDIO, PAD, splice
from echox.models.unit_loop import UnitLoop

MAX_WORDS = 2048  # of a segment; the release's limit


@dataclass(frozen=True, slots=True)
class Expanded:
    """Ids whose placeholders have become speech."""

    embeddings: Tensor  # [B, P, H], zeros at padding
    visible: Tensor  # bool [B, P] False at padding
    positions: Tensor  # [B, N] where each id now begins
    ids: Tensor  # [B, P] with a placeholder repeated for each of its vectors, PAD at padding

    @property
    def lengths(self) -> Tensor:
        """[B]."""
        return self.visible.sum(1)


class PublishedEchoX(nn.Module):
    """What a published checkpoint holds; `ReleaseTokens` speaks for its vocabulary."""

    def __init__(
        self,
        adapter: ShrinkingAdapter,
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

    def prompt(self, rows: Sequence[Sequence[int]], speech: ShrunkSpeech | None, clip_rows: Tensor) -> Prompt:
        """Conversations with their audios, ready to be answered.

        Args:
            rows: ids of each conversation with one placeholder per audio.
            speech: A clips, all rows' clips one after the other; None where no row has any.
            clip_rows: [A] the row each clip belongs to, ascending.
        Raises:
            SignalError: a row has more or fewer placeholders than clips.
        """
        device = self.language.head.weight.device
        check_placeholders(rows, clip_rows.tolist(), self.tokens.audio_id)
        ids = padded(rows, PAD).to(device)
        expanded = self.expand(ids, speech, clip_rows)
        visible = expanded.visible
        if self.compatibility.hide_turn_ends:
            heard = (ids == self.tokens.audio_id).any(1, keepdim=True)
            visible = visible & ~(heard & (expanded.ids == self.tokens.end_id))
        return Prompt(expanded.embeddings, expanded.lengths, visible)

    def expand(self, ids: Tensor, speech: ShrunkSpeech | None, clip_rows: Tensor) -> Expanded:
        """Put the clips' vectors where placeholders stand: ids [B, N], PAD-padded."""
        embedded = self.language.embed(ids.clamp(min=0))
        if speech is None:
            vectors, lengths = embedded.new_zeros(0, 1, embedded.shape[-1]), clip_rows.new_zeros(0)
        else:
            vectors, lengths = speech.vectors, speech.lengths
        marked = torch.where(ids == self.tokens.audio_id, AUDIO, ids)
        spliced = splice(marked, embedded, vectors, lengths, clip_rows)
        # What no id was placed at lies inside an audio.
        repeated = self.place(ids, spliced.positions, ids != PAD, spliced.mask.shape[1], self.tokens.audio_id)
        return Expanded(spliced.embeddings, spliced.mask, spliced.positions, repeated.masked_fill(~spliced.mask, PAD))

    @staticmethod
    def place(values: Tensor, positions: Tensor, wanted: Tensor, size: int, fill: int) -> Tensor:
        """Values [B, N] at their expanded positions [B, N], where wanted [B, N] -> [B, size], `fill` elsewhere."""
        out = values.new_full((values.shape[0], size + 1), fill)
        return out.scatter(1, torch.where(wanted, positions, size), values)[:, :size]

    def answer(self, prompt: Prompt, max_tokens: int) -> Generated:
        """Greedy text; `hidden` is what is spoken."""
        return decode(self.language, prompt, self.tokens.end_id, max_tokens)

    def speak(self, hidden: Tensor, lengths: Tensor, max_words: int = MAX_WORDS, loop: UnitLoop | None = None) -> Generated:
        """Hidden states of segments [B, S, H], ragged -> unit words, greedy; no context crosses segments.

        Args:
            loop: one of `speaking_loop` to speak in; None makes one for this call, which gives the states too.
        Raises:
            CheckpointError: the checkpoint cannot speak hidden states.
        """
        if self.translator is None:
            raise CheckpointError(f"the checkpoint in {self.tokens.origin} has no voice, as Soundwave has none; take an EchoX to hear the answer")
        prompt = self.segment_prompt(self.translator.denoise(hidden), lengths)
        if loop is None:
            slots, capacity = len(hidden), prompt.embeddings.shape[1] + max_words
            loop = translator_loop(self.translator, self.tokens.end_id, slots=slots, capacity=capacity, keep_states=True)
        return speak_prompt(loop, prompt, self.tokens.end_id, max_words)

    def speaking_loop(self, longest: int, *, slots: int = SLOTS) -> UnitLoop:
        """A loop for segments of up to `longest` text tokens, each of up to `MAX_WORDS` words."""
        frame = len(self.tokens.before_text(self.compatibility)) + len(self.tokens.after_text())
        return translator_loop(self.translator, self.tokens.end_id, slots=slots, capacity=frame + longest + MAX_WORDS)

    def segment_prompt(self, vectors: Tensor, lengths: Tensor) -> Prompt:
        """Text vectors of segments [B, S, H] -> what the unit translator continues."""
        return self.translator.prompt(vectors, lengths, self.tokens.before_text(self.compatibility), self.tokens.after_text())

    def trigger_scores(self, hidden: Tensor) -> Tensor:
        """Likeness of hidden states [..., H] to the head's row of the trigger token, in [-1, 1]: [...]."""
        row = self.language.head.weight[self.tokens.trigger_id]
        return nn.functional.cosine_similarity(hidden.float(), row.float(), dim=-1)


def check_placeholders(rows: Sequence[Sequence[int]], clip_rows: Sequence[int], audio_id: int) -> None:
    """
    Raises:
        SignalError: a row has more or fewer placeholders than clips.
    """
    for number, row in enumerate(rows):
        wanted, given = list(row).count(audio_id), list(clip_rows).count(number)
        if wanted != given:
            raise SignalError(
                f"the conversation has {wanted} audio placeholders (<audio_patch>) but {given} audios came with it; give one audio for each"
            )


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Ragged ints -> [B, max] int64."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)
