"""Fit of HuBERT units: recordings are drawn, frames clustered, units assigned, words learned.

Every phase's result is kept until the fit is done, so that an interrupted fit resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.hubert_units.fit_config import NAME, UnitFitConfig
from echox.codecs.quantization.centres import read_centres
from echox.codecs.quantization.folder import LANGUAGE_FILE, write_fitted
from echox.codecs.quantization.kmeans import fit_kmeans, nearest
from echox.codecs.quantization.language import UnitLanguage, density, rates, train_language
from echox.codecs.quantization.phases import Phases, digest_of
from echox.codecs.quantization.quantizer import features_of
from echox.core.config import to_plain
from echox.core.errors import ConfigError, SignalError
from echox.core.indexable import Indexable
from echox.data.cache import ArrayCache, Compute
from echox.encoders.base import ENCODERS, Encoder, features_fingerprint

WORDS_FILE = "words.txt"  # as `echox-prepare begin words=` takes them
DIGEST_CLIPS = 16  # recordings whose samples identify the corpus when an interrupted fit resumes
COST_PER_S = 100  # batch costs are whole numbers: hundredths of a second


def fit_units(
    folder: str, config: UnitFitConfig, clips: Indexable[Tensor], device: torch.device
) -> dict[str, Any]:
    """Fit units to recordings and write them to `folder`.

    Args:
        folder: created where it does not exist.
        clips: samples [T] float32 in [-1, 1] at the encoder's rate, one tensor per recording; a
            lazy sequence is read two or three times.
        device: of the encoder and the clustering.

    Returns:
        measurements on the held-out recordings and seconds per phase, as config.json holds them.

    Raises:
        SignalError: there are fewer than two recordings.
        ConfigError: centres and encoder do not fit each other.
        CheckpointError: the file of centres cannot be read.
    """
    return _Fit(folder, config, clips, device).run()


class _Fit:
    """One fit. Recordings are in a random order, with the held-out ones at its end."""

    def __init__(
        self, folder: str, config: UnitFitConfig, clips: Indexable[Tensor], device: torch.device
    ) -> None:
        if len(clips) < 2:
            raise SignalError(
                f"fitting units needs at least two recordings, got {len(clips)}; give an hour or "
                "more"
            )
        self.folder, self.config, self.clips, self.device = Path(folder), config, clips, device
        # Before the encoder is loaded, because a wrong path is the likeliest mistake.
        self.published = read_centres(config.centres) if config.centres else None
        self.encoder: Encoder = ENCODERS.build(config.encoder).to(device)
        self._check_centres()
        self.lengths = self._draw_recordings()
        self.order = list(self.lengths)
        # The order is random, so its end is a random sample; one recording at least.
        held_out = max(1, round(config.held_out * len(self.order)))
        self.training, self.held_out = self.order[:-held_out], self.order[-held_out:]
        self.phases = Phases(self.folder, self._key())

    def _check_centres(self) -> None:
        if self.published is None or self.published.shape[1] == self.encoder.dim:
            return
        raise ConfigError(
            f"the centres in {self.config.centres} have {self.published.shape[1]} channels and the "
            f"encoder's frames {self.encoder.dim}; set codec.fit.encoder to the encoder and layer "
            "that they were made with"
        )

    def _draw_recordings(self) -> dict[int, int]:
        """Draw recordings up to the hours asked for, two at least: index -> number of samples."""
        limit = self.config.hours * 3600 * self.encoder.rate_hz
        generator = torch.Generator().manual_seed(self.config.seed)
        lengths: dict[int, int] = {}
        for index in torch.randperm(len(self.clips), generator=generator).tolist():
            if len(lengths) > 1 and sum(lengths.values()) >= limit:
                break
            lengths[index] = len(self.clips[index])
        return lengths

    def _key(self) -> dict[str, Any]:
        """Everything that the results depend on; a few recordings stand for all of them."""
        sample = [self.clips[index] for index in self.order[:DIGEST_CLIPS]]
        return {
            "fit": to_plain(self.config),
            "encoder": features_fingerprint(self.encoder),
            "recordings": len(self.clips),
            "clips": digest_of(sample),
        }

    def run(self) -> dict[str, Any]:
        features = ArrayCache(self.phases.folder, "features")
        centres = self._fit_centres(features)
        units = self._assign_units(features, centres.to(self.device))
        language = self._learn_words(units, len(centres))
        metrics = self._measure(units, language)
        settings = {
            "codec": NAME,
            "encoder": ENCODERS.describe(self.config.encoder),
            "encoder_fingerprint": self.encoder.fingerprint(),
        }
        # The words as text are for people and for `echox-prepare begin`.
        files = {
            LANGUAGE_FILE: language.model,
            WORDS_FILE: "".join(f"{token}\n" for token in language.tokens()).encode(),
        }
        fingerprint = write_fitted(self.folder, settings, {"centres": centres}, files, metrics)
        self.phases.report(density(metrics))
        self.phases.remove()
        return {**metrics, "fingerprint": fingerprint}

    def _fit_centres(self, features: ArrayCache) -> Tensor:
        """Centres [K, D]: the published ones, or those of a sample of frames."""

        def compute() -> dict[str, Tensor]:
            if self.published is not None:
                return {"centres": self.published}
            sample = self._clustered_recordings()
            # float16 halves the cache on the disk.
            self._fill(features, sample, lambda keys: [f.half() for f in self._encode(keys)])
            points = torch.cat([features[str(index)] for index in sample])[: self.config.frames]
            centres = fit_kmeans(points.to(self.device), self.config.units, seed=self.config.seed)
            return {"centres": centres}

        return self.phases.tensors("centres", compute)["centres"]

    def _clustered_recordings(self) -> list[int]:
        """The first recordings, not held out, that have as many frames as are clustered."""
        sample, samples = [], 0
        for index in self.training:
            # frames >= config.frames, multiplied out so that no division rounds.
            if samples * self.encoder.frame_rate_hz >= self.config.frames * self.encoder.rate_hz:
                break
            sample.append(index)
            samples += self.lengths[index]
        return sample

    def _assign_units(self, features: ArrayCache, centres: Tensor) -> ArrayCache:
        """Recording -> a unit for every frame [F] int16, from cached features where there are."""
        units = ArrayCache(self.phases.folder, "units")
        cached = [index for index in self.order if str(index) in features]

        def quantize(clips: Iterable[Tensor]) -> list[Tensor]:
            # int16 is enough: the unit language has room for 6,400 units.
            return [nearest(frames, centres).short() for frames in clips]

        def fill() -> None:
            # A generator, so that one recording at a time is on the device.
            self._fill(
                units, cached, lambda keys: quantize(features[k].to(self.device) for k in keys)
            )
            # `ArrayCache.fill` skips keys that are there, so only the other recordings are encoded.
            self._fill(units, self.order, lambda keys: quantize(self._encode(keys)))

        self.phases.timed("units", fill)
        return units

    def _encode(self, keys: Sequence[str]) -> list[Tensor]:
        return features_of(self.encoder, [self.clips[int(key)] for key in keys], self.device)

    def _fill(self, cache: ArrayCache, recordings: Sequence[int], compute: Compute) -> None:
        """Compute what a cache lacks, in batches of about `batch_s` seconds with padding."""
        rate_hz = self.encoder.rate_hz
        costs = [round(self.lengths[index] / rate_hz * COST_PER_S) for index in recordings]
        cache.fill(
            [str(index) for index in recordings],
            compute,
            costs=costs,
            batch_cost=round(self.config.batch_s * COST_PER_S),
            label=cache.fingerprint,
        )

    def _learn_words(self, units: ArrayCache, vocab_size: int) -> UnitLanguage:
        def train() -> bytes:
            # A generator, so that the units of one recording at a time are a list.
            merged = (
                torch.unique_consecutive(units[str(index)]).tolist() for index in self.training
            )
            return train_language(merged, vocab_size, self.config.language).model

        return UnitLanguage(vocab_size, self.phases.content(LANGUAGE_FILE, "language", train))

    def _measure(self, units: ArrayCache, language: UnitLanguage) -> dict[str, Any]:
        """Rates of units and words on the held-out recordings, and what the fit took."""
        rate_hz = self.encoder.rate_hz
        held_out_s = sum(self.lengths[index] for index in self.held_out) / rate_hz
        return {
            **rates([units[str(index)] for index in self.held_out], language, held_out_s),
            "fitted_s": round(sum(self.lengths.values()) / rate_hz, 1),
            "seconds": self.phases.seconds,
        }
