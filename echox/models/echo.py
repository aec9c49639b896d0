"""Echo: the S2T model whose hidden states are spoken."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from echox.models.denoising import DenoisingAdapter, TextVoice
from echox.models.segmenting import Cutter, SegmentsConfig, cut, whole
from echox.models.speech_llm import SpeechLLM
from echox.models.unit_loop import UnitLoop
from echox.models.unit_loop.loop import Impl
from echox.models.unit_loop.text_speech import decoder_loop
from echox.signals import Spans


class EchoModel(nn.Module):
    """SpeechLLM -> hidden states -> denoising adapter -> unit decoder.

    Args:
        segments: how answers are cut before they are spoken, each segment by itself; None speaks them whole.
        teacher: a frozen T2C model that makes labels while this one is trained; checkpoints do without it.
    """

    def __init__(
        self,
        speech_llm: SpeechLLM,
        denoiser: DenoisingAdapter,
        voice: TextVoice,
        segments: SegmentsConfig | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.speech_llm = speech_llm
        self.denoiser = denoiser
        self.voice = voice
        self.teacher = teacher
        self.cutter = None if segments is None else Cutter(segments, speech_llm.backbone)

    def denoise(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Hidden states [B, S, H] and their next-token logits [B, S, V] -> text vectors [B, S, H]."""
        return self.denoiser(hidden, logits, self.voice.rows)

    def spans(self, hidden: Tensor, lengths: Tensor) -> Spans:
        """What is spoken at a time: hidden [B, S, H], lengths [B]."""
        return whole(lengths) if self.cutter is None else self.cutter.spans(hidden, lengths)

    def speak(self, hidden: Tensor, lengths: Tensor, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """Hidden states [B, S, H] that predicted an answer's tokens -> unit-language words per row, greedy.

        Args:
            max_words: words and marks of a segment at most; loop: see `UnitDecoder.generate`.
        """
        return self.speak_spans(hidden, self.spans(hidden, lengths), max_words, loop)

    def speak_spans(self, hidden: Tensor, spans: Spans, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """The same for segments that are cut already; the words of a row's segments are joined."""
        words: list[list[int]] = [[] for _ in hidden]
        if len(spans.rows):
            vectors, lengths = cut(self.denoise(hidden, self.speech_llm.backbone.logits(hidden)), spans)
            for row, said in zip(spans.rows.tolist(), self.voice.decoder.generate(vectors, lengths, max_words, loop)):
                words[row] += said
        return words


class Teacher(nn.Module):
    """A T2C model that says how texts are spoken: frozen, and in eval mode whatever mode its owner is in."""

    def __init__(self, voice: TextVoice) -> None:
        super().__init__()
        self.voice = voice.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def targets(self, text: Tensor, lengths: Tensor, max_words: int = 1024) -> list[list[int]]:
        """Token ids [G, S] -> target ids of the unit decoder per row, at most `max_words` and an end."""
        # Without CUDA graphs, which would be captured anew at every step, and while gradients travel.
        capacity = (int(lengths.max()) if len(lengths) else 0) + max_words
        loop = decoder_loop(self.voice.decoder, slots=max(1, len(text)), capacity=capacity, impl=Impl.plain)
        return self.voice.targets(text, lengths, max_words, loop)


def teacher_of(voice: TextVoice) -> Teacher:
    """A frozen copy of a T2C model. Text rows without a spelling are never trained, and as large as the model's head: they are shared."""
    rows = voice.rows if voice.rows.spelling is None else copy.deepcopy(voice.rows)
    return Teacher(TextVoice(rows, copy.deepcopy(voice.decoder)))
