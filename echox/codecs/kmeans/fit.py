"""Fit of the k-means codec: features, clusters, unit language, acoustic model.

Every phase's result is kept until the fit is done, so that an interrupted fit resumes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.codecs.kmeans.acoustic_model import AcousticModel
from echox.codecs.kmeans.fit_config import CodecFitConfig
from echox.codecs.kmeans.folder import write_folder
from echox.codecs.kmeans.mel import MelDiscriminator
from echox.codecs.kmeans.pitch import fundamental
from echox.codecs.kmeans.training import (
    Adversary,
    Clip,
    Effort,
    train_durations,
    train_mel,
    train_pitch,
    with_predicted_voicing,
)
from echox.codecs.kmeans.vocoder import Vocoder, build_vocoder, frames_ratio
from echox.codecs.quantization.kmeans import fit_kmeans, nearest
from echox.codecs.quantization.language import UnitLanguage, density, rates, train_language
from echox.codecs.quantization.phases import Phases, digest_of
from echox.codecs.quantization.quantizer import autocast_on, features_of
from echox.core.config import to_plain
from echox.core.errors import SignalError
from echox.core.indexable import Indexable
from echox.core.progress import Bar, progress
from echox.core.signals import Units
from echox.core.sources import code_of
from echox.encoders.base import ENCODERS, Encoder
from echox.vocoders.mel import MelSpectrogram

PROSODY_RATE, MEL_RATE = 2e-3, 1e-3  # peak learning rates
# Names of the measurements in config.json, in their order there.
MEASURES = (
    "mel_error_true_pitch",
    "mel_error",
    "pitch_error_octaves",
    "voicing_error",
    "duration_ratio",
)


def fit_codec(
    config: CodecFitConfig, clips: Indexable[Tensor], device: str = "cpu"
) -> dict[str, Any]:
    """Fit a codec to recordings of one speaker and write it to `config.folder`.

    Args:
        config: of encoder, clusters, words and networks.
        clips: samples [T] float32 in [-1, 1] at the encoder's rate, one tensor per recording; a
            lazy sequence is read a few times.
        device: of the encoder, the clustering and the networks.

    Returns:
        measurements on the held-out clips, rates and seconds per phase, as config.json holds them.

    Raises:
        SignalError: there are fewer than two clips, or all are too short.
        ConfigError: settings do not fit together.
    """
    return _Fit(config, clips, torch.device(device)).run()


class _Fit:
    """One fit: the phases in order, each reading the results of those before it."""

    def __init__(
        self, config: CodecFitConfig, clips: Indexable[Tensor], device: torch.device
    ) -> None:
        if len(clips) < 2:
            raise SignalError(
                f"fitting a codec needs at least two recordings, got {len(clips)}; give an hour of "
                "one voice"
            )
        self.config, self.clips, self.device = config, clips, device
        self.lengths = [len(clip) for clip in clips]
        self.vocoder: Vocoder = build_vocoder(config.vocoder)
        self.encoder: Encoder = ENCODERS.build(config.encoder).to(device)
        key = {
            "config": to_plain(config),
            "clips": digest_of(clips),
            "code": code_of(self.encoder).digest,
        }
        self.phases = Phases(Path(config.folder), key)
        self.ratio = frames_ratio(self.encoder, self.vocoder)
        count = max(1, round(config.held_out * len(clips))) if config.held_out else 0
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(config.seed))
        # Without held-out clips all are used for both.
        self.held_out = set(order[:count].tolist())
        self.training = [index for index in range(len(clips)) if index not in self.held_out]

    def run(self) -> dict[str, Any]:
        clusters = self._fit_clusters()
        # int16 on the disk, int64 as embeddings take them.
        labels = [clusters[f"labels.{index}"].long() for index in range(len(self.clips))]
        language = self._learn_words(labels)
        model = self._train_acoustic_model(clusters["centroids"], labels)
        # Rates are of all recordings, the errors of held-out ones.
        metrics = {
            **rates(labels, language, sum(self.lengths) / self.encoder.rate_hz),
            **self._measure(model, labels),
            "seconds": self.phases.seconds,
        }
        fingerprint = write_folder(
            Path(self.config.folder),
            encoder=ENCODERS.describe(self.config.encoder),
            vocoder=self.config.vocoder,
            sizes=to_plain(self.config.sizes),
            centroids=clusters["centroids"],
            acoustic_model=model,
            language=language.model,
            metrics=metrics,
        )
        self.phases.report(density(metrics))
        self.phases.remove()
        return {**metrics, "fingerprint": fingerprint}

    def _fit_clusters(self) -> dict[str, Tensor]:
        """Centroids [V, D], and labels [F] int16 of every frame of each recording."""
        # The features, which are large, are freed at the end of this method.
        features = self.phases.tensors("features", self._encode_all)
        return self.phases.tensors("units", lambda: self._quantize_all(features))

    def _encode_all(self) -> dict[str, Tensor]:
        """Index of a recording -> features [F, D] float16."""
        features: dict[str, Tensor] = {}
        budget = int(self.config.batch_s * self.encoder.rate_hz)
        with Bar("encoding recordings", len(self.clips), unit="clip") as bar:
            for batch in _length_batches(self.lengths, budget):
                clips = [self.clips[index] for index in batch]
                encoded = features_of(self.encoder, clips, self.device)
                # float16 halves the memory of what is the largest result of a fit.
                features.update(
                    (str(index), values.half())
                    for index, values in zip(batch, encoded, strict=True)
                )
                bar.update(len(batch))
        return features

    def _quantize_all(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Centroids, and a label per frame; held-out clips take no part in the clustering."""
        points = torch.cat([features[str(index)] for index in self.training]).to(self.device)
        centroids = fit_kmeans(points, self.config.units, seed=self.config.seed)
        labels = {
            f"labels.{index}": nearest(features[str(index)].to(self.device), centroids).short()
            for index in range(len(self.clips))
        }
        return {"centroids": centroids, **labels}

    def _learn_words(self, labels: Sequence[Tensor]) -> UnitLanguage:
        V = self.config.units

        def train() -> bytes:
            merged = [torch.unique_consecutive(units).tolist() for units in labels]
            return train_language(merged, V, self.config.language).model

        return UnitLanguage(V, self.phases.content("language.model", "language", train))

    def _train_acoustic_model(self, centroids: Tensor, labels: Sequence[Tensor]) -> AcousticModel:
        config, seed = self.config, self.config.seed
        # Both are drawn from one seeded generator, in this order.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AcousticModel(config.units, config.sizes, self.ratio, self.vocoder.recipe)
            discriminator = MelDiscriminator(config.judge_channels).to(self.device)
        # On the CPU, so that a seed gives the same values on every device.
        model.init_embeddings(centroids, seed)
        model = model.to(self.device)
        # A function, because a resumed fit whose networks are trained needs no mel and pitch.
        clips = functools.cache(lambda: self._load_clips(self.training, labels))
        self._train_prosody(model, clips)
        adversary = Adversary(discriminator, config.judge_from, config.judge_weight)
        self._train_net(
            "mel",
            model.mel,
            lambda: train_mel(
                model.mel,
                [with_predicted_voicing(clip, model.melody) for clip in clips()],
                Effort(config.mel_steps, config.batch, MEL_RATE, config.mel_limit_s),
                crop_frames=config.crop_frames,
                adversary=adversary,
                seed=seed,
                autocast=self._autocast,
            ),
        )
        return model

    def _train_prosody(self, model: AcousticModel, clips: Callable[[], list[Clip]]) -> None:
        config, duration_net, pitch_net = self.config, model.durations, model.melody
        # Without a time limit, so that durations and pitch are repeatable on any machine.
        effort = Effort(config.prosody_steps, config.batch, PROSODY_RATE, limit_s=float("inf"))
        self._train_net(
            "durations",
            duration_net,
            lambda: train_durations(
                duration_net, clips(), effort, seed=config.seed, autocast=self._autocast
            ),
        )
        self._train_net(
            "melody",
            pitch_net,
            lambda: train_pitch(
                pitch_net,
                clips(),
                effort,
                crop_frames=config.crop_frames * 2,
                seed=config.seed,
                autocast=self._autocast,
            ),
        )

    def _train_net(self, phase: str, net: nn.Module, train: Callable[[], None]) -> None:
        """Train a network in place, or load it from an earlier run."""

        def trained_state_dict() -> dict[str, Tensor]:
            train()
            return net.state_dict()

        net.load_state_dict(self.phases.tensors(phase, trained_state_dict))

    def _autocast(self) -> torch.autocast:
        return autocast_on(self.device)

    def _load_clips(self, indices: Sequence[int], labels: Sequence[Tensor]) -> list[Clip]:
        """Units, pitch and mel of recordings, without those shorter than an encoder frame."""
        clips = (
            self._load_clip(index, labels[index])
            for index in progress(indices, "mel and pitch", unit="clip")
        )
        usable = self.phases.timed(
            "mel and pitch", lambda: [clip for clip in clips if len(clip.units)]
        )
        if not usable:
            raise SignalError(
                "every recording is too short to fit a codec to; give clips of a second or more"
            )
        return usable

    def _load_clip(self, index: int, labels: Tensor) -> Clip:
        recipe = self.vocoder.recipe
        samples = self.clips[index]
        mel = MelSpectrogram(recipe)(samples)
        pitch_hz = fundamental(samples, recipe.sampling_rate, recipe.hop_length)
        # Encoder and mel treat the last part of a hop differently; both are cut to whole frames.
        F = min(len(labels), len(mel) // self.ratio)
        fine = F * self.ratio
        parts = labels[:F], pitch_hz[:fine], mel[:fine].half()
        return Clip(*(part.to(self.device) for part in parts))

    @torch.no_grad()
    def _measure(self, model: AcousticModel, labels: Sequence[Tensor]) -> dict[str, float]:
        """Mean errors of the acoustic model on the held-out clips, or on all if there are none."""
        # Sorted, because a mean depends on the order of its sum.
        indices = sorted(self.held_out) or range(len(labels))
        errors = [_errors(model, clip) for clip in self._load_clips(indices, labels)]
        means: dict[str, float] = {}
        for name in MEASURES:
            if values := [clip_errors[name] for clip_errors in errors if name in clip_errors]:
                means[name] = round(float(torch.stack(values).mean()), 4)
        return means


def _errors(model: AcousticModel, clip: Clip) -> dict[str, Tensor]:
    """Errors on one clip by name, each [].

    Mel errors are absolute, once with true and once with predicted pitch. There is no pitch error
    where no frame is voiced in both.
    """
    units, pitch_hz = clip.units[None], clip.pitch_hz[None]
    keep = torch.ones_like(units, dtype=torch.bool)
    predicted_hz = model.melody.pitch_hz(units, keep)
    is_voiced, is_predicted = pitch_hz > 0, predicted_hz > 0
    # Without repeats, as the decoder gets them, to compare the predicted total length.
    merged = torch.unique_consecutive(clip.units)[None]
    lengths = torch.tensor([merged.shape[1]], device=merged.device)
    _, frames = model(Units(merged, lengths, None))
    errors = {
        "mel_error_true_pitch": _mel_error(model, clip, pitch_hz),
        "mel_error": _mel_error(model, clip, predicted_hz),
        "voicing_error": (is_voiced != is_predicted).float().mean(),
        "duration_ratio": frames[0] / len(clip.mel),
    }
    # The log of an unvoiced frame's 0 Hz is infinite.
    both = is_voiced & is_predicted
    if both.any():
        octaves = (pitch_hz[both] / predicted_hz[both]).log2()
        errors["pitch_error_octaves"] = octaves.abs().mean()
    return errors


def _mel_error(model: AcousticModel, clip: Clip, pitch_hz: Tensor) -> Tensor:
    """Mean absolute error of the log mel predicted from the clip's units and a pitch [1, N]."""
    units = clip.units[None]
    keep = torch.ones_like(units, dtype=torch.bool)
    return (model.mel.mel(units, pitch_hz, keep)[0] - clip.mel).abs().mean()


def _length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices sorted by length, in batches of at most `budget` samples with padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # The clip to add is the longest so far, to whose length the others are padded.
        if not batches or lengths[index] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(index)
    return batches
