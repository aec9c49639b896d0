"""Copy synthesis: recordings through a codec and back, and what is left of them."""

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
from echox.data.audio import load_audio, pad_waveforms, resampled, save_audio
from echox.data.manifest import OnBroken, Row, read_manifests
from echox.data.writing import appearing
from echox.device import device_named, multiplies_bf16_fast
from echox.errors import ConfigError, ManifestError
from echox.evaluation.fidelity import fidelity, known_measures
from echox.evaluation.page import protocol_lines, table_lines
from echox.evaluation.quality import Quality
from echox.evaluation.scores import Score, mean, word_error
from echox.evaluation.transcriber import Transcriber
from echox.generation.manifest_run import file_name
from echox.packages import DISTILLMOS, JIWER, require
from echox.progress import progress
from echox.signals import Units

RECORDINGS = "recordings"
PAGE = "codecs.md"


@dataclass(kw_only=True, slots=True)
class CodecCopyConfig:
    """Copy recordings through a codec and measure what is left: words, naturalness, likeness, and the bits it took. Run it once a codec;
    all that were copied into one `out_dir` stand in one table."""

    manifests: list[str] = field(default_factory=list)
    """Manifests whose assistant turns have audio and text."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""
    codec: CodecConfig = MISSING
    """The codec that speaks, and that makes the units where `units` is null."""
    units: CodecConfig | None = None
    """The codec that makes the units, where `codec` only turns them into speech."""
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
        if self.label == RECORDINGS:
            raise ConfigError(f"label={RECORDINGS} is what the recordings themselves are called; choose another")


@dataclass(frozen=True, slots=True)
class Copies:
    """Recordings after their way through a codec."""

    samples: dict[str, Tensor]  # row id -> [T] at the codec's rate; empty where no unit was left
    units: int  # of all rows and codebooks
    bits: float
    seconds: float  # of the recordings


def copy_synthesis(config: CodecCopyConfig) -> Path:
    """Copy, measure, and write the table; prints it too.

    Raises:
        ConfigError: nothing makes units. ManifestError: no manifest is named, one is missing, or no row has audio and text.
        PackageError: what measures is not installed.
    """
    require([JIWER, DISTILLMOS])
    rows = _drawn(config)
    device = device_named(config.device)
    speaker = CODECS.build(config.codec).to(device).eval()
    maker = speaker if config.units is None else CODECS.build(config.units).to(device).eval()
    _refuse_mismatch(speaker, maker, config)
    recordings = {row.id: load_audio(row.answer.audio, maker.rate_hz) for row in rows}
    judge = _Judge(config, device, {row.id: row.answer.text for row in rows})
    copies = _copied(recordings, maker, speaker, config, device)
    label = config.label or CODECS.name_of(config.codec)
    folder = Path(config.out_dir)
    if not _is_judged(folder, config):
        _keep(folder, RECORDINGS, judge.scores(recordings, maker.rate_hz), config)
    beside = {key: resampled(clip, maker.rate_hz, speaker.rate_hz) for key, clip in recordings.items()}
    scores = judge.scores(copies.samples, speaker.rate_hz, beside)
    _keep(folder, label, scores | _costs(copies), config)
    for key, samples in copies.samples.items():
        if len(samples):
            save_audio(folder / "wavs" / file_name(label) / f"{file_name(key)}.wav", samples, speaker.rate_hz)
    page = _write_page(folder)
    print(page.read_text(encoding="utf-8"))
    return page


def _drawn(config: CodecCopyConfig) -> list[Row]:
    found = read_manifests(config.manifests, on_broken=OnBroken.skip, allow_outside=config.allow_outside)
    rows = [row for row in found if row.answer is not None and row.answer.audio is not None and row.answer.text]
    if not rows:
        raise ManifestError(f"no row of {', '.join(config.manifests)} has an answer with audio and text, which copies are compared with")
    chosen = random.Random(config.seed).sample(range(len(rows)), min(config.rows, len(rows)))
    return [rows[index] for index in sorted(chosen)]


def _refuse_mismatch(speaker: Codec, maker: Codec, config: CodecCopyConfig) -> None:
    if not maker.encodes:
        name = CODECS.name_of(config.units or config.codec)
        raise ConfigError(f"codec {name} makes no units of speech; name one that does with units=NAME")
    if not speaker.decodes:
        raise ConfigError(f"codec {CODECS.name_of(config.codec)} has nothing to speak with; give it a vocoder, or name a codec that speaks")
    theirs, ours = (maker.vocab_size, maker.codebooks), (speaker.vocab_size, speaker.codebooks)
    if theirs != ours:
        raise ConfigError(
            f"units are of {theirs[0]} kinds in {theirs[1]} codebooks, but the codec that speaks knows {ours[0]} in {ours[1]}; "
            "they do not belong together"
        )


@torch.no_grad()
def _copied(recordings: Mapping[str, Tensor], maker: Codec, speaker: Codec, config: CodecCopyConfig, device: torch.device) -> Copies:
    samples: dict[str, Tensor] = {}
    count = 0
    for keys in _batches(sorted(recordings, key=lambda key: len(recordings[key])), config.batch_size, "copying"):
        wave = pad_waveforms([recordings[key] for key in keys], maker.rate_hz).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16_fast(device)):
            units = maker.encode(wave)
            copied = speaker.decode(units)
        count += _unit_count(units)
        for key, clip, length in zip(keys, copied.samples, copied.lengths.tolist()):
            samples[key] = clip[:length].float().cpu()
    seconds = sum(map(len, recordings.values())) / maker.rate_hz
    return Copies(samples, count, count * math.log2(maker.vocab_size), seconds)


def _unit_count(units: Units) -> int:
    codebooks = units.ids.shape[1] if units.ids.ndim == 3 else 1
    return codebooks * int(units.lengths.sum())


def _costs(copies: Copies) -> dict[str, Score]:
    rows = len(copies.samples)
    units, bits = copies.units / copies.seconds, copies.bits / copies.seconds
    return {
        "units/s": Score(units, rows, None, None, "units of all codebooks, repeats as the codec writes them / seconds of recordings"),
        "bit/s": Score(bits, rows, None, None, "units/s x log2 of their kinds; no entropy coding, no durations"),
    }


class _Judge:
    """Measures clips against the rows' texts and recordings."""

    def __init__(self, config: CodecCopyConfig, device: torch.device, texts: Mapping[str, str]) -> None:
        self.config = config
        self.texts = texts
        self.transcriber = Transcriber(config.asr, device=device, batch_size=config.batch_size)
        self.quality = Quality(device)
        self.measures = known_measures()

    def scores(self, clips: Mapping[str, Tensor], rate_hz: int, recordings: Mapping[str, Tensor] | None = None) -> dict[str, Score]:
        """Name -> score; likeness and length only beside recordings [T] of the same rate."""
        keys = sorted(clips, key=lambda key: len(clips[key]))
        heard: list[str] = []
        for batch in _batches(keys, self.config.batch_size, "transcribing"):
            heard += self.transcriber.transcribe([clips[key] for key in batch], rate_hz)
        pairs = [(self.texts[key], text) for key, text in zip(keys, heard)]
        scores = {"WER": word_error(pairs, "words of the row's text", self.transcriber.name)}
        opinions = [self.quality.score(clips[key], rate_hz) for key in progress(keys, "naturalness", unit="row") if len(clips[key])]
        scores["DistillMOS"] = mean([value for value in opinions if value is not None], "mean opinion, 1 to 5", self.quality.name)
        return scores if recordings is None else scores | self._likeness(clips, recordings, rate_hz)

    def _likeness(self, clips: Mapping[str, Tensor], recordings: Mapping[str, Tensor], rate_hz: int) -> dict[str, Score]:
        audible = [key for key in clips if len(clips[key])]
        scores = {}
        for measure, scorer in self.measures.items():
            values = [fidelity(measure, recordings[key], clips[key], rate_hz) for key in progress(audible, measure, unit="row")]
            protocol = "against the recording, cut to the shorter; the copy's own timing counts as error"
            scores[measure] = mean([value for value in values if value is not None], protocol, scorer)
        ratios = [len(clips[key]) / len(recordings[key]) for key in clips]
        return scores | {"length": mean(ratios, "length of the copy / of the recording")}


