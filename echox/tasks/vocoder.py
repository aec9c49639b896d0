"""The unit vocoder's stage: recordings and their units in, a voice that speaks units out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.codecs.base import CODECS, Codec
from echox.config import neutral
from echox.criteria.base import VocoderOutputs
from echox.data.audio import save_audio
from echox.errors import ConfigError
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Outline, Role, StageContext, Task, TaskConfig, View
from echox.tasks.spoken import RowsConfig
from echox.tasks.vocoder_rows import FrameUnits, Recording, Recordings, Utterance, VocoderBatch, VocoderRows, collated
from echox.vocoders import layout
from echox.vocoders.discriminators import Discriminators, DiscriminatorSizes
from echox.vocoders.unit_generator import UnitGenerator


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
    copied_rows: int = neutral(4)
    """Validation utterances that are spoken again at every validation, and kept as wavs in the stage's folder `copies`."""

    def __post_init__(self) -> None:
        if self.segment_frames < 1:
            raise ConfigError(f"vocoder.task.segment_frames is {self.segment_frames}; use at least 1")


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
        sizes = config.generator
        self.hop_samples = layout.hop_samples({"upsample_rates": sizes.upsample_rates})
        self.rows = VocoderRows(config.data, config.speaker_key, sizes.rate_hz, self.hop_samples, config.segment_frames)
        self.splits: dict[str, list[Recording]] = {}

    def build(self) -> TrainedVocoder:
        self.codec = self._codec()
        self.speakers = self.rows.speakers()
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
        encoder = None if self.codec is None else FrameUnits(self.codec, self.context)
        units = self.settings["num_embeddings"]
        self.splits = {split: self.rows.recordings(split, encoder, units, self.speakers) for split in ("train", "valid")}

    def examples(self, split: str) -> Examples:
        return Recordings(self.splits[split], self.config.generator.rate_hz, self.hop_samples)

    def collate(self, examples: Sequence[Utterance]) -> VocoderBatch:
        return collated(examples)

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
