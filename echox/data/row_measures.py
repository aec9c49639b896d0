"""Measures of a manifest's rows, and the findings against rows that exceed limits."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.core.errors import ConfigError, SignalError
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import Audio, audio_ref
from echox.data.id_hashes import hash_id
from echox.data.row_batches import Records, record_of
from echox.data.row_reader import BrokenRow, Headers, RowReader, stated_id
from echox.data.rows import Item, Role, Row, as_number, clip_words, is_silent, spoken_pairs
from echox.data.silence import SILENT_DBFS, frame_levels

# A frame is silent too that is so much below the loudest one.
SILENT_BELOW_LOUDEST_DB = 40.0
FULL_SCALE = 0.999  # of a 16-bit sample, one step below the largest is 0.99997
# Seconds below which a clip's rate of letters is not computed by its own length.
_SHORTEST_S = 1e-3


@dataclass(kw_only=True, slots=True)
class RowLimits:
    """Limits that a row must keep to."""

    min_s: float = 0.1
    """Seconds of a clip at least."""
    max_s: float = 120.0
    """Seconds of a clip at most."""
    min_rate_hz: int = 8000
    """Sampling rate of a clip at least, samples per second."""
    quietest_dbfs: float = -50.0
    """Level that a clip's loudest 20 ms must have, decibels below full scale."""
    max_silence: float = 0.9
    """Share of a clip's frames that may be silent: 40 dB below its loudest, or below -60 dBFS."""
    max_clipped: float = 0.001
    """Share of a clip's samples that may stand at full scale."""
    unit_vocabulary: int | None = None
    """Units that the codec has; a unit from this number up is refused. null takes any."""
    max_letters_per_s: float = 40.0
    """Letters a second at most of words that are said in a clip; faster ones are not what is
    said."""
    max_wer: float | None = None
    """Word error rate at most that a turn states (`wer`) or the recogniser measures; null takes
    any."""
    max_cer: float = 0.10
    """Character error rate at most that a turn states (`cer`) or the recogniser measures: a tenth,
    as in the release's data."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.max_s:
            raise ConfigError(
                f"min_s is {self.min_s} and max_s {self.max_s}; the first must be the smaller"
            )


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason why a row should not be used."""

    kind: str
    reason: str


@dataclass(slots=True)
class ClipMeasure:
    """Measures of one clip."""

    role: Role
    seconds: float
    rate_hz: int = 0  # 0 where the header was not read
    channels: int = 0
    loudest_dbfs: float = math.nan  # NaN where the clip was not decoded
    silence: float = math.nan
    clipped: float = math.nan
    letters: int = 0  # of its words, 0 where they are unknown
    content: int = 0  # hash of its bytes, 0 where none was asked for

    @property
    def letters_per_s(self) -> float:
        """Letters per second of the clip's words."""
        return self.letters / max(self.seconds, _SHORTEST_S)


