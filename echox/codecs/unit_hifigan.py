"""fairseq's unit vocoder, the decoder of EchoX: units without repeats -> durations -> waveform."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.base import CODECS, Codec, CodecConfig, DecodeState, state_of
from echox.core.config import refuse_below
from echox.core.errors import ConfigError, SignalError
from echox.core.signals import Units, Waveform
from echox.vocoders import layout
from echox.vocoders.hifigan import reach_frames
from echox.vocoders.layout import (
    CONFIG,
    TINY,
    build_generator,
    read_settings,
    tiny_generator,
    weights_path,
)

RANDOM = "random"


@dataclass(kw_only=True, slots=True)
class UnitHifiGanConfig(CodecConfig):
    """A unit HiFi-GAN in a folder with vocoder_config.json and its weights.

    The weights are g_00500000 as published, or g_ and the number of steps as trained here.

    Raises:
        ConfigError: a number is out of range.
    """

    folder: str = ""
    """Folder of the two files, as a published EchoX folder has them; "random" builds a tiny
    untrained one for tests."""
    speaker: int = 1
    """Index of the speaker in a vocoder of several; 1 in the EchoX release."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "speaker")


@dataclass(frozen=True, slots=True)
class RowStream:
    """State of one row of a stream: units and frames that later ones can still change.

    Before them stand the units and frames that are their left context.
    """

    units: Tensor  # [U] int64
    expanded_units: int  # how many of these units, from the first, already have frames
    frames: Tensor  # [F] int64, a unit per frame
    decoded_frames: int  # how many of these frames, from the first, already are samples


@dataclass(frozen=True, slots=True)
class StreamState(DecodeState):
    """State of a stream through a unit HiFi-GAN."""

    rows: tuple[RowStream, ...]


