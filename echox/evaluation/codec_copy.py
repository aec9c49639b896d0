"""Copy synthesis: recordings are encoded and decoded by a codec, and compared with themselves."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor

from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import ConfigError, ManifestError
from echox.core.files import atomic_write
from echox.core.packages import DISTILLMOS, JIWER, require
from echox.core.progress import progress
from echox.core.signals import Units
from echox.data.audio import load_audio, pad_waveforms, resampled, save_audio
from echox.data.manifest import OnBroken, Row, read_manifests
from echox.evaluation.fidelity import fidelity, installed_measures
from echox.evaluation.page import protocol_lines, table_lines
from echox.evaluation.quality import Quality
from echox.evaluation.scores import Score, mean, word_error
from echox.evaluation.transcriber import Transcriber
from echox.inference.batch_run import file_name

RECORDINGS = "recordings"  # label of the recordings themselves
PAGE = "codecs.md"


@dataclass(kw_only=True, slots=True)
class CodecCopyConfig:
    """Copy recordings through a codec and score the copies: words, naturalness, likeness, bits.

    Run it once a codec; all that were copied into one `out_dir` stand in one table.

    Raises:
        ConfigError: a number is out of range, or the label is that of the recordings.
    """

    manifests: list[str] = field(default_factory=list)
    """Manifests whose assistant turns have audio and text."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""
    codec: CodecConfig = MISSING
    """The codec that decodes, and that encodes where `units` is null."""
    units: CodecConfig | None = None
    """The codec that encodes, where `codec` decodes alone."""
    label: str | None = None
    """What the codec is called in the table; null takes its name."""
    out_dir: str = "runs/codecs"
    """Folder of the table, the numbers and the wavs."""
    rows: int = 64
    """Recordings, drawn by `seed`."""
    seed: int = 1
    """Seed of the draw."""
    asr: str = "whisper_base"
    """Recogniser: catalogue name, hub id or local folder of a Whisper."""
    batch_size: int = 16
    """Recordings copied or transcribed at once."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}")
        # Both would write the same file, and share a row of the table.
        if self.label == RECORDINGS:
            raise ConfigError(
                f"label={RECORDINGS} is what the recordings themselves are called; choose another"
            )


@dataclass(frozen=True, slots=True)
class Copies:
    """Recordings after encoding and decoding.

    Samples are [T] for each row, at the decoder's rate.
    """

    samples: dict[str, Tensor]  # row id -> [T] at the decoder's rate; empty where there is no unit
    units: int  # of all rows and codebooks
    bits: float  # of those units, without entropy coding
    seconds: float  # of the recordings


def copy_synthesis(config: CodecCopyConfig) -> Path:
    """Copy recordings through a codec, score the copies, and write and print the table.

    Args:
        config: codecs, manifests and the sample.

    Returns:
        the path of the table.

    Raises:
        ConfigError: one codec cannot encode or the other cannot decode, or their units differ.
        ManifestError: no manifest is named, one is missing, or no row has audio and text.
        PackageError: a package that scores is not installed.
    """
    # Before any model is loaded.
    require([JIWER, DISTILLMOS])
    rows = _sample_rows(config)
    device = device_named(config.device)
    decoder = CODECS.build(config.codec).to(device).eval()
    encoder = decoder if config.units is None else CODECS.build(config.units).to(device).eval()
    _refuse_mismatch(encoder, decoder, config)
    answers = {row.id: row.require_answer() for row in rows}
    recordings = {
        row_id: load_audio(answer.require_audio(), encoder.rate_hz)
        for row_id, answer in answers.items()
    }
    scorer = _CopyScorer(config, device, {key: answer.text for key, answer in answers.items()})
    copies = _copy(recordings, encoder, decoder, config, device)
    label = config.label or CODECS.entry_of(config.codec).name
    folder = Path(config.out_dir)
    # The recordings are scored once for all codecs of a table.
    if not _has_recordings_scores(folder, config):
        _write_scores(folder, RECORDINGS, scorer.scores(recordings, encoder.rate_hz), config)
    # Likeness is measured at one rate, and the decoder's may differ from the encoder's.
    references = {
        key: resampled(clip, encoder.rate_hz, decoder.rate_hz) for key, clip in recordings.items()
    }
    scores = scorer.scores(copies.samples, decoder.rate_hz, references)
    _write_scores(folder, label, scores | _rate_scores(copies), config)
    _save_copies(folder / "wavs" / file_name(label), copies, decoder.rate_hz)
    page = _write_page(folder)
    print(page.read_text(encoding="utf-8"))
    return page


def _save_copies(folder: Path, copies: Copies, rate_hz: int) -> None:
    for key, samples in copies.samples.items():
        # A wav without samples cannot be listened to.
        if len(samples):
            save_audio(folder / f"{file_name(key)}.wav", samples, rate_hz)


def _sample_rows(config: CodecCopyConfig) -> list[Row]:
    rows = [
        row
        for row in read_manifests(
            config.manifests, on_broken=OnBroken.skip, allow_outside=config.allow_outside
        )
        if row.answer is not None and row.answer.audio is not None and row.answer.text
    ]
    if not rows:
        raise ManifestError(
            f"no row of {', '.join(config.manifests)} has an answer with audio and text, "
            "which copies are compared with"
        )
    # Of all usable rows: the sample must be the same for every codec of a table.
    indices = random.Random(config.seed).sample(range(len(rows)), min(config.rows, len(rows)))
    return [rows[index] for index in sorted(indices)]


def _refuse_mismatch(encoder: Codec, decoder: Codec, config: CodecCopyConfig) -> None:
    # A vocoder has no encoder, a codec without a vocoder cannot decode.
    if not encoder.encodes:
        name = CODECS.name_of(config.units or config.codec)
        raise ConfigError(
            f"codec {name} makes no units of speech; name one that does with units=NAME"
        )
    if not decoder.decodes:
        raise ConfigError(
            f"codec {CODECS.name_of(config.codec)} has nothing to speak with; "
            "give it a vocoder, or name a codec that speaks"
        )
    # Sizes alone: whether equal numbers mean equal units cannot be seen from here.
    if (encoder.vocab_size, encoder.codebooks) != (decoder.vocab_size, decoder.codebooks):
        raise ConfigError(
            f"units are of {encoder.vocab_size} kinds in {encoder.codebooks} codebooks, but the "
            f"codec that speaks knows {decoder.vocab_size} in {decoder.codebooks}; "
            "they do not belong together"
        )


@torch.no_grad()
def _copy(
    recordings: Mapping[str, Tensor],
    encoder: Codec,
    decoder: Codec,
    config: CodecCopyConfig,
    device: torch.device,
) -> Copies:
    samples: dict[str, Tensor] = {}
    units_in_all = 0
    # Similar lengths together, so that little of a batch is padding.
    by_length = sorted(recordings, key=lambda key: len(recordings[key]))
    for keys in _batches(by_length, config.batch_size, "copying"):
        wave = pad_waveforms([recordings[key] for key in keys], encoder.rate_hz).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16_fast(device)):
            units = encoder.encode(wave)
            copy = decoder.decode(units)
        units_in_all += _unit_count(units)
        for key, clip, length in zip(keys, copy.samples, copy.lengths.tolist()):
            # Without padding; float32, because the scorers run outside autocast.
            samples[key] = clip[:length].float().cpu()
    seconds = sum(map(len, recordings.values())) / encoder.rate_hz
    bits = units_in_all * math.log2(encoder.vocab_size)
    return Copies(samples, units_in_all, bits, seconds)


def _unit_count(units: Units) -> int:
    # Ids are [B, F], or [B, K, F] with several codebooks; lengths are in frames.
    codebooks = units.ids.shape[1] if units.ids.ndim == 3 else 1
    return codebooks * int(units.lengths.sum())


def _rate_scores(copies: Copies) -> dict[str, Score]:
    rows = len(copies.samples)
    units_per_s, bits_per_s = copies.units / copies.seconds, copies.bits / copies.seconds
    # Without intervals: they are counted over all recordings, not estimated from rows.
    units_protocol = (
        "units of all codebooks, repeats as the codec writes them / seconds of recordings"
    )
    bits_protocol = "units/s x log2 of their kinds; no entropy coding, no durations"
    return {
        "units/s": Score(units_per_s, rows, None, None, units_protocol),
        "bit/s": Score(bits_per_s, rows, None, None, bits_protocol),
    }


class _CopyScorer:
    """Scores clips against the rows' texts and recordings."""

    def __init__(
        self, config: CodecCopyConfig, device: torch.device, texts: Mapping[str, str]
    ) -> None:
        self.config = config
        self.texts = texts
        self.transcriber = Transcriber(config.asr, device=device, batch_size=config.batch_size)
        self.quality = Quality(device)
        self.measures = installed_measures()

    def scores(
        self,
        clips: Mapping[str, Tensor],
        rate_hz: int,
        recordings: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Score]:
        """Score clips.

        Args:
            clips: row id -> samples [T].
            rate_hz: samples per second of clips and recordings.
            recordings: row id -> samples [T]; None leaves likeness and length out.

        Returns:
            metric -> score.
        """
        keys = sorted(clips, key=lambda key: len(clips[key]))
        transcripts: list[str] = []
        for batch in _batches(keys, self.config.batch_size, "transcribing"):
            transcripts += self.transcriber.transcribe([clips[key] for key in batch], rate_hz)
        pairs = [(self.texts[key], transcript) for key, transcript in zip(keys, transcripts)]
        scored = (
            self.quality.score(clips[key], rate_hz)
            for key in progress(keys, "naturalness", unit="row")
            if len(clips[key])  # an empty clip counts in the word error rate alone
        )
        opinions = [opinion for opinion in scored if opinion is not None]
        scores = {
            "WER": word_error(pairs, "words of the row's text", self.transcriber.name),
            "DistillMOS": mean(opinions, "mean opinion, 1 to 5", self.quality.name),
        }
        return scores if recordings is None else scores | self._likeness(clips, recordings, rate_hz)

    def _likeness(
        self, clips: Mapping[str, Tensor], recordings: Mapping[str, Tensor], rate_hz: int
    ) -> dict[str, Score]:
        audible = [key for key in clips if len(clips[key])]
        protocol = (
            "against the recording, cut to the shorter; the copy's own timing counts as error"
        )
        scores = {}
        for measure, scorer in self.measures.items():
            measured = (
                fidelity(measure, recordings[key], clips[key], rate_hz)
                for key in progress(audible, measure, unit="row")
            )
            # None where the measure finds no speech.
            values = [value for value in measured if value is not None]
            scores[measure] = mean(values, protocol, scorer)
        # Of all clips, empty ones included: their length is 0.
        ratios = [len(clips[key]) / len(recordings[key]) for key in clips]
        return scores | {"length": mean(ratios, "length of the copy / of the recording")}


