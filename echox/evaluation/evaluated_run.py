"""A finished run under evaluation: its models, its corpus, and the scorers of its speech.

Models and scorers are loaded when they are first needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from echox.core.device import device_named
from echox.core.errors import SignalError
from echox.core.progress import Bar, print_message, progress
from echox.data.audio import load_audio, pad_waveforms, save_audio
from echox.data.audio_ref import Audio
from echox.data.manifest import OnBroken, Row, read_manifest
from echox.evaluation.config import EvaluateConfig
from echox.evaluation.quality import Quality
from echox.evaluation.transcriber import Transcriber
from echox.inference.answers import Answer
from echox.inference.batch_run import file_name
from echox.inference.load import (
    ANSWERS,
    answering_checkpoint,
    finished_stage,
    load_pipeline,
    load_tts_pipeline,
    refuse_undecodable,
)
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.row_answers import answer_rows
from echox.inference.tts import TTSPipeline
from echox.tasks.base import Use

T = TypeVar("T")
RECORDINGS_HZ = 16_000  # the rate at which recordings are scored; recognisers use no higher one


@dataclass(frozen=True, slots=True)
class Speech:
    """Speech to be scored.

    Samples are [T] float32 on the CPU.
    """

    samples: Tensor | None  # [T]; None where nothing was synthesized
    rate_hz: int

    def require_samples(self) -> Tensor:
        """Return the samples [T].

        Raises:
            SignalError: nothing was synthesized.
        """
        if self.samples is None:
            raise SignalError("nothing was synthesized that could be scored; leave the clip out")
        return self.samples


class EvaluatedRun:
    """A finished run, its corpus and its scorers.

    Args:
        config: what is scored.
        run: folder of the run.
        corpus: folder of the demo corpus.
        folder: of the report; wavs are written below it.
    """

    def __init__(self, config: EvaluateConfig, run: Path, corpus: Path, folder: Path) -> None:
        self.config = config
        self.run = run
        self.corpus = corpus
        self.folder = folder
        self.device = device_named(config.device)
        # Names of the scorers that were used so far, as reports give them.
        self.scorers: dict[str, str | None] = {"asr": None, "mos": None}
        # Row id -> why it was not answered.
        self.failures: dict[str, str] = {}
        self._synthesized: dict[str, dict[str, Any]] = {}
        self._is_decodable = False  # until that was checked

    @cached_property
    def pipeline(self) -> SpeechToSpeechPipeline:
        """The run's last model that answers speech, whatever it heard."""
        pipeline = load_pipeline(
            answering_checkpoint(self.run),
            device=str(self.device),
            codec_folder=self.config.codec_folder,
            encoder_folder=self.config.encoder_folder,
            backbone_folder=self.config.backbone_folder,
            max_tokens=self.config.max_tokens,
        )
        # What is answered to silence is scored too.
        pipeline.answer_silence = True
        return pipeline

    @cached_property
    def tts(self) -> TTSPipeline:
        """The run's last model that synthesizes text."""
        # Beside a pipeline, the language model and the codec are not loaded a second time.
        has_pipeline = self.final(*ANSWERS) is not None
        return load_tts_pipeline(
            # The run's folder is refused as no checkpoint where no stage synthesizes.
            self.final(Use.synthesize) or self.run,
            device=str(self.device),
            codec_folder=self.config.codec_folder,
            backbone_folder=self.config.backbone_folder,
            beside=self.pipeline if has_pipeline else None,
        )

    def refuse_undecodable(self) -> None:
        """Check that the run's codec can decode, before hours are spent on what it should decode.

        Raises:
            ConfigError: the codec has no vocoder.
        """
        if self._is_decodable:
            return
        checkpoint = self.final(Use.answer_aloud, Use.synthesize)
        # A run that answers in text alone needs no codec.
        if checkpoint is not None:
            refuse_undecodable(checkpoint, self.config.codec_folder)
        self._is_decodable = True

    @cached_property
    def transcriber(self) -> Transcriber:
        """The recogniser that transcribes speech."""
        transcriber = Transcriber(
            self.config.asr, device=self.device, batch_size=self.config.batch_size
        )
        self.scorers["asr"] = transcriber.name
        return transcriber

    @cached_property
    def quality(self) -> Quality | None:
        """The model that scores naturalness; None where no clips are scored."""
        # Loaded on demand: it is an optional package.
        quality = Quality(self.device) if self.config.mos_rows else None
        self.scorers["mos"] = None if quality is None else quality.name
        return quality

    def final(self, *uses: Use) -> Path | None:
        """Return the folder of the finished checkpoint with one of these uses, the first best."""
        return finished_stage(self.run, *uses)

    def rows(self, name: str) -> list[Row]:
        """Return the usable rows of a manifest of the corpus; none if there is no such manifest.

        Args:
            name: of the manifest in the corpus, or an absolute path.
        """
        # Not every corpus has every manifest: its config decides.
        path = self.corpus / name  # an absolute path replaces the folder
        if not path.exists():
            return []
        outside = self.config.allow_outside
        return list(read_manifest(path, on_broken=OnBroken.skip, allow_outside=outside).rows)

    def sample(self, rows: Sequence[T], count: int, purpose: str) -> list[T]:
        """Draw rows by the config's seed.

        Args:
            rows: to draw from.
            count: rows at most.
            purpose: separates the draws of one seed from each other.

        Returns:
            the sample, in the order of `rows`.
        """
        if count >= len(rows):
            return list(rows)
        indices = random.Random(f"{self.config.seed} {purpose}").sample(range(len(rows)), count)
        return [rows[index] for index in sorted(indices)]

    def answer(self, rows: Sequence[Row], label: str, *, speak: bool) -> dict[str, Answer]:
        """Answer the spoken questions of rows.

        Args:
            rows: of a manifest.
            label: of the progress bar.
            speak: synthesize the answers too.

        Returns:
            row id -> answer; a row that fails has an empty one, which counts as wrong.
        """
        # `answer_rows` leaves the others of a batch unharmed when one row fails.
        answers: dict[str, Answer] = {}
        for batch in self._batches(rows, label):
            for row, outcome in answer_rows(self.pipeline, batch, speak=speak):
                # One row that fails must not end a report of hours.
                if isinstance(outcome, str):
                    self.failures[row.id] = outcome
                    print_message(
                        f"{label}: row {row.id!r} was not answered and counts as wrong: {outcome}"
                    )
                answers[row.id] = outcome if isinstance(outcome, Answer) else Answer("")
        return answers

    def answer_typed(
        self, questions: Iterable[str], label: str, *, trained: bool
    ) -> dict[str, str]:
        """Answer typed questions by the language model alone.

        Args:
            questions: repeated ones are answered once.
            label: of the progress bar.
            trained: False takes the pretrained language model, without this run's training.

        Returns:
            question -> answer.
        """
        # By length, so that little of a batch is padding.
        distinct = sorted(set(questions), key=len)
        return {
            question: answer
            for batch in self._batches(distinct, label)
            for question, answer in zip(batch, self.pipeline.answer_typed(batch, trained=trained))
        }

    def synthesize(self, texts: Iterable[str], name: str, label: str) -> dict[str, dict[str, Any]]:
        """Synthesize texts by T2C and score the speech, each text once in a run.

        Args:
            texts: repeated ones, and those of earlier calls, are not synthesized again.
            name: of the folder of wavs.
            label: of the progress bar.

        Returns:
            text -> scores as of `score_speech`, those of earlier calls included.
        """
        # Texts repeat within a section and between sections.
        missing = sorted({text for text in texts if text not in self._synthesized}, key=len)
        answers = [
            answer
            for batch in self._batches(missing, label)
            for answer in self.tts.synthesize(batch)
        ]
        speech = {answer.text: Speech(answer.samples, answer.rate_hz) for answer in answers}
        self._synthesized |= self.score_speech(speech, name)
        return self._synthesized

    def through_codec(self, clips: Mapping[str, Audio], label: str) -> dict[str, Speech]:
        """Encode recordings to units and decode them again, which is the best T2C can reach.

        Args:
            clips: name -> path of the recording.
            label: of the progress bar.

        Returns:
            name -> samples [T] at the codec's rate.

        Raises:
            SignalError: a recording cannot be read.
        """
        codec = self.tts.codec
        speech = {}
        # The codec of T2C, so that its section compares like with like.
        for batch in self._batches(list(clips), label):
            samples = [load_audio(clips[name], codec.rate_hz) for name in batch]
            wave = pad_waveforms(samples, codec.rate_hz).to(self.device)  # [B, T]
            autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.tts.bf16)
            with torch.no_grad(), autocast:
                decoded = codec.decode(codec.encode(wave))
            for name, row, length in zip(batch, decoded.samples, decoded.lengths.tolist()):
                # A recording too short for one unit leaves no samples.
                copy = row[:length].float().cpu() if length else None
                speech[name] = Speech(copy, codec.rate_hz)
        return speech

    def recordings(self, clips: Mapping[str, Audio]) -> dict[str, Speech]:
        """Read recordings as speech to be scored: name -> path becomes name -> samples [T]."""
        return {
            name: Speech(load_audio(path, RECORDINGS_HZ), RECORDINGS_HZ)
            for name, path in clips.items()
        }

    def score_speech(
        self, speech: Mapping[str, Speech], name: str, *, keep: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Transcribe speech, score its naturalness, and write it to wavs.

        Args:
            speech: by key, samples [T] all of one rate.
            name: of the folder of wavs, and of the sample whose naturalness is scored.
            keep: write the wavs.

        Returns:
            key -> "transcript", "mos" (None where it was not scored) and "audio" (path of the wav
            below the report, None where none was written).
        """
        audible = {key: clip for key, clip in speech.items() if clip.samples is not None}
        scores: dict[str, dict[str, Any]] = {
            key: {"transcript": "", "mos": None, "audio": None} for key in speech
        }
        for key, transcript in self._transcripts(audible, f"{name}: transcribing"):
            scores[key]["transcript"] = transcript
        if keep:
            for key, clip in audible.items():
                scores[key]["audio"] = f"wavs/{name}/{file_name(key)}.wav"
                save_audio(self.folder / scores[key]["audio"], clip.require_samples(), clip.rate_hz)
        # Sorted, so that the sample does not depend on the order in which rows were answered.
        sample = self.sample(sorted(audible), self.config.mos_rows, "mos")
        if sample and self.quality is not None:
            for key in progress(sample, f"{name}: naturalness", unit="clip"):
                clip = audible[key]
                scores[key]["mos"] = self.quality.score(clip.require_samples(), clip.rate_hz)
        return scores

    def _transcripts(self, speech: Mapping[str, Speech], label: str) -> Iterator[tuple[str, str]]:
        # Similar lengths together, so that little of a batch is padding.
        by_length = sorted(speech, key=lambda key: len(speech[key].require_samples()))
        for batch in self._batches(by_length, label):
            clips = [speech[key].require_samples() for key in batch]
            yield from zip(batch, self.transcriber.transcribe(clips, speech[batch[0]].rate_hz))

    def _batches(self, items: Sequence[T], label: str) -> Iterator[list[T]]:
        with Bar(label, len(items), unit="row") as bar:
            for start in range(0, len(items), self.config.batch_size):
                batch = list(items[start : start + self.config.batch_size])
                yield batch
                bar.update(len(batch))


def question_text(row: Row) -> str:
    """Return the words of a row's question, spoken or typed; "" where the row does not say them."""
    # A spoken question has its words with the assistant's turn, a typed one is its own words.
    transcription = row.answer.transcription if row.answer is not None else ""
    return transcription or (row.question.text if row.question is not None else "")
