"""The unit vocoder's stage: recordings and their units in, a voice that speaks units out."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.codecs.base import CODECS, Codec
from echox.criteria.base import VocoderOutputs
from echox.data.audio import audio_header, load_audio, pad_waveforms, save_audio
from echox.data.cache import ArrayCache
from echox.data.manifest import Row
from echox.errors import ConfigError, ManifestError
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Outline, Role, StageContext, Task, TaskConfig, View
from echox.tasks.spoken import RowsConfig, SpokenRows, clip_key, padded
from echox.vocoders import layout
from echox.vocoders.discriminators import Discriminators, DiscriminatorSizes
from echox.vocoders.unit_generator import UnitGenerator

log = logging.getLogger(__name__)

ENCODED_AT_ONCE_S = 120.0  # audio in a batch of the codec, seconds with padding
LOOSE_FRAMES = 2  # by which the frames of a clip may be more or fewer than its samples make: encoders differ at the edges


@dataclass(kw_only=True, slots=True)
class GeneratorSizes:
    """Sizes of the generator; the defaults are HiFi-GAN's V1, as the published unit vocoders have them."""

    rate_hz: int = 16_000
    """Samples per second."""
    upsample_rates: list[int] = field(default_factory=lambda: [5, 4, 4, 2, 2])
    """Factors by which frames become samples; their product is the samples of a unit, 320 for 50 units per second at 16 kHz."""
    upsample_kernel_sizes: list[int] = field(default_factory=lambda: [11, 8, 8, 4, 4])
    """Width of each transposed convolution, larger than its rate by an even number."""
    upsample_initial_channel: int = 512
    """Channels before the first of them; each halves them."""
    resblock_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 11])
    """Widths of the residual blocks that run side by side after each."""
    resblock_dilation_sizes: list[list[int]] = field(default_factory=lambda: [[1, 3, 5], [1, 3, 5], [1, 3, 5]])
    """Dilations of each block's convolutions."""
    embedding_dim: int = 128
    """Channels of a unit's embedding, and of a speaker's."""
    duration_channels: int | None = 128
    """Channels of the duration predictor; null trains none, for units that keep their repeats."""
    duration_dropout: float = 0.5
    """Share of the duration predictor's activations that training leaves out."""


@dataclass(kw_only=True, slots=True)
class VocoderTaskConfig(TaskConfig):
    """Learning to turn units into a voice."""

    data: RowsConfig = field(default_factory=RowsConfig)
    """Manifests whose assistant turns have audio, and units where the recipe names no codec to make them."""
    units: int | None = None
    """Number of different units; null takes the codec's, and must be set where there is none."""
    speaker_key: str | None = None
    """Field of a row that names its speaker; null trains one voice, whoever speaks."""
    segment_frames: int = 28
    """Frames of a random segment of an utterance, 8960 samples in the published recipe; shorter utterances are left out."""
    generator: GeneratorSizes = field(default_factory=GeneratorSizes)
    """Sizes of what speaks."""
    discriminators: DiscriminatorSizes | None = field(default_factory=DiscriminatorSizes)
    """Sizes of what judges; null trains by the mel and the durations alone."""
    start: str | None = None
    """Folder of a vocoder in the published layout that training begins with, of the same sizes; null begins at random."""
    copied_rows: int = 4
    """Validation utterances that are spoken again at every validation, and kept as wavs in the stage's folder `copies`."""

    def __post_init__(self) -> None:
        if self.segment_frames < 1:
            raise ConfigError(f"vocoder.task.segment_frames is {self.segment_frames}; use at least 1")


@dataclass(frozen=True, slots=True)
class VocoderBatch(Batch):
    """Whole utterances; the segments are cut from them where the model runs."""

    frames: Tensor  # [B, F] a unit per frame
    lengths: Tensor  # [B] frames
    samples: Tensor  # [B, F * hop]
    units: Tensor  # [B, U] without repeats
    durations: Tensor  # [B, U] frames of each, 0 on padding
    speakers: Tensor  # [B]


