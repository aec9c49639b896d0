"""What a unit vocoder learns from: recordings, each with a unit for every frame of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echox.codecs.base import Codec
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.cache import ArrayCache
from echox.data.manifest import Row
from echox.errors import ManifestError
from echox.number_format import name_of
from echox.signals import Batch
from echox.tasks.base import Examples, StageContext
from echox.tasks.spoken import RowsConfig, SpokenRows, clip_key, padded

log = logging.getLogger(__name__)

ENCODED_AT_ONCE_S = 120.0  # audio in a batch of the codec, seconds with padding
LOOSE_FRAMES = 2  # by which the frames of a clip may be more or fewer than its samples make: encoders differ at the edges


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


def collated(examples: Sequence[Utterance]) -> VocoderBatch:
    """One padded batch on the CPU."""
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


class FrameUnits:
    """A codec that gives each frame of recordings its unit, kept on the disk."""

    def __init__(self, codec: Codec, context: StageContext) -> None:
        self.codec, self.device, self.bf16 = codec.to(context.device), context.device, context.bf16
        self.cache = ArrayCache(context.cache_dir / "frame_units", f"{codec.fingerprint()}-{name_of(self.bf16)}")

    def of(self, rows: Sequence[Row], durations_s: Mapping[str, float], split: str) -> dict[str, tuple[int, ...]]:
        """Row id -> units [F] of the answer's audio, whose seconds are in `durations_s` by row id."""
        clips = {clip_key(row.answer.audio): row.answer.audio for row in rows}
        costs = {clip_key(row.answer.audio): round(durations_s[row.id] * 100) for row in rows}
        at_once = round(ENCODED_AT_ONCE_S * 100)
        self.cache.fill(
            list(costs), lambda keys: self._encoded([clips[key] for key in keys]), costs=list(costs.values()), batch_cost=at_once, label=f"units of {split}"
        )
        return {row.id: tuple(self.cache[clip_key(row.answer.audio)].tolist()) for row in rows}

    @torch.no_grad()
    def _encoded(self, clips: Sequence[Any]) -> list[Tensor]:
        rate_hz = self.codec.rate_hz
        wave = pad_waveforms([load_audio(clip, rate_hz) for clip in clips], rate_hz).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            units = self.codec.encode_frames(wave)
        return [ids[:length].int() for ids, length in zip(units.ids, units.lengths.tolist())]


class VocoderRows(SpokenRows):
    """Rows whose answers are recordings of a voice."""

    def __init__(self, config: RowsConfig, speaker_key: str | None, rate_hz: int, hop_samples: int, segment_frames: int) -> None:
        """
        Args:
            speaker_key: field of a row that names its speaker; None where it does not matter who speaks.
            rate_hz, hop_samples: of the audio, and of a frame of it; segment_frames: that an utterance must have at least.
        """
        super().__init__(config)
        self.speaker_key = speaker_key
        self.rate_hz, self.hop_samples, self.segment_frames = rate_hz, hop_samples, segment_frames

    def speakers(self) -> list[str]:
        """Who speaks in the training rows; nobody where it does not matter."""
        if self.speaker_key is None:
            return []
        return sorted({self._speaker(row) for row in self.rows("train")})

    def _speaker(self, row: Row) -> str:
        name = row.extra.get(self.speaker_key)
        if not isinstance(name, str):
            raise ManifestError(f"row {row.id!r} has no {self.speaker_key!r} that names its speaker; write it, or set speaker_key=null")
        return name

    def recordings(self, split: str, encoder: FrameUnits | None, units: int, speakers: Sequence[str]) -> list[Recording]:
        """The usable recordings of a split.

        Args:
            encoder: what gives frames their units; None takes those that the manifests have.
            units: how many there are; speakers: as `speakers` found them.
        Raises:
            ManifestError: a row's units are not one for each frame, or beyond `units`; or its speaker is none of `speakers`.
        """
        rows = [row for row in self.rows(split) if row.answer is not None and row.answer.audio is not None]
        frames = self._frames(rows, encoder, split)
        found = [Recording(row.id, row.answer.audio, frames[row.id], self._number(row, speakers)) for row in rows if row.id in frames]
        return self._kept(found, units, split)

    def _frames(self, rows: Sequence[Row], encoder: FrameUnits | None, split: str) -> dict[str, tuple[int, ...]]:
        """Row id -> a unit per frame, of rows whose audio is not too long."""
        durations_s = {row.id: audio_header(row.answer.audio).duration_s for row in rows}
        short = [row for row in rows if durations_s[row.id] <= self.config.max_audio_s]
        if len(short) < len(rows):
            log.warning("%d clips of %s are longer than %g s and left out", len(rows) - len(short), split, self.config.max_audio_s)
        if encoder is None:
            return {row.id: self._written_frames(row, durations_s[row.id]) for row in short}
        return encoder.of(short, durations_s, split)

    def _written_frames(self, row: Row, duration_s: float) -> tuple[int, ...]:
        units, wanted = row.answer.units or (), duration_s * self.rate_hz / self.hop_samples
        if abs(len(units) - wanted) > LOOSE_FRAMES:
            raise ManifestError(
                f"row {row.id!r} has {len(units)} units for {duration_s:.2f} s of audio, but a vocoder learns from a unit per frame, "
                f"{wanted:.0f} here, repeats and all; write them so, or name the codec that makes them (codec=NAME)"
            )
        return units

    def _number(self, row: Row, speakers: Sequence[str]) -> int:
        """The speaker's, 0 where it does not matter who speaks."""
        if not speakers:
            return 0
        name = self._speaker(row)
        if name not in speakers:
            raise ManifestError(f"row {row.id!r} is spoken by {name!r}, whom no training row has; leave it out of the validation manifests")
        return speakers.index(name)

    def _kept(self, recordings: list[Recording], count: int, split: str) -> list[Recording]:
        for recording in recordings:
            if recording.frames and not 0 <= min(recording.frames) <= max(recording.frames) < count:
                largest = max(recording.frames)
                raise ManifestError(f"row {recording.row_id!r} has unit {largest}, but there are {count}; set vocoder.task.units")
        # A clip may end before its last frames do, which are then left out.
        kept = [recording for recording in recordings if len(recording.frames) >= self.segment_frames + LOOSE_FRAMES]
        if len(kept) < len(recordings):
            log.warning("%d clips of %s are shorter than a segment and left out", len(recordings) - len(kept), split)
        return kept
