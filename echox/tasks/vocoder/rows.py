"""Training data of a unit vocoder: recordings, each with a unit for every frame of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.base import Codec, check_units
from echox.core.errors import ManifestError
from echox.core.number_format import name_of
from echox.core.signals import Batch, padded
from echox.core.sources import code_of
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.audio_ref import Audio
from echox.data.code_caches import cache_of_code
from echox.data.manifest import Row
from echox.tasks.base import Examples, StageContext
from echox.tasks.conversations import COST_PER_S, RowsConfig, SpokenRows, clip_key

log = logging.getLogger(__name__)

ENCODE_BATCH_S = 120.0  # seconds of audio that the codec encodes at once, with padding
# Frames that a clip may have more or fewer than its samples make: encoders differ at the edges.
TOLERANCE_FRAMES = 2


@dataclass(frozen=True, slots=True)
class VocoderBatch(Batch):
    """B whole utterances: frames [B, F], samples [B, F * hop], units [B, U].

    Segments are cut from them in the forward pass.
    """

    frames: Tensor  # [B, F] a unit per frame
    lengths: Tensor  # [B] frames
    samples: Tensor  # [B, F * hop]
    units: Tensor  # [B, U] without repeats
    durations: Tensor  # [B, U] frames of each unit, 0 on padding
    speakers: Tensor  # [B] number of the speaker


@dataclass(frozen=True, slots=True)
class Recording:
    """An utterance with its units [F], whose audio is still on the disk."""

    row_id: str
    audio: Audio
    frames: tuple[int, ...]  # a unit per frame
    speaker: int


@dataclass(frozen=True, slots=True)
class LoadedRecording:
    """An utterance with its samples [F * hop], both cut to whole frames."""

    recording: Recording
    samples: Tensor  # [F * hop]


class Recordings(Examples[LoadedRecording]):
    """Utterances, loaded at access with samples [F * hop]; the cost of one is its frames F.

    Args:
        rows: the utterances.
        rate_hz: samples per second.
        hop_samples: samples of a frame.
    """

    def __init__(self, rows: Sequence[Recording], rate_hz: int, hop_samples: int) -> None:
        self.rows = rows
        self.rate_hz = rate_hz
        self.hop_samples = hop_samples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LoadedRecording:
        row = self.rows[index]
        samples = load_audio(row.audio, self.rate_hz)
        # Units and samples may differ in length by `TOLERANCE_FRAMES`; the shorter one counts.
        frames = min(len(row.frames), len(samples) // self.hop_samples)
        recording = dataclasses.replace(row, frames=row.frames[:frames])
        return LoadedRecording(recording, samples[: frames * self.hop_samples])

    def cost(self, index: int) -> int:
        return len(self.rows[index].frames)


def collate_recordings(examples: Sequence[LoadedRecording]) -> VocoderBatch:
    """Pad B utterances to one batch on the CPU: frames [B, F], samples [B, F * hop]."""
    rows = [example.recording for example in examples]
    # The duration predictor reads units without repeats, and learns how often each is repeated.
    runs = [torch.unique_consecutive(torch.tensor(row.frames), return_counts=True) for row in rows]
    return VocoderBatch(
        row_ids=tuple(row.row_id for row in rows),
        count=len(rows),
        frames=padded([row.frames for row in rows], 0),
        lengths=torch.tensor([len(row.frames) for row in rows]),
        samples=pad_sequence([example.samples for example in examples], batch_first=True),
        units=pad_sequence([units for units, _ in runs], batch_first=True),
        durations=pad_sequence([counts for _, counts in runs], batch_first=True),
        speakers=torch.tensor([row.speaker for row in rows]),
    )


class FrameUnits:
    """Units of every frame of recordings, encoded by a codec and cached on disk.

    Args:
        codec: encodes the recordings; moved to the context's device.
        context: of the stage, with device and cache folder.
    """

    def __init__(self, codec: Codec, context: StageContext) -> None:
        # Another precision gives other units, which get a cache of their own.
        self.codec, self.device, self.bf16 = codec.to(context.device), context.device, context.bf16
        self.cache = cache_of_code(
            context.cache_dir / "frame_units",
            codec.fingerprint(),
            code_of(codec),
            name_of(self.bf16),
            contents="units",
        )

    def encode(
        self, rows: Sequence[Row], durations_s: Mapping[str, float], split: str
    ) -> dict[str, tuple[int, ...]]:
        """Units of the answers' audio, from the cache or encoded now.

        Args:
            rows: with audio on the answer.
            durations_s: row id -> seconds of that audio.
            split: named beside the progress bar.

        Returns:
            row id -> units [F].

        Raises:
            SignalError: a clip cannot be decoded.
            AssetError: the cache cannot be written.
        """
        audio = {row.id: row.require_answer().require_audio() for row in rows}
        keys = {row_id: clip_key(clip) for row_id, clip in audio.items()}
        clips = {keys[row_id]: clip for row_id, clip in audio.items()}
        costs = {key: round(durations_s[row_id] * COST_PER_S) for row_id, key in keys.items()}
        self.cache.fill(
            list(costs),
            lambda missing: self._encode([clips[key] for key in missing]),
            costs=list(costs.values()),
            batch_cost=round(ENCODE_BATCH_S * COST_PER_S),
            label=f"units of {split}",
        )
        return {row_id: tuple(self.cache[key].tolist()) for row_id, key in keys.items()}

    @torch.no_grad()
    def _encode(self, clips: Sequence[Audio]) -> list[Tensor]:
        """Units [F] of each clip, int32."""
        rate_hz = self.codec.rate_hz
        wave = pad_waveforms([load_audio(clip, rate_hz) for clip in clips], rate_hz).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            units = self.codec.encode_frames(wave)
        check_units(type(self.codec).__name__, units, self.codec.vocab_size)
        return [ids[:length].int() for ids, length in zip(units.ids, units.lengths.tolist())]


class VocoderRows(SpokenRows):
    """Rows of manifests whose answers have recordings.

    Args:
        config: the manifests.
        speaker_key: field of a row that names its speaker; None trains one speaker, whoever is
            recorded.
        rate_hz: samples per second.
        hop_samples: samples of a frame.
        segment_frames: frames that an utterance must have at least.
    """

    def __init__(
        self,
        config: RowsConfig,
        speaker_key: str | None,
        rate_hz: int,
        hop_samples: int,
        segment_frames: int,
    ) -> None:
        super().__init__(config)
        self.speaker_key = speaker_key
        self.rate_hz, self.hop_samples, self.segment_frames = rate_hz, hop_samples, segment_frames

    def speakers(self) -> list[str]:
        """Names of the speakers of the training rows; none where one speaker is trained.

        Raises:
            ManifestError: a row names no speaker.
        """
        if self.speaker_key is None:
            return []
        # Sorted, because their order gives the numbers in the checkpoint.
        return sorted({self._speaker(row) for row in self.rows("train")})

    def _speaker(self, row: Row) -> str:
        name = None if self.speaker_key is None else row.extra.get(self.speaker_key)
        if not isinstance(name, str):
            raise ManifestError(
                f"row {row.id!r} has no {self.speaker_key!r} that names its speaker; "
                "write it, or set speaker_key=null"
            )
        return name

    def recordings(
        self, split: str, encoder: FrameUnits | None, units: int, speakers: Sequence[str]
    ) -> list[Recording]:
        """The usable recordings of a split.

        Args:
            split: "train" or "valid".
            encoder: gives frames their units; None takes the units of the manifests.
            units: number of different units.
            speakers: of `speakers`.

        Raises:
            ManifestError: a row's units are not one for each frame, or beyond `units`; or its
                speaker is none of `speakers`.
        """
        # Written answers without audio are of no use here.
        rows = [
            row
            for row in self.rows(split)
            if row.answer is not None and row.answer.audio is not None
        ]
        frames = self._frames(rows, encoder, split)
        recordings = [
            Recording(row.id, audio, frames[row.id], self._speaker_number(row, speakers))
            for row in rows
            if row.id in frames and (audio := row.require_answer().audio) is not None
        ]
        self._check_units(recordings, units)
        return self._long_enough(recordings, split)

    def _frames(
        self, rows: Sequence[Row], encoder: FrameUnits | None, split: str
    ) -> dict[str, tuple[int, ...]]:
        """Row id -> a unit per frame, of rows whose audio is not too long."""
        # From the headers, so that no clip is decoded to learn that it is too long.
        clips = {row.id: row.require_answer().require_audio() for row in rows}
        durations_s = {row_id: audio_header(clip).duration_s for row_id, clip in clips.items()}
        short = [row for row in rows if durations_s[row.id] <= self.config.max_audio_s]
        if len(short) < len(rows):
            log.warning(
                "%d clips of %s are longer than %g s and left out",
                len(rows) - len(short),
                split,
                self.config.max_audio_s,
            )
        # Units of the manifests must be one for each frame, which those of a codec always are.
        if encoder is None:
            return {row.id: self._written_frames(row, durations_s[row.id]) for row in short}
        return encoder.encode(short, durations_s, split)

    def _written_frames(self, row: Row, duration_s: float) -> tuple[int, ...]:
        units = row.require_answer().units or ()
        expected = duration_s * self.rate_hz / self.hop_samples
        # Units without repeats, as T2C takes them, would be far fewer.
        if abs(len(units) - expected) > TOLERANCE_FRAMES:
            raise ManifestError(
                f"row {row.id!r} has {len(units)} units for {duration_s:.2f} s of audio, but a "
                f"vocoder learns from a unit per frame, {expected:.0f} here, repeats and all; "
                "write them so, or name the codec that makes them (codec=NAME)"
            )
        return units

    def _speaker_number(self, row: Row, speakers: Sequence[str]) -> int:
        """Index of a row's speaker; 0 where one speaker is trained."""
        if not speakers:
            return 0
        name = self._speaker(row)
        if name not in speakers:
            raise ManifestError(
                f"row {row.id!r} is spoken by {name!r}, whom no training row has; "
                "leave it out of the validation manifests"
            )
        return speakers.index(name)

    def _check_units(self, recordings: Sequence[Recording], count: int) -> None:
        """Check that every unit is among `count` units.

        Raises:
            ManifestError: a recording has one that is not.
        """
        for recording in recordings:
            frames = recording.frames
            if frames and not 0 <= min(frames) <= max(frames) < count:
                raise ManifestError(
                    f"row {recording.row_id!r} has unit {max(frames)}, but there are {count}; "
                    "set vocoder.task.units"
                )

    def _long_enough(self, recordings: Sequence[Recording], split: str) -> list[Recording]:
        # A clip may end before its last frames do, which are then left out.
        least = self.segment_frames + TOLERANCE_FRAMES
        usable = [recording for recording in recordings if len(recording.frames) >= least]
        if len(usable) < len(recordings):
            log.warning(
                "%d clips of %s are shorter than a segment and left out",
                len(recordings) - len(usable),
                split,
            )
        return usable