@dataclass(frozen=True, slots=True)
class Recording:
    """An utterance as it is kept: its audio stays on the disk."""

    row_id: str
    audio: Any  # what `load_audio` takes
    frames: tuple[int, ...]
    speaker: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """An utterance as it is trained on."""

    recording: Recording
    samples: Tensor  # [F * hop]


class Recordings(Examples):
    """Utterances, read when asked for; the cost is in frames."""

    def __init__(self, rows: Sequence[Recording], rate_hz: int, hop_samples: int) -> None:
        self.rows = rows
        self.rate_hz = rate_hz
        self.hop_samples = hop_samples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        row = self.rows[index]
        samples = load_audio(row.audio, self.rate_hz)
        frames = min(len(row.frames), len(samples) // self.hop_samples)
        return Utterance(dataclasses.replace(row, frames=row.frames[:frames]), samples[: frames * self.hop_samples])

    def cost(self, index: int) -> int:
        return len(self.rows[index].frames)


class TrainedVocoder(nn.Module):
    """The generator, and the discriminators it is trained against."""

    def __init__(self, generator: UnitGenerator, discriminators: Discriminators | None) -> None:
        super().__init__()
        self.generator = generator
        self.discriminators = discriminators


@TASKS.register("vocoder", VocoderTaskConfig)
class VocoderTask(Task):
    """A unit HiFi-GAN with its duration predictor, against multi-period and multi-scale discriminators."""

    needs = ()

    def __init__(self, config: VocoderTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.rows = SpokenRows(config.data)
        sizes = config.generator
        self.hop_samples = layout.hop_samples({"upsample_rates": sizes.upsample_rates})
        self.splits: dict[str, list[Recording]] = {}

    def build(self) -> TrainedVocoder:
        self.codec = self._codec()
        self.speakers = self._speaker_names()
        self.settings = self._settings(self._unit_count())
        generator = layout.build_generator(self.settings, Path("vocoder.task.generator"))
        if self.config.start is None:
            _initialise(generator)
        else:
            layout.fill(generator, layout.weights_path(Path(self.config.start)))
        sizes = self.config.discriminators
        return TrainedVocoder(layout.normed(generator), None if sizes is None else Discriminators(sizes))

    def _codec(self) -> Codec | None:
        if self.context.parts.codec is None:
            return None
        codec = CODECS.build(self.context.parts.codec)
        name, ours = CODECS.name_of(self.context.parts.codec), self.config.generator.rate_hz / self.hop_samples
        if not codec.encodes:
            raise ConfigError(
                f"codec {name} makes no units of speech; name one that does, or codec=null and manifests with a unit per frame"
            )
        if codec.codebooks > 1:
            raise ConfigError(f"codec {name} has {codec.codebooks} codebooks, but a unit vocoder speaks one; such a codec has a voice of its own")
        if codec.unit_rate_hz != ours:
            raise ConfigError(
                f"codec {name} makes {codec.unit_rate_hz:g} units/s, but upsample_rates of {self.hop_samples} samples at "
                f"{self.config.generator.rate_hz} Hz speak {ours:g}; set vocoder.task.generator.upsample_rates"
            )
        return codec

    def _unit_count(self) -> int:
        if self.config.units is None and self.codec is None:
            raise ConfigError("vocoder.task.units is null and there is no codec to ask; set it to the number of different units")
        return self.config.units if self.config.units is not None else self.codec.vocab_size

    def _speaker_names(self) -> list[str]:
        if self.config.speaker_key is None:
            return []
        return sorted({self._speaker(row) for row in self.rows.rows("train")})

    def _speaker(self, row: Row) -> str:
        name = row.extra.get(self.config.speaker_key)
        if not isinstance(name, str):
            key = self.config.speaker_key
            raise ManifestError(f"row {row.id!r} has no {key!r} that names its speaker; write it, or set speaker_key=null")
        return name

    def _settings(self, units: int) -> dict[str, Any]:
        """What `vocoder_config.json` says, in the words of the published ones."""
        sizes = self.config.generator
        several = bool(self.speakers)
        durations = sizes.duration_channels and {
            "encoder_embed_dim": sizes.embedding_dim,
            "var_pred_hidden_dim": sizes.duration_channels,
            "var_pred_kernel_size": layout.KERNEL,
            "var_pred_dropout": sizes.duration_dropout,
        }
        return {
            "resblock": "1",
            "upsample_rates": sizes.upsample_rates,
            "upsample_kernel_sizes": sizes.upsample_kernel_sizes,
            "upsample_initial_channel": sizes.upsample_initial_channel,
            "resblock_kernel_sizes": sizes.resblock_kernel_sizes,
            "resblock_dilation_sizes": sizes.resblock_dilation_sizes,
            "num_embeddings": units,
            "embedding_dim": sizes.embedding_dim,
            "model_in_dim": sizes.embedding_dim * (2 if several else 1),
            "segment_size": self.config.segment_frames * self.hop_samples,
            "code_hop_size": self.hop_samples,
            "sampling_rate": sizes.rate_hz,
            "f0": False,
            "multispkr": self.config.speaker_key if several else None,
            **({"num_speakers": len(self.speakers), "speakers": self.speakers} if several else {}),
            "dur_prediction_weight": 1.0,
            "dur_predictor_params": durations,
        }

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        sizes, codec = self.config.generator, self.context.parts.codec
        units = self.config.units or (CODECS.entry_of(codec).implementation.expected_word_count(codec) if codec is not None else 0)
        # Speakers are counted in the manifests, which are not read here; their table is small.
        self.speakers = []
        with torch.device("meta"):
            generator = layout.build_generator(self._settings(max(1, units)), Path("vocoder.task.generator"))
            judges = self.config.discriminators
            model = TrainedVocoder(generator, None if judges is None else Discriminators(judges))
        longest = round(self.config.data.max_audio_s * sizes.rate_hz / self.hop_samples)
        share = min(1.0, self.config.segment_frames / longest)
        return Outline(
            model=model,
            parts={"generator": ["generator"], **({} if judges is None else {"discriminators": ["discriminators"]})},
            cost_unit="frames",
            longest_cost=longest,
            activations={"generator": share * _generator_bytes(sizes)},
            notes=[
                "activations: of the generator alone, whose segments are equally long whatever the utterance",
                "units: as many as the codec's words, which are more than its units where it has a unit language",
            ],
        )

    def learned(self, model: TrainedVocoder) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def parameter_groups(self, model: TrainedVocoder) -> list[dict[str, Any]]:
        groups = [{"name": "generator", "params": list(model.generator.parameters()), "lr_scale": 1.0}]
        if model.discriminators is not None:
            judges = list(model.discriminators.parameters())
            groups.append({"name": "discriminators", "params": judges, "lr_scale": 1.0, "role": Role.discriminator})
        return groups

    def prepare(self, model: TrainedVocoder) -> None:
        for split in ("train", "valid"):
            rows = [row for row in self.rows.rows(split) if row.answer is not None and row.answer.audio is not None]
            frames = self._frames(rows, split)
            self.splits[split] = self._kept([self._recording(row, frames[row.id]) for row in rows if row.id in frames], split)

    def _frames(self, rows: Sequence[Row], split: str) -> dict[str, tuple[int, ...]]:
        """Row id -> a unit per frame, of rows whose audio is not too long."""
        headers = {row.id: audio_header(row.answer.audio) for row in rows}
        short = [row for row in rows if headers[row.id].duration_s <= self.config.data.max_audio_s]
        if len(short) < len(rows):
            log.warning("%d clips of %s are longer than %g s and left out", len(rows) - len(short), split, self.config.data.max_audio_s)
        if self.codec is None:
            return {row.id: self._written_frames(row, headers[row.id].duration_s) for row in short}
        cache = self._encoded(short, [round(headers[row.id].duration_s * 100) for row in short], split)
        return {row.id: tuple(cache[clip_key(row.answer.audio)].tolist()) for row in short}

    def _written_frames(self, row: Row, duration_s: float) -> tuple[int, ...]:
        units, wanted = row.answer.units or (), duration_s * self.config.generator.rate_hz / self.hop_samples
        if abs(len(units) - wanted) > LOOSE_FRAMES:
            raise ManifestError(
                f"row {row.id!r} has {len(units)} units for {duration_s:.2f} s of audio, but a vocoder learns from a unit per frame, "
                f"{wanted:.0f} here, repeats and all; write them so, or name the codec that makes them (codec=NAME)"
            )
        return units

    def _encoded(self, rows: Sequence[Row], costs: Sequence[int], split: str) -> ArrayCache:
        codec, device = self.codec.to(self.context.device), self.context.device
        clips = {clip_key(row.answer.audio): row.answer.audio for row in rows}
        cache = ArrayCache(self.context.cache_dir / "frame_units", codec.fingerprint())

        def compute(keys: list[str]) -> list[Tensor]:
            wave = pad_waveforms([load_audio(clips[key], codec.rate_hz) for key in keys], codec.rate_hz).to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.context.bf16):
                units = codec.encode_frames(wave)
            return [ids[:length].int() for ids, length in zip(units.ids, units.lengths.tolist())]

        paid = {clip_key(row.answer.audio): cost for row, cost in zip(rows, costs)}
        cache.fill(list(paid), compute, costs=list(paid.values()), batch_cost=round(ENCODED_AT_ONCE_S * 100), label=f"units of {split}")
        return cache

    def _recording(self, row: Row, frames: tuple[int, ...]) -> Recording:
        speaker = self._known_speaker(row) if self.speakers else 0
        return Recording(row.id, row.answer.audio, frames, speaker)

    def _known_speaker(self, row: Row) -> int:
        name = self._speaker(row)
        if name not in self.speakers:
            raise ManifestError(f"row {row.id!r} is spoken by {name!r}, whom no training row has; leave it out of the validation manifests")
        return self.speakers.index(name)

    def _kept(self, recordings: list[Recording], split: str) -> list[Recording]:
        count = self.settings["num_embeddings"]
        for recording in recordings:
            if recording.frames and not 0 <= min(recording.frames) <= max(recording.frames) < count:
                largest = max(recording.frames)
                raise ManifestError(f"row {recording.row_id!r} has unit {largest}, but there are {count}; set vocoder.task.units")
        # A clip may end before its last frames do, which are then left out.
        kept = [recording for recording in recordings if len(recording.frames) >= self.config.segment_frames + LOOSE_FRAMES]
        if len(kept) < len(recordings):
            log.warning("%d clips of %s are shorter than a segment and left out", len(recordings) - len(kept), split)
        return kept

    def examples(self, split: str) -> Examples:
        return Recordings(self.splits[split], self.config.generator.rate_hz, self.hop_samples)

    def collate(self, examples: Sequence[Utterance]) -> VocoderBatch:
        rows = [example.recording for example in examples]
        runs = [torch.unique_consecutive(torch.tensor(row.frames), return_counts=True) for row in rows]
        return VocoderBatch(
            row_ids=tuple(row.row_id for row in rows),
            count=len(rows),
            frames=padded([row.frames for row in rows], 0),
            lengths=torch.tensor([len(row.frames) for row in rows]),
            samples=nn.utils.rnn.pad_sequence([example.samples for example in examples], batch_first=True),
            units=nn.utils.rnn.pad_sequence([units for units, _ in runs], batch_first=True),
            durations=nn.utils.rnn.pad_sequence([counts for _, counts in runs], batch_first=True),
            speakers=torch.tensor([row.speaker for row in rows]),
        )

    def forward(self, model: TrainedVocoder, batch: VocoderBatch) -> VocoderOutputs:
        B, F = batch.frames.shape
        spare = batch.lengths - self.config.segment_frames
        # Drawn here, from the generator that a checkpoint records; in validation the middle, always.
        places = torch.rand(B, device=spare.device) if model.training else spare.new_full((B,), 0.5, dtype=torch.float32)
        starts = (places * (spare + 1)).long().clamp(min=0)
        index = starts[:, None] + torch.arange(self.config.segment_frames, device=spare.device)
        real = batch.samples.view(B, F, self.hop_samples).gather(1, index[:, :, None].expand(-1, -1, self.hop_samples))
        return VocoderOutputs(
            real=real.flatten(1),
            made=model.generator(batch.frames.gather(1, index), batch.speakers),
            log_frames=None if model.generator.predictor is None else model.generator.log_frames(batch.units, batch.durations > 0),
            frames=batch.durations,
            judges=model.discriminators,
            rate_hz=self.config.generator.rate_hz,
        )

    def score(self, model: TrainedVocoder, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        """How far predicted durations are off, in frames per unit and as the ratio of whole lengths; and wavs to listen to."""
        errors = predicted = true = units = copies = 0.0
        for batch in batches():
            keep = batch.durations > 0
            frames = (model.generator.log_frames(batch.units, keep).float().exp() - 1).round().clamp(min=1) * keep
            errors += float((frames - batch.durations).abs().sum())
            predicted, true, units = predicted + float(frames.sum()), true + float(batch.durations.sum()), units + float(keep.sum())
            for row in range(min(len(batch.row_ids), self.config.copied_rows - int(copies))):
                self._keep_copy(model, batch, row)
                copies += 1
        if not units or model.generator.predictor is None:
            return {}
        return {"duration_error_frames": errors / units, "length_ratio": predicted / true}

    def _keep_copy(self, model: TrainedVocoder, batch: VocoderBatch, row: int) -> None:
        if self.context.run_dir is None:
            return
        length, folder = int(batch.lengths[row]), self.context.run_dir / "copies"
        made = model.generator(batch.frames[row, :length][None], batch.speakers[row : row + 1])[0]
        name = re.sub(r"[^\w.-]+", "_", batch.row_ids[row])
        rate_hz = self.config.generator.rate_hz
        save_audio(folder / f"{name}.made.wav", made.float(), rate_hz)
        save_audio(folder / f"{name}.real.wav", batch.samples[row, : length * self.hop_samples], rate_hz)

    def publish(self, model: TrainedVocoder, folder: Path, step: int) -> None:
        """The generator in the published layout, in the folder `vocoder`, which codec=unit_hifigan takes."""
        layout.write_vocoder(folder / "vocoder", model.generator, self.settings, step)

    def view(self, model: nn.Module, batch: Batch) -> View:
        return View(notes=["a vocoder's loss compares sounds: nothing is moved, masked or stopped that could be shown; units are checked as they are read"])

    def data_fingerprints(self) -> dict[str, str]:
        codec = {} if self.codec is None else {"codec": self.codec.fingerprint()}
        return self.rows.fingerprints() | codec


def _initialise(generator: UnitGenerator) -> None:
    """Small weights, as HiFi-GAN begins with; the first convolution is left as it is."""
    for name, module in generator.vocoder.named_modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and name != "conv_pre":
            nn.init.normal_(module.weight, 0.0, 0.01)


def _generator_bytes(sizes: GeneratorSizes) -> float:
    """Bytes that the generator keeps per frame: each residual block's inputs of convolutions and of activations, at two bytes a number."""
    channels, samples, kept = sizes.upsample_initial_channel, 1, 0.0
    for rate in sizes.upsample_rates:
        channels, samples = channels // 2, samples * rate
        kept += channels * samples * sum(4 * len(dilations) for dilations in sizes.resblock_dilation_sizes)
    return 2 * kept
