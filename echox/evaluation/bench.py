"""The bench a run is tried on: its models and the judges, loaded when first needed, and what they do with many rows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from echox.data.audio import load_audio, pad_waveforms, save_audio
from echox.data.manifest import OnBroken, Row, read_manifest
from echox.device import device_named
from echox.errors import ManifestError
from echox.evaluation.config import EvaluateConfig
from echox.evaluation.quality import Quality
from echox.evaluation.transcriber import Transcriber
from echox.generation.answering import Answer, Answerer, Voice
from echox.generation.loading import load_answerer, load_voice
from echox.generation.manifest_run import answer_rows, file_name
from echox.generation.restoring import refuse_mute
from echox.progress import Bar, progress, say

T = TypeVar("T")
RECORDINGS_HZ = 16_000  # the rate at which recordings are judged; recognisers hear no more
HEARING = ("echo", "s2t")  # stages whose models answer, the last first
SPEAKING = ("echo", "t2c")  # stages with a codec, the one that is heard first


@dataclass(frozen=True, slots=True)
class Sound:
    """Speech to be judged."""

    samples: Tensor | None  # [T]; None where there is nothing to hear
    rate_hz: int


class Bench:
    """A finished run, its corpus and its judges."""

    def __init__(self, config: EvaluateConfig, run: Path, corpus: Path, folder: Path) -> None:
        """Args: folder: the report's, below which wavs are kept."""
        self.config = config
        self.run = run
        self.corpus = corpus
        self.folder = folder
        self.device = device_named(config.device)
        self.judges: dict[str, str | None] = {"asr": None, "mos": None}  # who has transcribed and judged so far, as reports name them
        self._said: dict[str, dict[str, Any]] = {}
        self._can_be_heard = False  # until that was looked at

    @cached_property
    def answerer(self) -> Answerer:
        """The run's last model that hears."""
        folder = next(self.final(stage) for stage in HEARING if self.final(stage).exists())
        return load_answerer(folder, device=str(self.device), codec_folder=self.config.codec_folder, max_tokens=self.config.max_tokens)

    @cached_property
    def voice(self) -> Voice:
        """The run's T2C model, with the language model and the codec of the one that hears, where there is one."""
        beside = self.answerer if any(self.final(stage).exists() for stage in HEARING) else None
        return load_voice(self.final("t2c"), device=str(self.device), codec_folder=self.config.codec_folder, beside=beside)

    def refuse_mute(self) -> None:
        """
        Raises:
            ConfigError: what the run says could not be heard, which is told before hours are spent on reading it.
        """
        if not self._can_be_heard and (speaking := next((self.final(stage) for stage in SPEAKING if self.final(stage).exists()), None)):
            refuse_mute(speaking, self.config.codec_folder)
        self._can_be_heard = True

    @cached_property
    def transcriber(self) -> Transcriber:
        """The recogniser."""
        transcriber = Transcriber(self.config.asr, device=self.device, batch_size=self.config.batch_size)
        self.judges["asr"] = transcriber.name
        return transcriber

    @cached_property
    def quality(self) -> Quality | None:
        """The judge of naturalness, where clips are judged."""
        quality = Quality(self.device) if self.config.mos_rows else None
        self.judges["mos"] = quality and quality.name
        return quality

    def final(self, stage: str) -> Path:
        """Where a stage's finished checkpoint stands, if it does."""
        return self.run / stage / "final"

    def rows(self, name: str) -> list[Row]:
        """The usable rows of a manifest of the corpus; none where the corpus has no such manifest."""
        path = self.corpus / name
        if not path.exists():
            return []
        return list(read_manifest(path, on_broken=OnBroken.skip).rows)

    def sample(self, rows: Sequence[T], count: int, purpose: str) -> list[T]:
        """At most `count` rows, drawn by the seed, in their own order."""
        if count >= len(rows):
            return list(rows)
        chosen = random.Random(f"{self.config.seed} {purpose}").sample(range(len(rows)), count)
        return [rows[index] for index in sorted(chosen)]

    def answer(self, rows: Sequence[Row], label: str, *, speak: bool) -> dict[str, Answer]:
        """Answers by row id; a row that fails has an empty one."""
        answers: dict[str, Answer] = {}
        for batch in self._batches(rows, label):
            for row, outcome in answer_rows(self.answerer, batch, speak=speak):
                if isinstance(outcome, str):
                    say(f"{label}: row {row.id!r} was not answered and counts as wrong: {outcome}")
                answers[row.id] = outcome if isinstance(outcome, Answer) else Answer("")
        return answers

    def typed(self, questions: Iterable[str], label: str, *, trained: bool) -> dict[str, str]:
        """The language model's answers to typed questions, by question."""
        distinct = sorted(set(questions), key=len)
        return {
            question: answer
            for batch in self._batches(distinct, label)
            for question, answer in zip(batch, self.answerer.answer_typed(batch, trained=trained))
        }

    def said(self, texts: Iterable[str], name: str, label: str) -> dict[str, dict[str, Any]]:
        """What T2C makes of texts, judged, by text; a text is spoken once, however often it is asked for."""
        fresh = sorted({text for text in texts if text not in self._said}, key=len)
        spoken = [answer for batch in self._batches(fresh, label) for answer in self.voice.say(batch)]
        sounds = {answer.text: Sound(answer.samples, answer.rate_hz) for answer in spoken}
        self._said |= self.judge(sounds, name)
        return self._said

    def through_codec(self, clips: Mapping[str, Path], label: str) -> dict[str, Sound]:
        """Recordings as the codec renders them (wave -> units -> wave), by name."""
        codec = self.voice.codec
        sounds = {}
        for batch in self._batches(list(clips), label):
            wave = pad_waveforms([load_audio(clips[name], codec.rate_hz) for name in batch], codec.rate_hz).to(self.device)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.voice.bf16):
                heard = codec.decode(codec.encode(wave))
            for name, samples, length in zip(batch, heard.samples, heard.lengths.tolist()):
                sounds[name] = Sound(samples[:length].float().cpu() if length else None, codec.rate_hz)
        return sounds

    def recordings(self, clips: Mapping[str, Path]) -> dict[str, Sound]:
        """Recordings as they are, by name."""
        return {name: Sound(load_audio(path, RECORDINGS_HZ), RECORDINGS_HZ) for name, path in clips.items()}

    def judge(self, sounds: Mapping[str, Sound], name: str, *, keep: bool = True) -> dict[str, dict[str, Any]]:
        """Transcript, naturalness and, if kept, the wav's path below the report, by name."""
        audible = {key: sound for key, sound in sounds.items() if sound.samples is not None}
        judged: dict[str, dict[str, Any]] = {key: {"transcript": "", "mos": None, "audio": None} for key in sounds}
        for batch in self._batches(sorted(audible, key=lambda key: len(audible[key].samples)), f"{name}: transcribing"):
            for key, transcript in zip(
                batch, self.transcriber.transcribe([audible[key].samples for key in batch], audible[batch[0]].rate_hz)
            ):
                judged[key]["transcript"] = transcript
        if keep:
            for key, sound in audible.items():
                judged[key]["audio"] = f"wavs/{name}/{file_name(key)}.wav"
                save_audio(self.folder / judged[key]["audio"], sound.samples, sound.rate_hz)
        drawn = self.sample(sorted(audible), self.config.mos_rows, "mos")
        if drawn and self.quality is not None:
            for key in progress(drawn, f"{name}: naturalness", unit="clip"):
                judged[key]["mos"] = self.quality.score(audible[key].samples, audible[key].rate_hz)
        return judged

    def _batches(self, items: Sequence[T], label: str) -> Iterator[list[T]]:
        with Bar(label, len(items), unit="row") as bar:
            for start in range(0, len(items), self.config.batch_size):
                batch = list(items[start : start + self.config.batch_size])
                yield batch
                bar.update(len(batch))


def asked(row: Row) -> str:
    """The words of a row's question.

    Raises:
        ManifestError: the row does not say.
    """
    said = (row.answer.transcription if row.answer is not None else "") or (row.question.text if row.question is not None else "")
    if not said:
        raise ManifestError(f"row {row.id!r} does not say what its question's words are; set 'transcription' on the assistant's turn")
    return said
