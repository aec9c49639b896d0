"""The unit vocoder of fairseq that EchoX speaks with: reduced HuBERT units -> durations -> waveform."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.base import CODECS, Codec, CodecConfig, DecodeState
from echox.errors import ConfigError, SignalError
from echox.signals import Units, Waveform
from echox.vocoders import layout
from echox.vocoders.hifigan import reach_frames
from echox.vocoders.layout import CONFIG, TINY, build_generator, read_settings, tiny_generator, weights_path

RANDOM = "random"


@dataclass(kw_only=True, slots=True)
class UnitHifiGanConfig(CodecConfig):
    """A unit HiFi-GAN in a folder with vocoder_config.json and its weights: g_00500000 as published, g_ and the steps as trained here."""

    folder: str = ""
    """Folder of the two files, as a published EchoX folder has them; "random" builds a tiny untrained one for tests."""
    speaker: int = 1
    """Voice of a vocoder of several speakers; 1 in the EchoX release."""


@dataclass(frozen=True, slots=True)
class RowStream:
    """What is left of one row of a stream: units and frames that wait for what follows, and before them those they are heard with."""

    units: Tensor  # [U] int64
    timed: int  # of these units, how many have their frames already
    frames: Tensor  # [F] int64, a unit per frame
    spoken: int  # of these frames, how many are samples already


@dataclass(frozen=True, slots=True)
class StreamState(DecodeState):
    """A stream through a unit HiFi-GAN."""

    rows: tuple[RowStream, ...]


@CODECS.register("unit_hifigan", UnitHifiGanConfig)
class UnitHifiGan(Codec):
    """Units without repeats become as many frames as their predicted durations, then 16 kHz samples. It only decodes.

    In a stream, a unit's sound is settled once the duration predictor and the generator have seen as far beyond it as they reach.

    Source: Lee et al. 2022, arXiv:2107.05604 (duration prediction); Kong et al. 2020, arXiv:2010.05646; weights as in fairseq's release.
    """

    encodes = False
    streams = True

    def __init__(self, config: UnitHifiGanConfig) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or the two do not fit each other.
            ConfigError: the speaker is unknown.
        """
        super().__init__()
        self.config = config
        self.folder = Path(config.folder)
        self.is_random = config.folder == RANDOM
        settings = TINY if self.is_random else read_settings(self.folder / CONFIG)
        self.net = tiny_generator() if self.is_random else build_generator(settings, self.folder / CONFIG)
        if not self.is_random:
            layout.fill(self.net, weights_path(self.folder)).requires_grad_(False).eval()
        self.rate_hz = layout.rate_hz(settings)
        self.samples_per_frame = layout.hop_samples(settings)
        self.unit_rate_hz = self.rate_hz / self.samples_per_frame
        self.vocab_size = self.net.units.num_embeddings
        self.reach_frames = reach_frames(layout.generator_sizes(settings))
        self.reach_units = self.net.predictor.reach_units if self.net.predictor is not None else 0
        speakers = self.net.speakers.num_embeddings if self.net.speakers is not None else None
        if speakers is not None and not 0 <= config.speaker < speakers:
            raise ConfigError(f"speaker {config.speaker} is asked for, but the vocoder in {self.folder} has speakers 0 to {speakers - 1}")

    @classmethod
    def expected_word_count(cls, config: UnitHifiGanConfig) -> int:
        path = Path(config.folder) / CONFIG
        return (read_settings(path) if config.folder != RANDOM and path.is_file() else TINY)["num_embeddings"]

    @classmethod
    def missing(cls, config: UnitHifiGanConfig) -> list[str]:
        folder = Path(config.folder)
        paths = [] if config.folder == RANDOM else [weights_path(folder), folder / CONFIG]
        return [str(path) for path in paths if not path.is_file()]

    def files(self) -> list[Path]:
        """What it was read from."""
        return [] if self.is_random else [weights_path(self.folder), self.folder / CONFIG]

    def train(self, mode: bool = True) -> UnitHifiGan:
        return super().train(False)  # frozen

    def encode(self, wave: Waveform) -> Units:
        """
        Raises:
            ConfigError: always, for the release has no unit extractor.
        """
        raise ConfigError("unit_hifigan only turns units into speech; encode with the codec that made the units")

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Each row is decoded by itself, for padding would be heard through the convolutions; negative units are left out."""
        return self._joined([self.sound(row[:length]) for row, length in zip(units.ids, units.lengths.tolist())], units)

    def _joined(self, rows: list[Tensor], units: Units) -> Waveform:
        lengths = torch.tensor([len(row) for row in rows], device=units.ids.device)
        return Waveform(pad_sequence(rows, batch_first=True), lengths, self.rate_hz)

    @torch.no_grad()
    def sound(self, units: Tensor, speaker: int | None = None, *, durations: bool = True) -> Tensor:
        """Units [U] -> samples [T] in [-1, 1].

        Args:
            speaker: None takes the config's.
            durations: False gives every unit one frame.
        Raises:
            SignalError: a unit is beyond the vocoder's.
        """
        units = self._real(units)
        if len(units) == 0:
            return torch.zeros(0, device=units.device)
        frames = self.net.durations(units)[1] if durations else torch.ones_like(units)
        return self._samples(units.repeat_interleave(frames), speaker)

    def _real(self, units: Tensor) -> Tensor:
        units = units[units >= 0]
        if len(units) and int(units.max()) >= self.vocab_size:
            raise SignalError(
                f"unit {int(units.max())} is beyond the {self.vocab_size} units of the vocoder in {self.folder}; "
                "the units are of another codec"
            )
        return units

    def _samples(self, frames: Tensor, speaker: int | None = None) -> Tensor:
        """A unit per frame [F] -> samples [F * hop]."""
        voice = torch.tensor([self.config.speaker if speaker is None else speaker], device=frames.device)
        return self.net(frames[None], voice)[0]

    @torch.no_grad()
    def decode_chunk(self, units: Units, state: StreamState | None = None, *, last: bool) -> tuple[Waveform, StreamState]:
        nothing = torch.zeros(0, dtype=torch.int64, device=units.ids.device)
        before = state.rows if state is not None else [RowStream(nothing, 0, nothing, 0)] * len(units.ids)
        sounds, rows = [], []
        for row, ids, length in zip(before, units.ids, units.lengths.tolist()):
            samples, row = self._push(row, self._real(ids[:length]), last)
            sounds.append(samples)
            rows.append(row)
        return self._joined(sounds, units), StreamState(tuple(rows))

    def _push(self, row: RowStream, units: Tensor, last: bool) -> tuple[Tensor, RowStream]:
        """New units [U] of a row -> its settled samples [T], and what is left."""
        row = self._timed(dataclasses.replace(row, units=torch.cat([row.units, units])), last)
        before, after = self.reach_frames
        settled = len(row.frames) if last else max(row.spoken, len(row.frames) - after)
        if settled == row.spoken:
            return torch.zeros(0, device=units.device), row
        hop = self.samples_per_frame
        samples = self._samples(row.frames)[row.spoken * hop : settled * hop]
        cut = max(0, settled - before)
        return samples, dataclasses.replace(row, frames=row.frames[cut:], spoken=settled - cut)

    def _timed(self, row: RowStream, last: bool) -> RowStream:
        """Give frames to all units whose durations no unit to come can change."""
        settled = len(row.units) if last else max(row.timed, len(row.units) - self.reach_units)
        if settled == row.timed:
            return row
        durations = self.net.durations(row.units)[1][row.timed : settled]
        frames = row.units[row.timed : settled].repeat_interleave(durations)
        cut = max(0, settled - self.reach_units)
        return RowStream(row.units[cut:], settled - cut, torch.cat([row.frames, frames]), row.spoken)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.config.folder if self.is_random else ''}{self.config.speaker}".encode())
        for path in reversed(self.files()):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