def _batches(keys: Sequence[str], size: int, label: str) -> Iterator[Sequence[str]]:
    for start in progress(range(0, len(keys), size), label, unit="batch"):
        yield keys[start : start + size]


def _write_scores(
    folder: Path, label: str, scores: Mapping[str, Score], config: CodecCopyConfig
) -> None:
    """Write what a row of the table needs, and by what sample it was scored."""
    is_codec = label != RECORDINGS
    has_encoder = is_codec and config.units is not None
    document: dict[str, Any] = {
        "label": label,
        "manifests": config.manifests,
        "rows": config.rows,
        "seed": config.seed,
        "asr": config.asr,
        # Described by name and settings, so that a table can be traced back to its codecs.
        "codec": CODECS.describe(config.codec) if is_codec else None,
        "units": CODECS.describe(config.units) if has_encoder else None,
        "scores": {name: asdict(score) for name, score in scores.items()},
    }
    content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(folder / f"{file_name(label)}.json") as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def _has_recordings_scores(folder: Path, config: CodecCopyConfig) -> bool:
    """Whether an earlier codec of the table has left the scores of these recordings."""
    path = folder / f"{RECORDINGS}.json"
    if not path.is_file():
        return False
    sample = [config.manifests, config.rows, config.seed, config.asr]
    return _sample_of(json.loads(path.read_text("utf-8"))) == sample


def _sample_of(document: Mapping[str, Any]) -> list[Any]:
    """What must be the same for two codecs to stand in one table."""
    return [document[name] for name in ("manifests", "rows", "seed", "asr")]


def _write_page(folder: Path) -> Path:
    """Write one table of all codecs that were scored on the sample of the recordings' scores."""
    # Scores of earlier runs stand in the same folder, a file for each codec.
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    # The recordings first, the codecs in the order of their files' names.
    documents.sort(key=lambda document: document["label"] != RECORDINGS)
    sample = _sample_of(documents[0])
    manifests, rows, seed, _ = sample
    scores = {
        document["label"]: document["scores"]
        for document in documents
        if _sample_of(document) == sample
    }
    lines = [
        "# Copy synthesis",
        "",
        f"Recordings of {', '.join(manifests)}, at most {rows}, drawn by seed {seed}; "
        "in brackets the 95 % interval, by bootstrap over rows.",
        "",
        *table_lines(scores),
        "",
        *protocol_lines(scores),
    ]
    page = folder / PAGE
    with atomic_write(page) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page
