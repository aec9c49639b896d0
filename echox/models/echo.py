"""Echo: the S2T model whose hidden states are spoken."""

from __future__ import annotations

from torch import Tensor, nn

from echox.models.denoising import DenoisingAdapter, TextVoice
from echox.models.speech_llm import SpeechLLM
from echox.models.unit_loop import UnitLoop


class EchoModel(nn.Module):
    """SpeechLLM -> hidden states -> denoising adapter -> unit decoder."""

    def __init__(self, speech_llm: SpeechLLM, denoiser: DenoisingAdapter, voice: TextVoice) -> None:
        super().__init__()
        self.speech_llm = speech_llm
        self.denoiser = denoiser
        self.voice = voice

    def denoise(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Hidden states [B, S, H] and their next-token logits [B, S, V] -> text vectors [B, S, H]."""
        return self.denoiser(hidden, logits, self.voice.rows)

    def speak(self, hidden: Tensor, lengths: Tensor, max_words: int = 1024, loop: UnitLoop | None = None) -> list[list[int]]:
        """Hidden states [B, S, H] that predicted an answer's tokens -> unit-language words per row, greedy; see `UnitDecoder.generate`."""
        vectors = self.denoise(hidden, self.speech_llm.backbone.logits(hidden))
        return self.voice.decoder.generate(vectors, lengths, max_words, loop)
