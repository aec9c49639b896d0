"""Time of a spoken answer by part: text, units, their assembly, vocoder.

Models have the shapes of the demo and random weights, so nothing has to be trained or fetched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS, Codec
from echox.core.signals import Units, Waveform
from echox.decoding.greedy_text import greedy_text
from echox.decoding.text import text_decode_engine
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import generate_targets, unit_decode_engine
from echox.vocoders.layout import CONFIG, TINY, build_generator

BACKBONE = "random:HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT_TOKENS, ANSWER_TOKENS = 48, 24
WORDS_PER_TOKEN = 5  # at most; an untrained decoder ends by this rule alone
# The public unit vocoder of Lee et al. 2022 (fairseq, mHuBERT units, 16 kHz): 320 samples a frame,
# 512 channels.
VOCODER = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "num_embeddings": 1000,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """Seconds of each part of one batch of answers."""

    batch: int
    text_s: float
    library_text_s: float  # the same text by transformers, step by step
    units_s: float
    assembly_s: float
    vocoder_s: float
    speech_s: float  # duration of the speech, all rows together


class AnswerBench:
    """The models of a spoken answer, in the demo's size, with random weights.

    Args:
        device: the models run on.
        seed: of the weights.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        # The weights are drawn on the CPU; a forked generator leaves the caller's as it is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone_config = BACKBONES.parse({"name": "hub", "weights": BACKBONE})
            self.backbone: Backbone = BACKBONES.build(backbone_config).eval().to(device)
            self.codec = _codec().to(device)
            decoder_config = UnitDecoderConfig(max_words_per_token=WORDS_PER_TOKEN)
            decoder = UnitDecoder(
                decoder_config, self.backbone.hidden_size, self.codec.unit_vocab_size
            )
            self.decoder = decoder.eval().to(device)
        self.unit_engine = unit_decode_engine(self.decoder)
        self.text_engine = text_decode_engine(self.backbone)

    @torch.no_grad()
    def measure(self, batch: int) -> AnswerTime:
        """Measure one batch of answers of `ANSWER_TOKENS` tokens.

        Args:
            batch: B, answers that are generated together from prompts [B, P].

        Returns:
            seconds of each part, and of the speech.
        """
        generator = torch.Generator().manual_seed(0)
        size = (batch, PROMPT_TOKENS)
        prompt = torch.randint(self.backbone.vocab_size, size, generator=generator).to(self.device)
        embeddings, mask = self.backbone.embed(prompt), torch.ones_like(prompt, dtype=torch.bool)
        # The second run counts: the first one compiles, captures and allocates.
        for _ in range(2):
            marks_s, wave = self._run(embeddings, mask)
        text_s, library_text_s, units_s, assembly_s, vocoder_s = (
            end - start for start, end in zip(marks_s, marks_s[1:])
        )
        return AnswerTime(
            batch,
            text_s,
            library_text_s,
            units_s,
            assembly_s,
            vocoder_s,
            speech_s=float(wave.lengths.sum()) / wave.rate_hz,
        )

    def _run(self, embeddings: Tensor, mask: Tensor) -> tuple[list[float], Waveform]:
        """The times between the parts in the order of `AnswerTime`, and the speech.

        Args:
            embeddings: prompts [B, P, H].
            mask: bool [B, P].
        """
        marks_s = [self._now_s()]
        text = greedy_text(self.backbone, embeddings, mask, ANSWER_TOKENS, engine=self.text_engine)
        marks_s.append(self._now_s())
        greedy_text(self.backbone, embeddings, mask, ANSWER_TOKENS)
        marks_s.append(self._now_s())
        targets = generate_targets(
            self.decoder, text.hidden, text.lengths, 1024, engine=self.unit_engine
        )
        marks_s.append(self._now_s())
        units = self._assemble(targets)
        marks_s.append(self._now_s())
        wave = self.codec.decode(units)
        marks_s.append(self._now_s())
        return marks_s, wave

    def _assemble(self, targets: Sequence[list[int]]) -> Units:
        """Units of decoded targets, whose marks are left out."""
        vocab_size = self.decoder.unit_vocab_size
        rows = [
            self.codec.units_of([token for token in row if token < vocab_size]) for row in targets
        ]
        return Units.of_rows(rows, codebooks=1, device=self.device)

    def _now_s(self) -> float:
        # Kernels run asynchronously: without waiting, their time would count for a later part.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _codec() -> Codec:
    """A unit vocoder of the public size; its unit tokens are its units."""
    # A folder "random" has the smallest size, so its generator is replaced by one of `VOCODER`.
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": "random"}))
    settings = TINY | VOCODER
    codec.net = build_generator(settings, Path(CONFIG)).requires_grad_(False).eval()
    codec.vocab_size = settings["num_embeddings"]
    return codec