@dataclass(slots=True)
class RowMeasure:
    """Measures of one row; a broken one has line, id and reason alone."""

    line: int
    row_id: str | None
    id_hash: int = 0
    broken: str | None = None
    findings: list[Finding] = field(default_factory=list)
    clips: list[ClipMeasure] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    transcription_words: list[int] = field(default_factory=list)
    units: int = 0
    highest_unit: int = -1
    unit_letters: int = 0  # of the texts that have units
    unit_s: float = 0.0  # seconds of the clips that have units
    kind: str = "none"
    speaker: str | None = None
    # "wer" or "cer", and its value as the row states it.
    errors: list[tuple[str, float]] = field(default_factory=list)
    words: int = 0  # of all texts
    letters: int = 0
    tokens: int = 0  # of all texts, where a tokenizer is named
    # Clips and their words, where the clips are to be transcribed.
    spoken: list[tuple[Audio, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How rows are measured."""

    limits: RowLimits
    decode: bool
    allow_outside: bool
    hash_audio: bool
    transcribed: bool = False  # whether clips go to a recogniser afterwards
    headers: bool = True
    tokenizer: str | None = None


def measure_rows(
    path: Path, settings: MeasureSettings, batch: tuple[Records, int]
) -> tuple[list[RowMeasure], int]:
    """Measure the rows of a batch; a function that other processes can import.

    Args:
        path: the manifest.
        settings: limits, and which measures are made.
        batch: records [N] of `read_batches`, and their bytes.

    Returns:
        measures [N] of the rows, and the batch's bytes.

    Raises:
        AssetError: the tokenizer that the settings name cannot be had.
    """
    records, read_bytes = batch
    headers = Headers.ALL if settings.headers else Headers.UNSTATED
    reader = RowReader(path, settings.allow_outside, headers)
    return [_measure_record(reader, settings, line, raw) for line, raw in records], read_bytes


def _measure_record(
    reader: RowReader, settings: MeasureSettings, line: int, raw: Any
) -> RowMeasure:
    record = record_of(raw)
    try:
        read = reader.read(line, record)
        return measure_row(read.row, line, read.seconds, settings)
    except BrokenRow as broken:
        return RowMeasure(line, stated_id(record), broken=str(broken))


def measure_row(
    row: Row, line: int, seconds: Sequence[float], settings: MeasureSettings
) -> RowMeasure:
    """Measure a row and compare it with the limits.

    Args:
        row: conversation of N turns.
        line: line of the row in its manifest.
        seconds: seconds [N] of each turn's clip.
        settings: limits, and which measures are made.

    Raises:
        BrokenRow: a clip cannot be decoded.
        AssetError: the tokenizer that the settings name cannot be had.
    """
    measure = RowMeasure(line, row.id, hash_id(row.id))
    measure.kind = str(row.extra.get("kind", "none"))
    measure.speaker = speaker_of(row)
    measure.spoken = spoken_pairs(row) if settings.transcribed else []
    _count_texts(row, measure, settings.tokenizer)
    followers = [*row.turns[1:], None]
    turns = zip(row.turns, followers, seconds)
    for number, (item, following, clip_s) in enumerate(turns, start=1):
        _count_turn(item, clip_s, measure)
        if item.audio is None:
            continue
        letters = count_letters(clip_words(item, following))
        clip = ClipMeasure(item.role, clip_s, letters=letters)
        _measure_clip(clip, item.audio, settings, number)
        measure.clips.append(clip)
        faults = _clip_faults(clip, settings.limits, may_be_silent=is_silent(row, item))
        measure.findings += [Finding(kind, f"item {number}: {reason}") for kind, reason in faults]
    measure.findings += _row_findings(measure, settings.limits)
    return measure


def _count_texts(row: Row, measure: RowMeasure, tokenizer: str | None) -> None:
    texts = [text for item in row.turns for text in (item.text, item.transcription) if text]
    measure.words = sum(len(text.split()) for text in texts)
    measure.letters = sum(map(count_letters, texts))
    if tokenizer is not None and texts:
        # Without special tokens, which are a conversation's and not its texts'.
        ids = load_tokenizer(tokenizer)(texts, add_special_tokens=False).input_ids
        measure.tokens = sum(map(len, ids))


# Cached, because every batch of every process asks for it.
@functools.lru_cache(maxsize=1)
def load_tokenizer(weights: str) -> Any:
    """Load a tokenizer by catalogue name, hub id or folder.

    Raises:
        AssetError: there is no such tokenizer.
    """
    from transformers import AutoTokenizer

    folder = asset_folder(weights)
    with loading("a tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder)


def count_letters(text: str) -> int:
    """Return the number of characters that are no space."""
    return sum(not letter.isspace() for letter in text)


def speaker_of(row: Row) -> str | None:
    """Return the speaker of a row, by any key that corpora use for it; None where it has none."""
    for key in ("speaker", "speaker_id", "voice"):
        if row.extra.get(key) is not None:
            return str(row.extra[key])
        for item in row.turns:
            if item.audio is not None and item.extra.get(key) is not None:
                return str(item.extra[key])
    return None


def error_rate_fault(name: str, value: float, limits: RowLimits) -> str | None:
    """Return why an error rate ("wer" or "cer") is too high, None where it is not."""
    limit = limits.max_wer if name == "wer" else limits.max_cer
    if limit is None or value <= limit:
        return None
    return f"{name} is {value:.3f}; at most {limit:g} is wanted"


def _count_turn(item: Item, clip_s: float, measure: RowMeasure) -> None:
    if item.transcription:
        measure.transcription_words.append(len(item.transcription.split()))
    if item.role is Role.ASSISTANT and item.text:
        measure.answer_words.append(len(item.text.split()))
    if item.units:
        measure.units += len(item.units)
        measure.highest_unit = max(measure.highest_unit, *item.units)
        measure.unit_letters += count_letters(item.text)
        measure.unit_s += 0.0 if math.isnan(clip_s) else clip_s
    for name in ("wer", "cer"):
        value = as_number(item.extra.get(name))
        if value is not None:
            measure.errors.append((name, value))


def _measure_clip(clip: ClipMeasure, audio: Audio, settings: MeasureSettings, number: int) -> None:
    """Add what the clip's file tells to its measures."""
    try:
        if settings.headers:
            header = audio_header(audio)
            clip.rate_hz, clip.channels = header.rate_hz, header.channels
        if settings.decode:
            # At the clip's own rate: resampling would smooth clipped samples.
            levels = clip_levels(load_audio(audio, clip.rate_hz), clip.rate_hz)
            clip.loudest_dbfs, clip.silence, clip.clipped = levels
        if settings.hash_audio:
            clip.content = _content_hash(audio)
    except SignalError as error:
        raise BrokenRow(f"item {number}: {error}") from error


def clip_levels(samples: Tensor, rate_hz: int) -> tuple[float, float, float]:
    """Measure the levels of a clip.

    Args:
        samples: clip [T] in [-1, 1], T at least 1.
        rate_hz: samples per second.

    Returns:
        level of the loudest frame of 20 ms in dBFS, share of silent frames, share of samples at
        full scale.
    """
    levels = frame_levels(samples, rate_hz)  # [F]
    loudest = float(levels.max())
    silent = levels <= max(loudest - SILENT_BELOW_LOUDEST_DB, SILENT_DBFS)  # [F]
    clipped = samples.abs() >= FULL_SCALE  # [T]
    return loudest, float(silent.float().mean()), float(clipped.float().mean())


def _content_hash(audio: Audio) -> int:
    """64 bits of the hash of a clip's bytes, and of its seconds where it is a part."""
    digest = hashlib.blake2b(digest_size=8)
    ref = audio_ref(audio)
    # Two parts of one recording have the same bytes.
    digest.update(repr((ref.start_s, ref.end_s)).encode() if ref.is_part else b"")
    with ref.open() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return int.from_bytes(digest.digest(), "little")


def _clip_faults(
    clip: ClipMeasure, limits: RowLimits, *, may_be_silent: bool
) -> Iterable[tuple[str, str]]:
    """Kind and reason of each limit that a clip exceeds; NaN exceeds none."""
    if clip.seconds < limits.min_s or clip.seconds > limits.max_s:
        bounds = f"{limits.min_s:g} to {limits.max_s:g} are wanted"
        yield "duration", f"the clip has {clip.seconds:.2f} s; {bounds}"
    if 0 < clip.rate_hz < limits.min_rate_hz:
        yield "rate", f"the clip has {clip.rate_hz} Hz; at least {limits.min_rate_hz} are wanted"
    if not may_be_silent and (reason := _silence_fault(clip, limits)):
        yield "silence", reason
    if clip.clipped > limits.max_clipped:
        bound = f"at most {100 * limits.max_clipped:g} % are wanted"
        yield "clipping", f"{100 * clip.clipped:.2f} % of the samples stand at full scale; {bound}"
    if clip.letters > limits.max_letters_per_s * max(clip.seconds, _SHORTEST_S):
        bound = f"at most {limits.max_letters_per_s:g} are said"
        yield "transcript", f"its words would be {clip.letters_per_s:.0f} letters a second; {bound}"


def _silence_fault(clip: ClipMeasure, limits: RowLimits) -> str:
    """Why a clip cannot be speech, or ""."""
    if clip.loudest_dbfs < limits.quietest_dbfs:
        bound = f"at least {limits.quietest_dbfs:g} are wanted"
        return f"the clip's loudest 20 ms have {clip.loudest_dbfs:.0f} dBFS; {bound}"
    if clip.silence > limits.max_silence:
        bound = f"at most {100 * limits.max_silence:g} % are wanted"
        return f"{100 * clip.silence:.0f} % of the clip are silent; {bound}"
    return ""


def _row_findings(measure: RowMeasure, limits: RowLimits) -> Iterator[Finding]:
    """Findings about units and the error rates that the row states."""
    size, highest = limits.unit_vocabulary, measure.highest_unit
    if size is not None and highest >= size:
        yield Finding("units", f"unit {highest} is none of the codec's, which has {size}")
    for name, value in measure.errors:
        if reason := error_rate_fault(name, value, limits):
            yield Finding("transcript", reason)
