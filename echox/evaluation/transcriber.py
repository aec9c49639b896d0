"""The recogniser that transcribes synthesized answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.core.device import multiplies_bf16_fast
from echox.core.files import sha256_of
from echox.core.transformers_compat import on_device
from echox.data.audio import resampled

RATE_HZ = 16_000
MAX_TOKENS = 128  # of a transcript; Whisper repeats itself on noise, without end


class Transcriber:
    """Whisper with greedy decoding of clips [T], on its own window of 30 seconds.

    Args:
        weights: catalogue name, hub id or local folder.
        device: the model runs on.
        batch_size: clips transcribed at once.

    Raises:
        AssetError: the weights cannot be had, or are not a Whisper.
    """

    def __init__(
        self,
        weights: str = "whisper_base",
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> None:
        # Imported here: the library loads a model's code when its name is asked for.
        from transformers import (
            AutoTokenizer,
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
        )

        folder = asset_folder(weights)
        self.device = torch.device(device)
        self.batch_size = batch_size
        # Cast as a whole, not by autocast, which would keep the weights in float32.
        self.dtype = torch.bfloat16 if multiplies_bf16_fast(self.device) else torch.float32
        with loading("a Whisper recogniser with its tokenizer", folder):
            self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=self.dtype, attn_implementation="sdpa"
            )
        self.model = on_device(model, self.device).eval()
        self.model.generation_config.max_length = MAX_TOKENS
        dtype = str(self.dtype).removeprefix("torch.")
        # As reports name it; the precision belongs to it, because it changes transcripts.
        self.name = f"{weights}@{_revision(Path(folder))} greedy {dtype}"

    @torch.no_grad()
    def transcribe(self, clips: Sequence[Tensor], rate_hz: int) -> list[str]:
        """Transcribe clips.

        Args:
            clips: samples [T] each; what lies past 30 seconds is not transcribed.
            rate_hz: samples per second of all clips.

        Returns:
            transcripts in the order of the clips, empty for a clip without samples.
        """
        texts = [""] * len(clips)
        numbers = [number for number, clip in enumerate(clips) if len(clip)]
        # Similar lengths together: a batch decodes until its longest transcript ends.
        by_length = sorted(numbers, key=lambda number: len(clips[number]))
        for start in range(0, len(by_length), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            samples = [resampled(clips[number], rate_hz, RATE_HZ) for number in batch]
            for number, text in zip(batch, self._transcribe_batch(samples)):
                texts[number] = text
        return texts

    def _transcribe_batch(self, clips: Sequence[Tensor]) -> list[str]:
        features = self.extractor(
            [clip.numpy() for clip in clips],
            sampling_rate=RATE_HZ,
            return_tensors="pt",
            return_attention_mask=True,
        )
        options: dict[str, Any] = {"num_beams": 1, "do_sample": False}
        # An English Whisper has no tokens for the language and refuses them.
        if self.model.generation_config.is_multilingual:
            options |= {"language": "en", "task": "transcribe"}
        with _without_warnings():
            ids = self.model.generate(
                input_features=features.input_features.to(self.device, self.dtype),
                attention_mask=features.attention_mask.to(self.device),
                **options,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the library, which warns of its own settings of suppressed tokens."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _revision(folder: Path) -> str:
    """The first hex digits of the sha256 of the weights, which tell copies from each other."""
    return sha256_of(folder / "model.safetensors")[:12]
