"""Fitting of units: recordings drawn, frames clustered or centres read, every frame to its unit, words learned, all of it resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.hubert_units.codec import NAME
from echox.codecs.hubert_units.fit_config import UnitFitConfig
from echox.codecs.quantization.centres import read_centres
from echox.codecs.quantization.folder import LANGUAGE_FILE, write_fitted
from echox.codecs.quantization.kmeans import fit_kmeans, nearest
from echox.codecs.quantization.language import UnitLanguage, density, rates, train_language
from echox.codecs.quantization.phases import Phases, digest_of
from echox.codecs.quantization.quantizer import features_of
from echox.config import to_plain
from echox.data.cache import ArrayCache, Compute
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import ConfigError, SignalError

WORDS_FILE = "words.txt"  # as `echox-prepare begin words=` takes them
PROBED_CLIPS = 16  # by which recordings are known again when an interrupted fit goes on


def fit_units(folder: str, config: UnitFitConfig, clips: Sequence[Tensor], device: torch.device) -> dict[str, Any]:
    """Fit units to recordings, and write them to `folder`.

    Args:
        clips: samples [T] float32 in [-1, 1] at the encoder's rate, one tensor a recording; a lazy sequence is read two or three times.
        device: of the encoder and the clustering.
    Returns:
        what was measured on the held-out recordings, and seconds per phase; `config.json` holds it too.
    Raises:
        SignalError: there are fewer than two recordings. ConfigError: centres and encoder do not fit each other.
        CheckpointError: the file of centres cannot be read.
    """
    return _Fit(folder, config, clips, device).run()


class _Fit:
    """One fit: recordings in a random order, those held out at its end."""

    def __init__(self, folder: str, config: UnitFitConfig, clips: Sequence[Tensor], device: torch.device) -> None:
        if len(clips) < 2:
            raise SignalError(f"fitting units needs at least two recordings, got {len(clips)}; give an hour or more")
        self.folder, self.config, self.clips, self.device = Path(folder), config, clips, device
        # First of all, for it is the likeliest to be wrong.
        self.published = read_centres(config.centres) if config.centres else None
        self.encoder: Encoder = ENCODERS.build(config.encoder).to(device)
        if self.published is not None and self.published.shape[1] != self.encoder.dim:
            raise ConfigError(
                f"the centres in {config.centres} have {self.published.shape[1]} channels and the encoder's frames {self.encoder.dim}; "
                "set codec.fit.encoder to the encoder and layer that they were made with"
            )
        self.lengths = self._drawn()
        self.rows = list(self.lengths)
        self.held_out = max(1, round(config.held_out * len(self.rows)))
        key = {"fit": to_plain(config), "encoder": self.encoder.fingerprint(), "recordings": len(clips)}
        self.phases = Phases(self.folder, key | {"clips": digest_of([clips[row] for row in self.rows[:PROBED_CLIPS]])})

    def _drawn(self) -> dict[int, int]:
        """Recordings up to the hours asked for, two at least, in a random order -> their samples."""
        limit = self.config.hours * 3600 * self.encoder.rate_hz
        lengths: dict[int, int] = {}
        for row in torch.randperm(len(self.clips), generator=torch.Generator().manual_seed(self.config.seed)).tolist():
            if len(lengths) > 1 and sum(lengths.values()) >= limit:
                break
            lengths[row] = len(self.clips[row])
        return lengths

    def run(self) -> dict[str, Any]:
        features = ArrayCache(self.phases.folder, "features")
        centres = self.phases.tensors("centres", lambda: {"centres": self._centres(features)})["centres"]
        units = self._units(features, centres.to(self.device))
        language = self._language(units, len(centres))
        held = [units[str(row)] for row in self.rows[-self.held_out :]]
        audio_s = sum(self.lengths[row] for row in self.rows[-self.held_out :]) / self.encoder.rate_hz
        metrics = {**rates(held, language, audio_s), "fitted_s": round(sum(self.lengths.values()) / self.encoder.rate_hz, 1), "seconds": self.phases.seconds}
        settings = {"codec": NAME, "encoder": ENCODERS.describe(self.config.encoder), "encoder_fingerprint": self.encoder.fingerprint()}
        files = {LANGUAGE_FILE: language.model, WORDS_FILE: "".join(f"{token}\n" for token in language.tokens()).encode()}
        fingerprint = write_fitted(self.folder, settings, {"centres": centres}, files, metrics)
        self.phases.tell(density(metrics))
        self.phases.done()
        return {**metrics, "fingerprint": fingerprint}

    def _centres(self, features: ArrayCache) -> Tensor:
        """Published ones, or those of a sample of frames."""
        if self.published is not None:
            return self.published
        rows = self._sample()
        self._fill(features, rows, lambda keys: [values.half() for values in self._heard(keys)])
        points = torch.cat([features[str(row)] for row in rows])[: self.config.frames]
        return fit_kmeans(points.to(self.device), self.config.units, seed=self.config.seed)

    def _sample(self) -> list[int]:
        """The first recordings that have as many frames as are clustered; held-out ones take no part."""
        rows, samples = [], 0
        for row in self.rows[: -self.held_out]:
            if samples * self.encoder.frame_rate_hz >= self.config.frames * self.encoder.rate_hz:
                break
            rows.append(row)
            samples += self.lengths[row]
        return rows

    def _units(self, features: ArrayCache, centres: Tensor) -> ArrayCache:
        """Recording -> a unit for every frame [F] int16; what was clustered is not encoded again."""
        units = ArrayCache(self.phases.folder, "units")
        known = [row for row in self.rows if str(row) in features]

        def fill() -> None:
            self._fill(units, known, lambda keys: [nearest(features[key].to(self.device), centres).short() for key in keys])
            self._fill(units, self.rows, lambda keys: [nearest(values, centres).short() for values in self._heard(keys)])

        self.phases.timed("units", fill)
        return units

    def _heard(self, keys: Sequence[str]) -> list[Tensor]:
        return features_of(self.encoder, [self.clips[int(key)] for key in keys], self.device)

    def _fill(self, cache: ArrayCache, rows: Sequence[int], compute: Compute) -> None:
        costs = [round(self.lengths[row] / self.encoder.rate_hz * 100) for row in rows]
        cache.fill([str(row) for row in rows], compute, costs=costs, batch_cost=round(self.config.batch_s * 100), label=cache.fingerprint)

    def _language(self, units: ArrayCache, vocab_size: int) -> UnitLanguage:
        def learn() -> bytes:
            merged = (torch.unique_consecutive(units[str(row)]).tolist() for row in self.rows[: -self.held_out])
            return train_language(merged, vocab_size, self.config.language).model

        return UnitLanguage(vocab_size, self.phases.content(LANGUAGE_FILE, "language", learn))