@CODECS.register("unit_hifigan", UnitHifiGanConfig)
class UnitHifiGan(Codec):
    """Decoder of units without repeats: predicted durations in frames, then a HiFi-GAN.

    It does not encode. In a stream, the samples of a unit are final once the duration predictor
    and the generator have as much right context as their receptive fields need.

    Source: Lee et al. 2022, arXiv:2107.05604 (duration prediction); Kong et al. 2020,
    arXiv:2010.05646; weights as in fairseq's release.
    """

    encodes = False
    streams = True

    def __init__(self, config: UnitHifiGanConfig) -> None:
        """Read the vocoder's folder.

        Raises:
            CheckpointError: a file is missing or damaged, or the two do not fit each other.
            ConfigError: the speaker is unknown.
        """
        super().__init__()
        self.config = config
        self.folder = Path(config.folder)
        self.is_random = config.folder == RANDOM
        if self.is_random:
            settings, self.net = TINY, tiny_generator()
        else:
            settings = read_settings(self.folder / CONFIG)
            self.net = build_generator(settings, self.folder / CONFIG)
            layout.fill(self.net, weights_path(self.folder)).requires_grad_(False).eval()
        self.rate_hz = layout.rate_hz(settings)
        self.samples_per_frame = layout.hop_samples(settings)
        self.unit_rate_hz = self.rate_hz / self.samples_per_frame
        self.vocab_size = self.net.units.num_embeddings
        # Context that a stream has to keep: frames of the generator, units of the predictor.
        self.reach_frames = reach_frames(layout.generator_sizes(settings))
        self.reach_units = self.net.predictor.reach_units if self.net.predictor is not None else 0
        self._check_speaker()

    def _check_speaker(self) -> None:
        if self.net.speakers is None:
            return
        speakers = self.net.speakers.num_embeddings
        if not 0 <= self.config.speaker < speakers:
            raise ConfigError(
                f"speaker {self.config.speaker} is asked for, but the vocoder in {self.folder} has "
                f"speakers 0 to {speakers - 1}"
            )

    @classmethod
    def expected_unit_vocab_size(cls, config: UnitHifiGanConfig) -> int:
        """Return the number of units in vocoder_config.json, or in the release where it is absent.

        Raises:
            CheckpointError: vocoder_config.json cannot be read.
        """
        # A folder may be filled later; until then the release's 1,000 units are expected.
        path = Path(config.folder) / CONFIG
        is_there = config.folder != RANDOM and path.is_file()
        return (read_settings(path) if is_there else TINY)["num_embeddings"]

    @classmethod
    def missing(cls, config: UnitHifiGanConfig) -> list[str]:
        """List the files of the folder that do not exist."""
        folder = Path(config.folder)
        paths = [] if config.folder == RANDOM else [weights_path(folder), folder / CONFIG]
        return [str(path) for path in paths if not path.is_file()]

    def files(self) -> list[Path]:
        """Return the weights and the config that the vocoder was read from."""
        return [] if self.is_random else [weights_path(self.folder), self.folder / CONFIG]

    def train(self, mode: bool = True) -> UnitHifiGan:
        """Stay in evaluation mode, because the codec is frozen."""
        return super().train(False)

    def encode(self, wave: Waveform) -> Units:
        """Refuse, because the release has no unit extractor.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "unit_hifigan only turns units into speech; encode with the codec that made the units"
        )

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Decode units [B, U] to samples [B, T]; negative units are left out.

        Raises:
            SignalError: a unit is beyond the vocoder's.
        """
        # Row by row: a batch would need padding, which reaches real samples by the convolutions.
        rows = [self.sound(ids[:length]) for ids, length in zip(units.ids, units.lengths.tolist())]
        return self._to_waveform(rows, units)

    def _to_waveform(self, rows: list[Tensor], units: Units) -> Waveform:
        """Samples [T] of each row of `units` -> padded batch."""
        lengths = torch.tensor([len(samples) for samples in rows], device=units.ids.device)
        return Waveform(pad_sequence(rows, batch_first=True), lengths, self.rate_hz)

    @torch.no_grad()
    def sound(self, units: Tensor, speaker: int | None = None, *, durations: bool = True) -> Tensor:
        """Decode the units [U] of one row to samples [T] in [-1, 1].

        Args:
            units: int64; negative ones are left out.
            speaker: index of the speaker; None uses the config's.
            durations: predict durations; False gives every unit one frame.

        Raises:
            SignalError: a unit is beyond the vocoder's.
        """
        units = self._valid_units(units)
        if len(units) == 0:
            return torch.zeros(0, device=units.device)
        frames = self.net.durations(units)[1] if durations else torch.ones_like(units)
        return self._generate(units.repeat_interleave(frames), speaker)

    def _valid_units(self, units: Tensor) -> Tensor:
        """The units [U] that are not negative, which mark padding; raises where one is unknown."""
        units = units[units >= 0]
        if len(units) and int(units.max()) >= self.vocab_size:
            raise SignalError(
                f"unit {int(units.max())} is beyond the {self.vocab_size} units of the vocoder in "
                f"{self.folder}; the units are of another codec"
            )
        return units

    def _generate(self, frames: Tensor, speaker: int | None = None) -> Tensor:
        """A unit per frame [F] -> samples [F * hop]."""
        index = self.config.speaker if speaker is None else speaker
        speakers = torch.tensor([index], device=frames.device)
        return self.net(frames[None], speakers)[0]

    @torch.no_grad()
    def decode_chunk(
        self, units: Units, state: DecodeState | None = None, *, last: bool
    ) -> tuple[Waveform, StreamState]:
        """Decode the next units [B, U] of a stream; see `Codec.decode_chunk`.

        Raises:
            SignalError: a unit is beyond the vocoder's.
        """
        empty = torch.zeros(0, dtype=torch.int64, device=units.ids.device)
        # States are immutable, so the first one can stand for all rows.
        before = state_of(state, StreamState)
        beginning = (RowStream(empty, 0, empty, 0),) * len(units.ids)
        streams = beginning if before is None else before.rows
        samples, rows = [], []
        for stream, ids, length in zip(streams, units.ids, units.lengths.tolist()):
            row_samples, row = self._decode_row(stream, self._valid_units(ids[:length]), last)
            samples.append(row_samples)
            rows.append(row)
        return self._to_waveform(samples, units), StreamState(tuple(rows))

    def _decode_row(self, stream: RowStream, units: Tensor, last: bool) -> tuple[Tensor, RowStream]:
        """New units [U] of a row -> samples [T] that are final now, and the row's next state."""
        stream = dataclasses.replace(stream, units=torch.cat([stream.units, units]))
        stream = self._expand(stream, last)
        before, after = self.reach_frames
        F = len(stream.frames)
        final = F if last else max(stream.decoded_frames, F - after)
        if final == stream.decoded_frames:
            return torch.zeros(0, device=units.device), stream
        hop = self.samples_per_frame
        # Frames that are samples already are generated again as left context, and cut off.
        samples = self._generate(stream.frames)[stream.decoded_frames * hop : final * hop]
        # Frames before that are beyond the left context of any later frame.
        cut = max(0, final - before)
        rest = dataclasses.replace(stream, frames=stream.frames[cut:], decoded_frames=final - cut)
        return samples, rest

    def _expand(self, stream: RowStream, last: bool) -> RowStream:
        """Repeat units by their durations, those whose durations no later unit can change."""
        U = len(stream.units)
        final = U if last else max(stream.expanded_units, U - self.reach_units)
        if final == stream.expanded_units:
            return stream
        new = slice(stream.expanded_units, final)
        durations = self.net.durations(stream.units)[1][new]
        frames = stream.units[new].repeat_interleave(durations)
        # Units before that are beyond the left context of any later unit.
        cut = max(0, final - self.reach_units)
        return RowStream(
            stream.units[cut:],
            final - cut,
            torch.cat([stream.frames, frames]),
            stream.decoded_frames,
        )

    def fingerprint(self) -> str:
        """Return a hash of the two files and the speaker."""
        # The folder's name counts only for the random vocoder, which has no files to hash.
        folder = self.config.folder if self.is_random else ""
        digest = hashlib.sha256(f"{folder}{self.config.speaker}".encode())
        # The config before the weights.
        for path in reversed(self.files()):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
