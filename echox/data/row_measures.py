"""What a row of a manifest measures, and what speaks against it."""

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
from echox.data.audio import audio_header, load_audio
from echox.data.audio_ref import Audio, audio_ref
from echox.data.id_hashes import hash_of
from echox.data.lines import chunks_of, records_of
from echox.data.row_reader import Broken, Headers, RowReader, id_of, parsed
from echox.data.rows import Item, Role, Row, is_silent, spoken_pairs
from echox.errors import ConfigError, SignalError

# Rows of a .json list handed to a process at once.
LIST_ROWS = 512
FRAME_S = 0.02
# A frame is silent that is 40 dB below the loudest one, or at the level of a quiet recording's noise.
SILENT_BELOW_LOUDEST_DB, SILENT_DBFS = 40.0, -60.0
FULL_SCALE = 0.999  # of a 16-bit sample, one step below the largest is 0.99997
_LOWEST_DBFS = -100.0


@dataclass(kw_only=True, slots=True)
class RowLimits:
    """What a row must keep to."""

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
    """Letters a second at most of words that are said in a clip; faster ones are not what is said."""
    max_wer: float | None = None
    """Word error rate at most that a turn states (`wer`) or the recogniser measures; null takes any."""
    max_cer: float = 0.10
    """Character error rate at most that a turn states (`cer`) or the recogniser measures: a tenth, as in the release's data."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.max_s:
            raise ConfigError(f"min_s is {self.min_s} and max_s {self.max_s}; the first must be the smaller")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that speaks against a row."""

    kind: str
    reason: str


@dataclass(slots=True)
class ClipMeasure:
    """One clip."""

    role: Role
    seconds: float
    rate_hz: int = 0  # 0 where the header was not read
    channels: int = 0
    loudest_dbfs: float = math.nan  # NaN where the clip was not decoded
    silence: float = math.nan
    clipped: float = math.nan
    letters: int = 0  # of what is said in it, 0 where unknown
    content: int = 0  # hash of its bytes, 0 where it was not asked for


@dataclass(slots=True)
class RowMeasure:
    """One row; a broken one has its reason alone."""

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
    errors: list[tuple[str, float]] = field(default_factory=list)  # "wer" or "cer", and its value as the row states it
    words: int = 0  # of all texts
    letters: int = 0
    tokens: int = 0  # of all texts, where a tokenizer is named
    spoken: list[tuple[Audio, str]] = field(default_factory=list)  # clips and what is said in them, where they are to be transcribed


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


Records = list[tuple[int, Any]]


def batches_of(path: Path) -> Iterator[tuple[Records, int]]:
    """Line numbers with lines (or parsed rows of a .json list), some at a time, and the bytes they take."""
    if path.suffix == ".json":
        batch: Records = []
        for numbered in records_of(path):
            batch.append(numbered)
            if len(batch) == LIST_ROWS:
                yield batch, 0
                batch = []
        yield batch, 0
        return
    for chunk in chunks_of(path, 1 << 17):
        yield [(line, raw) for line, _, raw in chunk.places()], sum(map(len, chunk.lines))


def measure_rows(path: Path, settings: MeasureSettings, batch: tuple[Records, int]) -> tuple[list[RowMeasure], int]:
    """Measures of a batch's rows, and its bytes; for a process of its own."""
    headers = Headers.ALL if settings.headers else Headers.UNSTATED
    reader = RowReader(path, settings.allow_outside, headers)
    return [_measured(reader, settings, line, raw) for line, raw in batch[0]], batch[1]


def _measured(reader: RowReader, settings: MeasureSettings, line: int, raw: Any) -> RowMeasure:
    record = parsed(raw) if isinstance(raw, bytes) else raw
    try:
        read = reader.read(line, record)
        return measure_row(read.row, line, read.seconds, settings)
    except Broken as broken:
        return RowMeasure(line, id_of(record), broken=str(broken))


def measure_row(row: Row, line: int, seconds: Sequence[float], settings: MeasureSettings) -> RowMeasure:
    """
    Args:
        seconds: of each turn's clip.
    Raises:
        Broken: a clip cannot be decoded.
    """
    found = RowMeasure(line, row.id, hash_of(row.id), kind=str(row.extra.get("kind", "none")), speaker=speaker_of(row))
    found.spoken = spoken_pairs(row) if settings.transcribed else []
    texts = [text for item in row.turns for text in (item.text, item.transcription) if text]
    found.words, found.letters = sum(len(text.split()) for text in texts), sum(map(letters_in, texts))
    if settings.tokenizer is not None and texts:
        found.tokens = sum(map(len, tokenizer_of(settings.tokenizer)(texts, add_special_tokens=False).input_ids))
    for number, (item, following, length_s) in enumerate(zip(row.turns, [*row.turns[1:], None], seconds), start=1):
        _measure_words(item, length_s, found)
        if item.audio is not None:
            said = item.text if item.role is Role.ASSISTANT else (following.transcription if following is not None else "")
            clip = _clip(item, length_s, letters_in(said), settings, number)
            found.clips.append(clip)
            against = _against(clip, settings.limits, may_be_silent=is_silent(row, item))
            found.findings += [Finding(kind, f"item {number}: {reason}") for kind, reason in against]
    _against_units(found, settings.limits)
    found.findings += [Finding("transcript", reason) for name, value in found.errors if (reason := too_wrong(name, value, settings.limits))]
    return found


