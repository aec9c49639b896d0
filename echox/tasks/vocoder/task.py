"""The unit vocoder: a HiFi-GAN that synthesizes speech from units, trained on recordings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.codecs.base import CODECS, Codec
from echox.core.config import neutral, refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.core.signals import Batch
from echox.criteria.base import VocoderOutputs
from echox.data.audio import save_audio
from echox.tasks.base import (
    TASKS,
    AuditBatch,
    Outline,
    Role,
    StageContext,
    Task,
    TaskConfig,
)
from echox.tasks.conversations import RowsConfig
from echox.tasks.vocoder.rows import (
    FrameUnits,
    LoadedRecording,
    Recording,
    Recordings,
    VocoderBatch,
    VocoderRows,
    collate_recordings,
)
from echox.vocoders import layout
from echox.vocoders.discriminators import Discriminators, DiscriminatorSizes
from echox.vocoders.unit_generator import UnitGenerator

# Where the sizes of the generator come from, in errors about them.
GENERATOR_PATH = Path("vocoder.task.generator")


@dataclass(kw_only=True, slots=True)
class GeneratorSizes:
    """Sizes of the generator; the defaults are HiFi-GAN's V1, as in the published unit vocoders.

    Raises:
        ConfigError: a number is out of range.

    Source: Kong et al. 2020, arXiv:2010.05646; Polyak et al. 2021, arXiv:2104.00355.
    """

    rate_hz: int = 16_000
    """Samples per second."""
    upsample_rates: list[int] = field(default_factory=lambda: [5, 4, 4, 2, 2])
    """Factors by which frames become samples; their product is the samples of a unit, 320 for 50
    units per second at 16 kHz."""
    upsample_kernel_sizes: list[int] = field(default_factory=lambda: [11, 8, 8, 4, 4])
    """Width of each transposed convolution, larger than its rate by an even number."""
    upsample_initial_channel: int = 512
    """Channels before the first of them; each halves them."""
    resblock_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 11])
    """Widths of the residual blocks that run side by side after each."""
    resblock_dilation_sizes: list[list[int]] = field(
        default_factory=lambda: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    )
    """Dilations of each block's convolutions."""
    embedding_dim: int = 128
    """Channels of a unit's embedding, and of a speaker's."""
    duration_channels: int | None = 128
    """Channels of the duration predictor; null trains none, for units that keep their repeats."""
    duration_dropout: float = 0.5
    """Share of the duration predictor's activations that training leaves out."""

    def __post_init__(self) -> None:
        refuse_below(
            self,
            1,
            "rate_hz",
            "upsample_initial_channel",
            "embedding_dim",
            "duration_channels",
        )
        refuse_no_share(self, "duration_dropout")


