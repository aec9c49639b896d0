"""Which units sound which text token: found once for all utterances, and kept on the disk."""

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
from echox.data.cache import ArrayCache
from echox.models.unit_aligner import UnitAligner, alignment_loss, best_alignment, states_of
from echox.progress import Bar
from echox.tasks.base import StageContext
from echox.tasks.spoken import padded

# The rate of HuBERT's units, at which every letter has one of its own; frames that come more slowly are read several times each.
ALIGNED_RATE_HZ = 50


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text and the units of its speech."""

    row_id: str
    ids: tuple[int, ...]
    units: tuple[int, ...]
    kind: str = ""
    target: tuple[int, ...] = ()


def frames_of_counts(counts: Tensor, repeats: int) -> Tensor:
    """How often each token was given a frame's readings [S], `repeats` of each frame -> frames of each token [S], the nearest that add up."""
    ends = (counts.cumsum(0) + repeats // 2) // repeats
    return ends.diff(prepend=ends.new_zeros(1))


class UnitAlignment:
    """Finds how many units, or frames of several codebooks, sound each text token, with an aligner that it trains on the utterances."""

    def __init__(self, backbone: Backbone, codec: Codec, context: StageContext, steps: int) -> None:
        """Args: steps: of the aligner's training."""
        self.backbone, self.codec, self.context, self.steps = backbone, codec, context, steps

    def fits(self, utterance: Utterance) -> bool:
        """Whether there is a text, and a unit for each of its letters."""
        letters = sum(map(len, self._letters(utterance)))
        return bool(utterance.ids) and len(self._sounds(utterance)) >= letters

    def _sounds(self, utterance: Utterance) -> list[int]:
        """What the aligner reads: units, or each frame's first code, as often as makes frames of a low rate as many as letters need."""
        return [unit for unit in utterance.units[:: self.codec.codebooks] for _ in range(self._repeats)]

    @property
    def _repeats(self) -> int:
        return 1 if self.codec.merges else math.ceil(ALIGNED_RATE_HZ / self.codec.unit_rate_hz)

    @cached_property
    def _texts(self) -> list[str]:
        return self.backbone.token_texts()

    def counts(self, utterances: Sequence[Utterance], trained_on: int) -> list[list[int]]:
        """Units per text token of every utterance, in their order, from the cache or from an aligner trained on the first `trained_on`.

        Utterances are told apart by what they hold: a clip that is in two manifests can have slightly other units in each, for a product
        in bfloat16 depends on the batch.
        """
        keys = [self._key(utterance) for utterance in utterances]
        content = json.dumps([keys, self.steps, self.context.seed])
        cache = ArrayCache(self.context.cache_dir / "alignments", hashlib.sha256(content.encode()).hexdigest()[:16])
        by_key = dict(zip(keys, utterances, strict=True))
        if not all(key in cache for key in by_key):
            aligner = self._trained_aligner(utterances[:trained_on])
            costs = [len(self._sounds(utterance)) for utterance in by_key.values()]
            cache.fill(list(by_key), lambda found: self._aligned(aligner, [by_key[key] for key in found]), costs=costs, batch_size=64, label="aligning")
        return [cache[key].tolist() for key in keys]

    def _key(self, utterance: Utterance) -> str:
        return hashlib.sha256(json.dumps([utterance.ids, self._sounds(utterance)]).encode()).hexdigest()[:24]

    def _letters(self, utterance: Utterance) -> list[list[int]]:
        return [states_of(self._texts[token]) for token in utterance.ids]

    def _aligner_inputs(self, rows: Sequence[Utterance]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        letters = [sum(self._letters(row), []) for row in rows]
        units = [self._sounds(row) for row in rows]
        lengths = [torch.tensor(list(map(len, ragged)), device=self.context.device) for ragged in (letters, units)]
        return padded(letters, 0).to(self.context.device), lengths[0], padded(units, 0).to(self.context.device), lengths[1]

    def _trained_aligner(self, rows: Sequence[Utterance], batch_size: int = 32, lr: float = 3e-3) -> UnitAligner:
        aligner = UnitAligner(self.codec.vocab_size).to(self.context.device)
        optimizer = torch.optim.Adam(aligner.parameters(), lr=lr)
        shuffle = torch.Generator().manual_seed(self.context.seed)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].units))
        batches = [by_length[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        steps = self.steps
        with Bar("training the aligner", steps, unit="step") as bar:
            for step in range(steps):
                chosen = batches[int(torch.randint(len(batches), (1,), generator=shuffle))]
                letters, letter_lengths, units, unit_lengths = self._aligner_inputs([rows[i] for i in chosen])
                loss = alignment_loss(aligner(letters, letter_lengths, units), letter_lengths, unit_lengths)
                optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
                optimizer.step()
                bar.update(note=f"{loss.item():.2f} nats per unit")
        return aligner

    @torch.no_grad()
    def _aligned(self, aligner: UnitAligner, rows: Sequence[Utterance]) -> list[Tensor]:
        letters, letter_lengths, units, unit_lengths = self._aligner_inputs(rows)
        counts = best_alignment(aligner(letters, letter_lengths, units), letter_lengths, unit_lengths).cpu()
        results = []
        for row, per_letter in zip(rows, counts):
            sizes = [len(states) for states in self._letters(row)]
            counts_of_tokens = torch.stack([piece.sum() for piece in per_letter[: sum(sizes)].split(sizes)])
            results.append(frames_of_counts(counts_of_tokens, self._repeats).int())
        return results
