"""Alignment of units with the text tokens that they belong to, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.core.files import json_hash
from echox.core.progress import Bar
from echox.core.signals import padded
from echox.core.sources import code_of
from echox.data.cache import ArrayCache
from echox.data.code_caches import adopt
from echox.models.unit_aligner import UnitAligner, alignment_loss, best_alignment, states_of
from echox.tasks.base import StageContext

# The rate of HuBERT's units, at which every letter has one of its own; frames that come more slowly
# are read several times each.
ALIGNED_RATE_HZ = 50
TRAIN_BATCH, TRAIN_LR = 32, 3e-3
WARMUP_STEPS, LR_DECAY = 20, 0.9
ALIGN_BATCH = 64


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text [S] and the units [U] of its speech, or [U * K] with K codebooks."""

    row_id: str
    ids: tuple[int, ...]  # text tokens
    units: tuple[int, ...]  # frame by frame with several codebooks
    kind: str = ""
    target: tuple[int, ...] = ()  # output ids of the unit decoder


def frames_of_counts(counts: Tensor, repeats: int) -> Tensor:
    """Frames of each token from the number of readings that were aligned to it.

    Args:
        counts: [S] readings of each token.
        repeats: readings of each frame.

    Returns:
        [S], the nearest whole frames that add up.
    """
    # Ends are rounded, not counts, whose errors would add up.
    ends = (counts.cumsum(0) + repeats // 2) // repeats
    return ends.diff(prepend=ends.new_zeros(1))


class UnitAlignment:
    """Number of units, or of frames of several codebooks, that belong to each text token.

    An aligner is trained on the utterances, and its best alignment is cached.

    Args:
        backbone: whose tokenizer made the texts.
        codec: of the units.
        context: of the stage, with seed, device and cache folder.
        steps: training steps of the aligner.
    """

    def __init__(self, backbone: Backbone, codec: Codec, context: StageContext, steps: int) -> None:
        self.backbone, self.codec, self.context, self.steps = backbone, codec, context, steps

    def fits(self, utterance: Utterance) -> bool:
        """Whether an utterance can be aligned: it has a text, and a reading for each letter."""
        letters = sum(map(len, self._letters(utterance)))
        return bool(utterance.ids) and len(self._readings(utterance)) >= letters

    def _readings(self, utterance: Utterance) -> list[int]:
        """Units as the aligner reads them, or the first code of each frame.

        Frames of a low rate are repeated, because every letter needs a reading of its own.
        """
        first_codes = utterance.units[:: self.codec.codebooks]
        return [unit for unit in first_codes for _ in range(self._repeats)]

    @property
    def _repeats(self) -> int:
        # Merged units have no rate; they are taken as they are.
        return 1 if self.codec.merges else math.ceil(ALIGNED_RATE_HZ / self.codec.unit_rate_hz)

    @cached_property
    def _texts(self) -> list[str]:
        return self.backbone.token_texts()

    def counts(self, utterances: Sequence[Utterance], trained_on: int) -> list[list[int]]:
        """Units, or frames of several codebooks, of each text token of every utterance.

        Utterances are told apart by content: a clip that is in two manifests can have slightly
        other units in each, for a product in bfloat16 depends on the batch.

        Args:
            utterances: to align; all of them `fits`.
            trained_on: utterances at the front that the aligner is trained on, where the cache is
                not complete.

        Raises:
            AssetError: the cache cannot be written.
        """
        keys = [self._key(utterance) for utterance in utterances]
        # All that the aligner, and with it every alignment, depends on.
        content = [keys, self.steps, self.context.seed]
        code, folder = code_of(self.backbone, self.codec), self.context.cache_dir / "alignments"
        # The backbone's tokenizer gives the letters of a token.
        fingerprint = json_hash([*content, self.backbone.fingerprint(), code.digest])
        # Earlier versions named neither backbone nor code.
        if code.is_own:
            adopt(folder, json_hash(content), fingerprint)
        cache = ArrayCache(folder, fingerprint)
        by_key = dict(zip(keys, utterances, strict=True))
        if not all(key in cache for key in by_key):
            aligner = self._trained_aligner(utterances[:trained_on])
            cache.fill(
                list(by_key),
                lambda missing: self._align(aligner, [by_key[key] for key in missing]),
                costs=[len(self._readings(utterance)) for utterance in by_key.values()],
                batch_size=ALIGN_BATCH,
                label="aligning",
            )
        return [cache[key].tolist() for key in keys]

    def _key(self, utterance: Utterance) -> str:
        content = json.dumps([utterance.ids, self._readings(utterance)])
        return hashlib.sha256(content.encode()).hexdigest()[:24]

    def _letters(self, utterance: Utterance) -> list[list[int]]:
        """States of the aligner for the letters of each text token."""
        return [states_of(self._texts[token]) for token in utterance.ids]

    def _aligner_inputs(
        self, utterances: Sequence[Utterance]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Letters [B, Y], their lengths [B], readings [B, U], their lengths [B], on the device."""
        device = self.context.device
        # Letters of all tokens in a row; the tokens' shares are added up after alignment.
        letters = [sum(self._letters(utterance), []) for utterance in utterances]
        readings = [self._readings(utterance) for utterance in utterances]
        letter_lengths, reading_lengths = (
            torch.tensor(list(map(len, rows)), device=device) for rows in (letters, readings)
        )
        return (
            padded(letters, 0).to(device),
            letter_lengths,
            padded(readings, 0).to(device),
            reading_lengths,
        )

    def _trained_aligner(self, utterances: Sequence[Utterance]) -> UnitAligner:
        aligner = UnitAligner(self.codec.vocab_size).to(self.context.device)
        optimizer = torch.optim.Adam(aligner.parameters(), lr=TRAIN_LR)
        shuffle = torch.Generator().manual_seed(self.context.seed)
        # Batches of like length, so that little of them is padding.
        order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].units))
        batches = [order[i : i + TRAIN_BATCH] for i in range(0, len(order), TRAIN_BATCH)]
        with Bar("training the aligner", self.steps, unit="step") as bar:
            for step in range(self.steps):
                chosen = batches[int(torch.randint(len(batches), (1,), generator=shuffle))]
                inputs = self._aligner_inputs([utterances[i] for i in chosen])
                letters, letter_lengths, readings, reading_lengths = inputs
                scores = aligner(letters, letter_lengths, readings)
                loss = alignment_loss(scores, letter_lengths, reading_lengths)
                optimizer.param_groups[0]["lr"] = self._learning_rate(step)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
                optimizer.step()
                bar.update(note=f"{loss.item():.2f} nats per unit")
        return aligner

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to a tenth."""
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        return TRAIN_LR * warmup * (1 - LR_DECAY * step / self.steps)

    @torch.no_grad()
    def _align(self, aligner: UnitAligner, utterances: Sequence[Utterance]) -> list[Tensor]:
        """Frames [S] of each text token of each utterance, int32."""
        letters, letter_lengths, readings, reading_lengths = self._aligner_inputs(utterances)
        scores = aligner(letters, letter_lengths, readings)
        counts = best_alignment(scores, letter_lengths, reading_lengths).cpu()  # [B, Y] per letter
        frames = []
        # Counts of letters -> of text tokens -> frames, where a frame is read several times.
        for utterance, letter_counts in zip(utterances, counts):
            sizes = [len(states) for states in self._letters(utterance)]
            by_token = letter_counts[: sum(sizes)].split(sizes)
            token_counts = torch.stack([piece.sum() for piece in by_token])
            frames.append(frames_of_counts(token_counts, self._repeats).int())
        return frames