@functools.lru_cache(maxsize=1)
def tokenizer_of(weights: str) -> Any:
    """A tokenizer by catalogue name, hub id or folder.

    Raises:
        AssetError: there is none.
    """
    from transformers import AutoTokenizer

    folder = asset_folder(weights)
    with loading("a tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder)


def letters_in(text: str) -> int:
    """Characters that are no space."""
    return sum(not letter.isspace() for letter in text)


def speaker_of(row: Row) -> str | None:
    """Who speaks, as corpora call it."""
    for key in ("speaker", "speaker_id", "voice"):
        if row.extra.get(key) is not None:
            return str(row.extra[key])
        for item in row.turns:
            if item.audio is not None and item.extra.get(key) is not None:
                return str(item.extra[key])
    return None


def too_wrong(name: str, value: float, limits: RowLimits) -> str | None:
    """Why an error rate is too high, if it is."""
    limit = limits.max_wer if name == "wer" else limits.max_cer
    return None if limit is None or value <= limit else f"{name} is {value:.3f}; at most {limit:g} is wanted"


def _measure_words(item: Item, length_s: float, found: RowMeasure) -> None:
    if item.transcription:
        found.transcription_words.append(len(item.transcription.split()))
    if item.role is Role.ASSISTANT and item.text:
        found.answer_words.append(len(item.text.split()))
    if item.units:
        found.units += len(item.units)
        found.highest_unit = max(found.highest_unit, *item.units)
        found.unit_letters += letters_in(item.text)
        found.unit_s += 0.0 if math.isnan(length_s) else length_s
    stated = ((name, item.extra.get(name)) for name in ("wer", "cer"))
    found.errors += [(name, float(value)) for name, value in stated if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _clip(item: Item, length_s: float, letters: int, settings: MeasureSettings, number: int) -> ClipMeasure:
    clip = ClipMeasure(item.role, length_s, letters=letters)
    try:
        if settings.headers:
            header = audio_header(item.audio)
            clip.rate_hz, clip.channels = header.rate_hz, header.channels
        if settings.decode:
            clip.loudest_dbfs, clip.silence, clip.clipped = loudness(load_audio(item.audio, clip.rate_hz), clip.rate_hz)
        if settings.hash_audio:
            clip.content = _content_hash(item.audio)
    except SignalError as error:
        raise Broken(f"item {number}: {error}") from error
    return clip


def loudness(samples: Tensor, rate_hz: int) -> tuple[float, float, float]:
    """Samples [T] -> level of the loudest frame in dBFS, share of silent frames, share of samples at full scale."""
    T = len(samples)
    size = max(1, min(T, round(FRAME_S * rate_hz)))
    frames = samples[: T - T % size].reshape(-1, size)
    levels = 20 * frames.square().mean(dim=1).sqrt().clamp(min=10 ** (_LOWEST_DBFS / 20)).log10()
    loudest = float(levels.max())
    silent = levels <= max(loudest - SILENT_BELOW_LOUDEST_DB, SILENT_DBFS)
    return loudest, float(silent.float().mean()), float((samples.abs() >= FULL_SCALE).float().mean())


def _content_hash(audio: Audio) -> int:
    digest = hashlib.blake2b(digest_size=8)
    ref = audio_ref(audio)
    digest.update(repr((ref.start_s, ref.end_s)).encode() if ref.is_part else b"")
    with ref.open() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return int.from_bytes(digest.digest(), "little")


def _against(clip: ClipMeasure, limits: RowLimits, *, may_be_silent: bool) -> Iterable[tuple[str, str]]:
    if clip.seconds < limits.min_s or clip.seconds > limits.max_s:
        yield "duration", f"the clip has {clip.seconds:.2f} s; {limits.min_s:g} to {limits.max_s:g} are wanted"
    if 0 < clip.rate_hz < limits.min_rate_hz:
        yield "rate", f"the clip has {clip.rate_hz} Hz; at least {limits.min_rate_hz} are wanted"
    if not may_be_silent and (reason := _too_silent(clip, limits)):
        yield "silence", reason
    if clip.clipped > limits.max_clipped:
        yield "clipping", f"{100 * clip.clipped:.2f} % of the samples stand at full scale; at most {100 * limits.max_clipped:g} % are wanted"
    if clip.letters > limits.max_letters_per_s * max(clip.seconds, 1e-3):
        rate = clip.letters / max(clip.seconds, 1e-3)
        yield "transcript", f"its words would be {rate:.0f} letters a second; at most {limits.max_letters_per_s:g} are said"


def _too_silent(clip: ClipMeasure, limits: RowLimits) -> str:
    """Why a clip cannot be speech, or ""."""
    if clip.loudest_dbfs < limits.quietest_dbfs:
        return f"the clip's loudest 20 ms have {clip.loudest_dbfs:.0f} dBFS; at least {limits.quietest_dbfs:g} are wanted"
    if clip.silence > limits.max_silence:
        return f"{100 * clip.silence:.0f} % of the clip are silent; at most {100 * limits.max_silence:g} % are wanted"
    return ""


def _against_units(found: RowMeasure, limits: RowLimits) -> None:
    if limits.unit_vocabulary is not None and found.highest_unit >= limits.unit_vocabulary:
        reason = f"unit {found.highest_unit} is none of the codec's, which has {limits.unit_vocabulary}"
        found.findings.append(Finding("units", reason))
