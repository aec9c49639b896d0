"""Where the time of a spoken answer goes: the language model's text, units, their assembly, the vocoder; true shapes, untrained."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS, Codec
from echox.models.decoding import greedy_text
from echox.models.text_loop import text_loop
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_loop.text_speech import decoder_loop, speak_targets
from echox.signals import Units
from echox.vocoders.layout import CONFIG, TINY, build_generator

BACKBONE = "random:HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT_TOKENS, ANSWER_TOKENS = 48, 24
WORDS_PER_TOKEN = 5
# The public unit vocoder of Lee et al. 2022 (fairseq, mHuBERT units, 16 kHz): 320 samples a frame, 512 channels.
VOCODER = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "num_embeddings": 1000,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5},
}


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """Seconds of each part of one batch of answers."""

    batch: int
    text_s: float
    library_text_s: float  # the same text by the language model's own library, step by step
    units_s: float
    assembly_s: float
    vocoder_s: float
    speech_s: float  # length of the speech, all rows together


class AnswerBench:
    """Parts of the demo's size, of random weights, so that nothing has to be trained or fetched."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone: Backbone = BACKBONES.build(BACKBONES.parse({"name": "hub", "weights": BACKBONE})).eval().to(device)
            self.codec = _codec().to(device)
            config = UnitDecoderConfig(max_words_per_token=WORDS_PER_TOKEN)
            self.decoder = UnitDecoder(config, self.backbone.hidden_size, self.codec.word_count).eval().to(device)
        self.loop = decoder_loop(self.decoder)
        self.text_loop = text_loop(self.backbone)

    @torch.no_grad()
    def measured(self, batch: int) -> AnswerTime:
        """One batch of answers of `ANSWER_TOKENS` tokens, the second time it is made."""
        prompt = torch.randint(self.backbone.vocab_size, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)).to(self.device)
        embeddings, mask = self.backbone.embed(prompt), torch.ones_like(prompt, dtype=torch.bool)
        for _ in range(2):
            marks = [self._now_s()]
            said = greedy_text(self.backbone, embeddings, mask, ANSWER_TOKENS, loop=self.text_loop)
            marks.append(self._now_s())
            greedy_text(self.backbone, embeddings, mask, ANSWER_TOKENS)
            marks.append(self._now_s())
            targets = speak_targets(self.decoder, said.hidden, said.lengths, 1024, loop=self.loop)
            marks.append(self._now_s())
            units = self._assembled([[word for word in row if word < self.decoder.word_count] for row in targets])
            marks.append(self._now_s())
            wave = self.codec.decode(units)
            marks.append(self._now_s())
        parts = [after - before for before, after in zip(marks, marks[1:])]
        return AnswerTime(batch, *parts, float(wave.lengths.sum()) / wave.rate_hz)

    def _assembled(self, words: list[list[int]]) -> Units:
        rows = [torch.tensor(self.codec.units_of(row), dtype=torch.int64) for row in words]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return Units(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device), lengths, None)

    def _now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _codec() -> Codec:
    """A unit vocoder of the public size; its words are its units."""
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": "random"}))
    settings = TINY | VOCODER
    codec.net = build_generator(settings, Path(CONFIG)).requires_grad_(False).eval()
    codec.vocab_size = settings["num_embeddings"]
    return codec