@dataclass(kw_only=True, slots=True)
class VocoderTaskConfig(TaskConfig):
    """Training of a unit vocoder on recordings.

    Raises:
        ConfigError: `segment_frames` is below 1.
    """

    data: RowsConfig = field(default_factory=RowsConfig)
    """Manifests whose assistant turns have audio, and units where the recipe names no codec to
    make them."""
    units: int | None = None
    """Number of different units; null takes the codec's, and must be set where there is none."""
    speaker_key: str | None = None
    """Field of a row that names its speaker; null trains one speaker, whoever is recorded."""
    segment_frames: int = 28
    """Frames of a random segment of an utterance, 8960 samples in the published recipe; shorter
    utterances are left out."""
    generator: GeneratorSizes = field(default_factory=GeneratorSizes)
    """Sizes of the generator."""
    discriminators: DiscriminatorSizes | None = field(default_factory=DiscriminatorSizes)
    """Sizes of the discriminators; null trains by the mel and the durations alone."""
    start: str | None = None
    """Folder of a vocoder in the published layout that training begins with, of the same sizes;
    null begins at random."""
    copied_rows: int = neutral(4)
    """Validation utterances that are synthesized at every validation, and kept as wavs in the
    stage's folder `copies`."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "units")
        refuse_below(self, 0, "copied_rows")
        if self.segment_frames < 1:
            raise ConfigError(
                f"vocoder.task.segment_frames is {self.segment_frames}; use at least 1"
            )


class TrainedVocoder(nn.Module):
    """The generator, and the discriminators it is trained against.

    Args:
        generator: units [B, F] -> samples [B, F * hop].
        discriminators: tell samples [B, T] of recordings from synthesized ones; None trains
            without them.
    """

    def __init__(self, generator: UnitGenerator, discriminators: Discriminators | None) -> None:
        super().__init__()
        self.generator = generator
        self.discriminators = discriminators


@TASKS.register("vocoder", VocoderTaskConfig)
class VocoderTask(Task[TrainedVocoder, VocoderBatch]):
    """A unit HiFi-GAN with its duration predictor, against period and scale discriminators.

    Source: Polyak et al. 2021, arXiv:2104.00355; Kong et al. 2020, arXiv:2010.05646.
    """

    needs = ()
    takes = ("codec",)

    def __init__(self, config: VocoderTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        sizes = config.generator
        self.hop_samples = layout.hop_samples({"upsample_rates": sizes.upsample_rates})
        self.rows = VocoderRows(
            config.data, config.speaker_key, sizes.rate_hz, self.hop_samples, config.segment_frames
        )
        self.splits: dict[str, list[Recording]] = {}

    def build(self) -> TrainedVocoder:
        """Build the generator, untrained or from a published vocoder, and the discriminators.

        Raises:
            ConfigError: the codec does not fit the generator, sizes contradict each other, or
                the number of units is not known.
            CheckpointError: the published vocoder is missing, damaged or of other sizes.
            ManifestError: a training row names no speaker.
        """
        self.codec = self._codec()
        self.speakers = self.rows.speakers()
        # The generator is built from what will be published, so that the two cannot differ.
        self.settings = self._settings(self._unit_count())
        generator = layout.build_generator(self.settings, GENERATOR_PATH)
        if self.config.start is None:
            _initialise(generator)
        else:
            layout.fill(generator, layout.weights_path(Path(self.config.start)))
        sizes = self.config.discriminators
        # With weight norm, as the published layout stores the weights.
        return TrainedVocoder(
            layout.normed(generator), None if sizes is None else Discriminators(sizes)
        )

    def _codec(self) -> Codec | None:
        """The codec that makes the units; None where the recipe names none.

        Raises:
            ConfigError: its units do not fit the generator.
        """
        if self.context.parts.codec is None:
            return None
        codec = CODECS.build(self.context.parts.codec)
        self._check_codec(codec, CODECS.name_of(self.context.parts.codec))
        return codec

    def _check_codec(self, codec: Codec, name: str | None) -> None:
        """Refuse a codec whose units the generator cannot take; see `_codec`."""
        rate_hz = self.config.generator.rate_hz
        unit_rate_hz = rate_hz / self.hop_samples
        if not codec.encodes:
            raise ConfigError(
                f"codec {name} makes no units of speech; name one that does, "
                "or codec=null and manifests with a unit per frame"
            )
        if codec.codebooks > 1:
            raise ConfigError(
                f"codec {name} has {codec.codebooks} codebooks, but a unit vocoder takes one; "
                "such a codec has a decoder of its own"
            )
        # Exactly: units and samples that are off by a little would drift apart.
        if codec.unit_rate_hz != unit_rate_hz:
            raise ConfigError(
                f"codec {name} makes {codec.unit_rate_hz:g} units/s, but upsample_rates of "
                f"{self.hop_samples} samples at {rate_hz} Hz speak {unit_rate_hz:g}; "
                "set vocoder.task.generator.upsample_rates"
            )

    def _unit_count(self) -> int:
        if self.config.units is not None:
            return self.config.units
        if self.codec is None:
            raise ConfigError(
                "vocoder.task.units is null and there is no codec to ask; "
                "set it to the number of different units"
            )
        return self.codec.vocab_size

    def _settings(self, units: int) -> dict[str, Any]:
        """Content of `vocoder_config.json`, by the keys of the published vocoders.

        Args:
            units: number of different units.
        """
        sizes = self.config.generator
        has_speakers = bool(self.speakers)
        speakers = {"num_speakers": len(self.speakers), "speakers": self.speakers}
        return {
            "resblock": "1",  # HiFi-GAN's first kind of residual blocks
            "upsample_rates": sizes.upsample_rates,
            "upsample_kernel_sizes": sizes.upsample_kernel_sizes,
            "upsample_initial_channel": sizes.upsample_initial_channel,
            "resblock_kernel_sizes": sizes.resblock_kernel_sizes,
            "resblock_dilation_sizes": sizes.resblock_dilation_sizes,
            "num_embeddings": units,
            "embedding_dim": sizes.embedding_dim,
            # A speaker's embedding is joined to each unit's.
            "model_in_dim": sizes.embedding_dim * (2 if has_speakers else 1),
            "segment_size": self.config.segment_frames * self.hop_samples,
            "code_hop_size": self.hop_samples,
            "sampling_rate": sizes.rate_hz,
            "f0": False,  # no pitch contour
            "multispkr": self.config.speaker_key if has_speakers else None,
            **(speakers if has_speakers else {}),
            "dur_prediction_weight": 1.0,
            "dur_predictor_params": self._duration_settings(),
        }

    def _duration_settings(self) -> dict[str, Any] | int:
        """Settings of the duration predictor by their published keys; 0 where there is none."""
        sizes = self.config.generator
        return sizes.duration_channels and {
            "encoder_embed_dim": sizes.embedding_dim,
            "var_pred_hidden_dim": sizes.duration_channels,
            "var_pred_kernel_size": layout.KERNEL,
            "var_pred_dropout": sizes.duration_dropout,
        }

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        sizes, discriminators = self.config.generator, self.config.discriminators
        # Speakers are counted in the manifests, which are not read here; their table is small.
        self.speakers = []
        model = self._meta_model()
        longest = round(self.config.data.max_audio_s * sizes.rate_hz / self.hop_samples)
        # Costs count whole utterances, but only a segment of each runs through the generator.
        share = min(1.0, self.config.segment_frames / longest)
        return Outline(
            model=model,
            parts={
                "generator": ["generator"],
                **({} if discriminators is None else {"discriminators": ["discriminators"]}),
            },
            cost_unit="frames",
            longest_cost=longest,
            activations={"generator": share * _generator_bytes(sizes)},
            notes=[
                "activations: of the generator alone, whose segments are equally long whatever "
                "the utterance",
                "units: as many as the codec's words, which are more than its units where it has "
                "a unit language",
            ],
        )

    def _meta_model(self) -> TrainedVocoder:
        """The model as `build` makes it, without memory for its weights."""
        discriminators = self.config.discriminators
        # At least one row in the table of units, where their number is not known.
        settings = self._settings(max(1, self._expected_unit_count()))
        with torch.device("meta"):
            generator = layout.normed(layout.build_generator(settings, GENERATOR_PATH))
            return TrainedVocoder(
                generator, None if discriminators is None else Discriminators(discriminators)
            )

    def _expected_unit_count(self) -> int:
        """Number of units before the codec is built or fitted; 0 where it is not known."""
        if self.config.units:
            return self.config.units
        codec = self.context.parts.codec
        if codec is None:
            return 0
        return CODECS.entry_of(codec).implementation.expected_unit_vocab_size(codec)

    def trained_state_dict(self, model: TrainedVocoder) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def parameter_groups(self, model: TrainedVocoder) -> list[dict[str, Any]]:
        generator = list(model.generator.parameters())
        groups = [{"name": "generator", "params": generator, "lr_scale": 1.0}]
        if model.discriminators is not None:
            # By its role, a step trains discriminators and generator one after the other.
            discriminators = list(model.discriminators.parameters())
            groups.append(
                {
                    "name": "discriminators",
                    "params": discriminators,
                    "lr_scale": 1.0,
                    "role": Role.discriminator,
                }
            )
        return groups

    def prepare(self, model: TrainedVocoder) -> None:
        """Read the recordings, and encode and cache their units where there is a codec.

        Raises:
            ManifestError: a row's units are not one for each frame or beyond the units there are,
                or its speaker is not among the training rows'.
            SignalError: a clip cannot be decoded.
        """
        encoder = None if self.codec is None else FrameUnits(self.codec, self.context)
        units = self.settings["num_embeddings"]  # what the generator was built for
        self.splits = {
            split: self.rows.recordings(split, encoder, units, self.speakers)
            for split in ("train", "valid")
        }

    def examples(self, split: str) -> Recordings:
        return Recordings(self.splits[split], self.config.generator.rate_hz, self.hop_samples)

    def collate(self, examples: Sequence[LoadedRecording]) -> VocoderBatch:
        """Pad B utterances to one batch: frames [B, F], samples [B, F * hop]."""
        return collate_recordings(examples)

    def forward(self, model: TrainedVocoder, batch: VocoderBatch) -> VocoderOutputs:
        """Synthesize a segment of each utterance: samples [B, segment_frames * hop]."""
        B, F = batch.frames.shape
        index = self._segment_index(batch.lengths, is_random=model.training)  # [B, segment_frames]
        hops = batch.samples.view(B, F, self.hop_samples)
        recorded = hops.gather(1, index[:, :, None].expand(-1, -1, self.hop_samples))
        predictor = model.generator.predictor
        return VocoderOutputs(
            real=recorded.flatten(1),
            synthesized=model.generator(batch.frames.gather(1, index), batch.speakers),
            # Durations are those of whole utterances: a segment would cut its first and last unit.
            log_frames=None
            if predictor is None
            else model.generator.log_frames(batch.units, batch.durations > 0),
            frames=batch.durations,
            discriminators=model.discriminators,
            rate_hz=self.config.generator.rate_hz,
        )

    def _segment_index(self, lengths: Tensor, *, is_random: bool) -> Tensor:
        """Frames [B, segment_frames] of a segment of each utterance of lengths [B]."""
        B, spare = len(lengths), lengths - self.config.segment_frames
        if is_random:
            # Drawn here, from the generator that a checkpoint records.
            places = torch.rand(B, device=spare.device)
        else:
            # In validation always the middle, so that its losses are comparable.
            places = spare.new_full((B,), 0.5, dtype=torch.float32)
        # Every start is equally likely, the last one included.
        starts = (places * (spare + 1)).long().clamp(min=0)
        return starts[:, None] + torch.arange(self.config.segment_frames, device=spare.device)

    def score(
        self, model: TrainedVocoder, batches: Callable[[], Iterable[VocoderBatch]]
    ) -> dict[str, float]:
        """Errors of predicted durations, and synthesized validation rows as wavs.

        Returns:
            "duration_error_frames", the mean absolute error per unit, and "length_ratio", the
            frames predicted for all utterances over their true ones; nothing without a predictor.
        """
        errors = predicted = true = units = 0.0
        copies = 0
        for batch in batches():
            is_unit = batch.durations > 0
            log_frames = model.generator.log_frames(batch.units, is_unit).float()
            # As in synthesis: the predictor gives log(1 + frames), and a unit lasts 1 at least.
            frames = (log_frames.exp() - 1).round().clamp(min=1) * is_unit
            errors += float((frames - batch.durations).abs().sum())
            predicted += float(frames.sum())
            true += float(batch.durations.sum())
            units += float(is_unit.sum())
            for row in range(min(len(batch.row_ids), self.config.copied_rows - copies)):
                self._save_copy(model, batch, row)
                copies += 1
        if not units or model.generator.predictor is None:
            return {}
        return {"duration_error_frames": errors / units, "length_ratio": predicted / true}

    def _save_copy(self, model: TrainedVocoder, batch: VocoderBatch, row: int) -> None:
        """Save a synthesized utterance beside its recording, for people to compare."""
        if self.context.run_dir is None:
            return
        # Whole, not a segment: for listening.
        length, folder = int(batch.lengths[row]), self.context.run_dir / "copies"
        frames, speaker = batch.frames[row, :length][None], batch.speakers[row : row + 1]
        synthesized = model.generator(frames, speaker)[0]
        recorded = batch.samples[row, : length * self.hop_samples]
        # Ids of rows may hold what a file name may not, such as a slash.
        name = re.sub(r"[^\w.-]+", "_", batch.row_ids[row])
        rate_hz = self.config.generator.rate_hz
        save_audio(folder / f"{name}.made.wav", synthesized.float(), rate_hz)
        save_audio(folder / f"{name}.real.wav", recorded, rate_hz)

    def publish(self, model: TrainedVocoder, folder: Path, step: int) -> None:
        """Write the generator in the published layout, which codec=unit_hifigan reads.

        Args:
            model: the trained model.
            folder: of the stage; the vocoder is written to its folder `vocoder`.
            step: training steps, which name the file of weights.

        Raises:
            DiskError: the disk is full or cannot be written.
        """
        layout.write_vocoder(folder / "vocoder", model.generator, self.settings, step)

    def audit_batch(self, model: nn.Module, batch: Batch) -> AuditBatch:
        return AuditBatch(
            notes=[
                "a vocoder's loss compares sounds: nothing is moved, masked or stopped that could "
                "be shown; units are checked as they are read"
            ]
        )

    def data_fingerprints(self) -> dict[str, str]:
        codec = {} if self.codec is None else {"codec": self.codec.fingerprint()}
        return self.rows.fingerprints() | codec


def _initialise(generator: UnitGenerator) -> None:
    """Small weights, as HiFi-GAN begins with; the first convolution is left as it is."""
    for name, module in generator.vocoder.named_modules():
        # The layer's name is HiFi-GAN's.
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and name != "conv_pre":
            nn.init.normal_(module.weight, 0.0, 0.01)


def _generator_bytes(sizes: GeneratorSizes) -> float:
    """Estimated bytes that the generator keeps per frame: two for each number."""
    channels, samples, numbers = sizes.upsample_initial_channel, 1, 0.0
    # Each dilation has two convolutions and two activations, whose inputs are kept.
    layers = sum(4 * len(dilations) for dilations in sizes.resblock_dilation_sizes)
    for rate in sizes.upsample_rates:
        channels, samples = channels // 2, samples * rate
        numbers += channels * samples * layers
    return 2 * numbers