def _batches(keys: Sequence[str], size: int, label: str) -> Iterator[Sequence[str]]:
    for start in progress(range(0, len(keys), size), label, unit="batch"):
        yield keys[start : start + size]


def _keep(folder: Path, label: str, scores: Mapping[str, Score], config: CodecCopyConfig) -> None:
    document: dict[str, Any] = {
        "label": label,
        "manifests": config.manifests,
        "rows": config.rows,
        "seed": config.seed,
        "asr": config.asr,
        "codec": None if label == RECORDINGS else CODECS.describe(config.codec),
        "units": None if label == RECORDINGS or config.units is None else CODECS.describe(config.units),
        "scores": {name: asdict(score) for name, score in scores.items()},
    }
    with appearing(folder / f"{file_name(label)}.json") as unfinished:
        unfinished.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_judged(folder: Path, config: CodecCopyConfig) -> bool:
    """Whether these recordings have their scores from the codec before."""
    path = folder / f"{RECORDINGS}.json"
    return path.is_file() and _drawn_by(json.loads(path.read_text("utf-8"))) == [config.manifests, config.rows, config.seed, config.asr]


def _drawn_by(document: Mapping[str, Any]) -> list[Any]:
    """What must be the same for two codecs to stand in one table."""
    return [document[name] for name in ("manifests", "rows", "seed", "asr")]


def _write_page(folder: Path) -> Path:
    """One table of all that was measured on the same rows as what was measured last."""
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    documents.sort(key=lambda found: found["label"] != RECORDINGS)
    drawn = next(_drawn_by(found) for found in documents if found["label"] == RECORDINGS)
    same = [found for found in documents if _drawn_by(found) == drawn]
    scores = {found["label"]: found["scores"] for found in same}
    lines = [
        "# Copy synthesis",
        "",
        f"Recordings of {', '.join(drawn[0])}, at most {drawn[1]}, drawn by seed {drawn[2]}; "
        "in brackets the 95 % interval, by bootstrap over rows.",
        "",
        *table_lines(scores),
        "",
        *protocol_lines(scores),
    ]
    page = folder / PAGE
    with appearing(page) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page
