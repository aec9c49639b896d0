"""The recogniser that writes down what an answer sounds like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.data.audio import resampled
from echox.device import multiplies_bf16_fast
from echox.disk import sha256_of

RATE_HZ = 16_000
MAX_TOKENS = 128  # of a transcript; Whisper repeats itself on noise


class Transcriber:
    """Whisper, greedy, on its own 30 s window."""

    def __init__(self, weights: str = "whisper_base", *, device: torch.device | str = "cpu", batch_size: int = 16) -> None:
        """
        Args:
            weights: catalogue name, hub id or local folder.
        Raises:
            AssetError: the weights cannot be had, or are not a Whisper.
        """
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        folder = asset_folder(weights)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.dtype = torch.bfloat16 if multiplies_bf16_fast(self.device) else torch.float32
        with loading("a Whisper recogniser with its tokenizer", folder):
            self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=self.dtype, attn_implementation="sdpa")
        self.model = model.to(self.device).eval()
        self.model.generation_config.max_length = MAX_TOKENS
        self.name = f"{weights}@{_revision(Path(folder))} greedy {str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def transcribe(self, clips: Sequence[Tensor], rate_hz: int) -> list[str]:
        """Transcripts of clips [T] at `rate_hz`; a clip without samples has none, and what lies past 30 s is not heard."""
        texts = [""] * len(clips)
        by_length = sorted((number for number, clip in enumerate(clips) if len(clip)), key=lambda number: len(clips[number]))
        for start in range(0, len(by_length), self.batch_size):
            numbers = by_length[start : start + self.batch_size]
            for number, text in zip(numbers, self._batch([resampled(clips[number], rate_hz, RATE_HZ) for number in numbers])):
                texts[number] = text
        return texts

    def _batch(self, clips: Sequence[Tensor]) -> list[str]:
        heard = self.extractor([clip.numpy() for clip in clips], sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True)
        values, mask = heard.input_features.to(self.device, self.dtype), heard.attention_mask.to(self.device)
        language = {"language": "en", "task": "transcribe"} if self.model.generation_config.is_multilingual else {}
        with _without_warnings():
            ids = self.model.generate(input_features=values, attention_mask=mask, num_beams=1, do_sample=False, **language)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The library warns of what it does itself: its own settings of suppressed tokens."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _revision(folder: Path) -> str:
    """What tells one copy of the weights from another: the first hex digits of their sha256."""
    return sha256_of(folder / "model.safetensors")[:12]
