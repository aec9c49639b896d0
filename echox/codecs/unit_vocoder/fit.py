"""Fitting of the codec: features, clusters, unit language, nets; every phase's result is kept until the whole is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.quantization.kmeans import fit_kmeans, nearest
from echox.codecs.quantization.language import UnitLanguage, density, rates, train_language
from echox.codecs.quantization.phases import Phases, digest_of
from echox.codecs.quantization.quantizer import autocast_on, features_of
from echox.codecs.unit_vocoder.codec import frames_ratio, write_folder
from echox.codecs.unit_vocoder.fit_config import CodecFitConfig
from echox.codecs.unit_vocoder.mel import MelJudge
from echox.codecs.unit_vocoder.pitch import fundamental
from echox.codecs.unit_vocoder.speaker import UnitSpeaker
from echox.codecs.unit_vocoder.training import Clip, Effort, train_durations, train_mel, train_melody, with_told_voicing
from echox.codecs.unit_vocoder.vocoder import Vocoder, build_vocoder
from echox.config import to_plain
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import SignalError
from echox.progress import Bar, progress
from echox.signals import Units
from echox.vocoders.mel import MelSpectrogram


def fit_codec(config: CodecFitConfig, clips: Sequence[Tensor], device: str = "cpu") -> dict[str, Any]:
    """Fit a codec to recordings of the voice it shall speak with, and write it to `config.folder`.

    Args:
        clips: samples [T] float32 in [-1, 1] at the encoder's rate, one tensor a recording; a lazy sequence is read a few times.
        device: of the encoder, the clustering and the nets.
    Returns:
        what was measured on the held-out clips, rates and seconds per phase; `config.json` holds it too.
    Raises:
        SignalError: there are fewer than two clips, or all are too short. ConfigError: settings that do not fit together.
    """
    return _Fit(config, clips, torch.device(device)).run()


class _Fit:
    """One fit: the phases in order, each reading what those before it kept."""

    def __init__(self, config: CodecFitConfig, clips: Sequence[Tensor], device: torch.device) -> None:
        if len(clips) < 2:
            raise SignalError(f"fitting a codec needs at least two recordings, got {len(clips)}; give an hour of one voice")
        self.config, self.clips, self.device = config, clips, device
        self.lengths = [len(clip) for clip in clips]
        self.phases = Phases(Path(config.folder), {"config": to_plain(config), "clips": digest_of(clips)})
        self.vocoder: Vocoder = build_vocoder(config.vocoder)
        self.encoder: Encoder = ENCODERS.build(config.encoder).to(device)
        self.ratio = frames_ratio(self.encoder, self.vocoder)
        count = max(1, round(config.held_out * len(clips))) if config.held_out else 0
        self.held_rows = set(torch.randperm(len(clips), generator=torch.Generator().manual_seed(config.seed))[:count].tolist())

    def run(self) -> dict[str, Any]:
        clusters = self._clusters()
        labels = [clusters[f"labels.{row}"].long() for row in range(len(self.clips))]
        language = self._language(labels)
        speaker = self._speaker(clusters["centroids"], labels)
        metrics = {**rates(labels, language, sum(self.lengths) / self.encoder.rate_hz), **self._measure(speaker, labels), "seconds": self.phases.seconds}
        fingerprint = write_folder(
            Path(self.config.folder),
            encoder=ENCODERS.describe(self.config.encoder),
            vocoder=self.config.vocoder,
            sizes=to_plain(self.config.sizes),
            centroids=clusters["centroids"],
            speaker=speaker,
            language=language.model,
            metrics=metrics,
        )
        self.phases.tell(density(metrics))
        self.phases.done()
        return {**metrics, "fingerprint": fingerprint}

    def _clusters(self) -> dict[str, Tensor]:
        """Centroids and labels; the features, which are large, are let go."""
        features = self.phases.tensors("features", self._features)
        return self.phases.tensors("units", lambda: self._units(features))

    def _features(self) -> dict[str, Tensor]:
        """Clip row -> features [F, D] float16; clips of about equal length are encoded together."""
        found: dict[str, Tensor] = {}
        with Bar("encoding recordings", len(self.clips), unit="clip") as bar:
            for rows in _batches(self.lengths, int(self.config.batch_s * self.encoder.rate_hz)):
                made = features_of(self.encoder, [self.clips[row] for row in rows], self.device)
                found.update((str(row), values.half()) for row, values in zip(rows, made, strict=True))
                bar.update(len(rows))
        return found

    def _units(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Centroids, and a unit per frame of every clip; held-out clips take no part in the clustering."""
        rows = range(len(self.clips))
        points = torch.cat([features[str(row)] for row in rows if row not in self.held_rows]).to(self.device)
        centroids = fit_kmeans(points, self.config.units, seed=self.config.seed)
        labels = {f"labels.{row}": nearest(features[str(row)].to(self.device), centroids).short() for row in rows}
        return {"centroids": centroids, **labels}

    def _language(self, labels: Sequence[Tensor]) -> UnitLanguage:
        def learn() -> bytes:
            merged = [torch.unique_consecutive(row).tolist() for row in labels]
            return train_language(merged, self.config.units, self.config.language).model

        return UnitLanguage(self.config.units, self.phases.content("language.model", "language", learn))

    def _speaker(self, centroids: Tensor, labels: Sequence[Tensor]) -> UnitSpeaker:
        """The trained nets."""
        config = self.config
        autocast = partial(autocast_on, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            speaker = UnitSpeaker(config.units, config.sizes, self.ratio, self.vocoder.recipe)
            judge = MelJudge(config.judge_channels).to(self.device)
        speaker.start_from(centroids, config.seed)
        speaker = speaker.to(self.device)
        clips = self._clips(labels, [row for row in range(len(labels)) if row not in self.held_rows])
        prosody = Effort(config.prosody_steps, config.batch, 2e-3, float("inf"))
        mel = Effort(config.mel_steps, config.batch, 1e-3, config.mel_limit_s)
        net_of: dict[str, tuple[torch.nn.Module, Callable[[], float]]] = {
            "durations": (speaker.durations, lambda: train_durations(speaker.durations, clips(), prosody, config.seed, autocast)),
            "melody": (speaker.melody, lambda: train_melody(speaker.melody, clips(), prosody, config.crop_frames * 2, config.seed, autocast)),
            "mel": (
                speaker.mel,
                lambda: train_mel(
                    speaker.mel, [with_told_voicing(clip, speaker.melody) for clip in clips()], mel, config.crop_frames, judge, config.judge_from, config.judge_weight, config.seed, autocast
                ),
            ),
        }
        for phase, (net, train) in net_of.items():

            def trained(net=net, train=train) -> dict[str, Tensor]:
                train()
                return net.state_dict()

            net.load_state_dict(self.phases.tensors(phase, trained))
        return speaker

    def _clips(self, labels: Sequence[Tensor], rows: Sequence[int]) -> Callable[[], list[Clip]]:
        """What the nets learn from, computed when the first phase asks for it."""
        made: list[Clip] = []

        def clips() -> list[Clip]:
            if not made:
                found = (self._clip(row, labels[row]) for row in progress(rows, "mel and pitch", unit="clip"))
                made.extend(self.phases.timed("mel and pitch", lambda: [clip for clip in found if len(clip.units)]))
                if not made:
                    raise SignalError("every recording is too short to fit a codec to; give clips of a second or more")
            return made

        return clips

    def _clip(self, row: int, labels: Tensor) -> Clip:
        recipe = self.vocoder.recipe
        samples = self.clips[row]
        mel = MelSpectrogram(recipe)(samples)
        pitch_hz = fundamental(samples, recipe.sampling_rate, recipe.hop_length)
        F = min(len(labels), len(mel) // self.ratio)
        fine = F * self.ratio
        return Clip(*(part.to(self.device) for part in (labels[:F], pitch_hz[:fine], mel[:fine].half())))

    @torch.no_grad()
    def _measure(self, speaker: UnitSpeaker, labels: Sequence[Tensor]) -> dict[str, float]:
        """Errors on the held-out clips: mel with true and with predicted pitch, pitch, voicing, total duration."""
        found: dict[str, list[Tensor]] = {"mel_error_true_pitch": [], "mel_error": [], "pitch_error_octaves": [], "voicing_error": [], "duration_ratio": []}
        for clip in self._clips(labels, sorted(self.held_rows) or range(len(labels)))():
            units, pitch_hz = clip.units[None], clip.pitch_hz[None]
            keep = torch.ones_like(units, dtype=torch.bool)
            predicted_hz = speaker.melody.pitch_hz(units, keep)
            both = (pitch_hz > 0) & (predicted_hz > 0)
            merged = torch.unique_consecutive(clip.units)[None]
            _, frames = speaker(Units(merged, torch.tensor([merged.shape[1]], device=merged.device), None))
            found["mel_error_true_pitch"].append((speaker.mel.mel(units, pitch_hz, keep)[0] - clip.mel).abs().mean())
            found["mel_error"].append((speaker.mel.mel(units, predicted_hz, keep)[0] - clip.mel).abs().mean())
            found["voicing_error"].append(((pitch_hz > 0) != (predicted_hz > 0)).float().mean())
            found["duration_ratio"].append(frames[0] / len(clip.mel))
            if both.any():
                found["pitch_error_octaves"].append((pitch_hz[both] / predicted_hz[both]).log2().abs().mean())
        return {name: round(float(torch.stack(values).mean()), 4) for name, values in found.items() if values}


def _batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows sorted by length, in batches of at most `budget` samples with padding."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or lengths[row] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches
