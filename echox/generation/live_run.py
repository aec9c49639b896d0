"""One question answered live: text as it is thought, speech as its segments are spoken, into a growing file or a pipe."""

from __future__ import annotations

import sys
import time
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.data.audio import load_audio
from echox.errors import SignalError
from echox.generation.answering import USER, Answerer, Question
from echox.generation.published import Piece, PublishedAnswerer
from echox.generation.streaming import stream
from echox.models.segmenting import SegmentsConfig

PIPE = "-"


def refuse_output(output: str) -> None:
    """
    Raises:
        SignalError: speech cannot be written there while it comes.
    """
    if output != PIPE and Path(output).suffix != ".wav":
        raise SignalError(f"a stream is written as .wav, or as raw samples to {PIPE}, but output is {output}; change it")


def answer_live(answerer: Answerer | PublishedAnswerer, question: str, output: str, segments: SegmentsConfig | None) -> None:
    """Answer one audio file, print the text as it comes and how late the speech was.

    Args:
        output: a .wav file, whole after every segment, or "-": 16-bit little-endian mono samples on stdout, and the text on stderr.
        segments: where to cut; None cuts as the checkpoint was trained.
    Raises:
        SignalError: the clip is unusable, the checkpoint has no voice, or nothing was said.
    """
    if not answerer.speaks:
        raise SignalError("this checkpoint has no voice, so there is no speech to stream; give one of stage echo, or an EchoX folder, or leave stream out")
    asked = Question((Turn(USER, "", True),), (load_audio(question, answerer.rate_hz),))
    rate_hz, piped = answerer.codec.rate_hz, output == PIPE
    text = sys.stderr if piped else sys.stdout
    if piped:
        print(f"raw samples: 16-bit little-endian, mono, {rate_hz} Hz; such as | aplay -f S16_LE -r {rate_hz}", file=sys.stderr)
    sink: Sink = RawPipe(sys.stdout.buffer) if piped else GrowingWav(Path(output), rate_hz)
    with sink:
        report = play(pieces_of(answerer, asked, segments), sink.write, text, rate_hz)
    if not report.segments:
        raise SignalError(f"the model has nothing to say to {question}, so {output} was not written")
    print(f"spoken:   {report.sentence()}" + ("" if piped else f": {output}"), file=text)


def pieces_of(answerer: Answerer | PublishedAnswerer, question: Question, segments: SegmentsConfig | None) -> Iterator[Piece]:
    """The stream of either kind of answerer."""
    if isinstance(answerer, Answerer):
        return stream(answerer, question, segments)
    if segments is not None:
        answerer.rule = segments.rule
    return answerer.stream(question)


@dataclass(slots=True)
class Report:
    """When what was there."""

    began_s: float = field(default_factory=time.perf_counter)
    first_text_s: float = 0.0  # after the question was given
    first_sound_s: float = 0.0
    tokens_before_sound: int = 0
    tokens: int = 0
    segments: int = 0
    speech_s: float = 0.0
    took_s: float = 0.0

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.speech_s:.1f} s of speech in {self.segments} segments, in {self.took_s:.2f} s; first text after {self.first_text_s:.2f} s, "
            f"first speech after {self.first_sound_s:.2f} s and {self.tokens_before_sound} of {self.tokens} tokens"
        )


def play(pieces: Iterable[Piece], write: Callable[[Tensor], None], text: TextIO, rate_hz: int) -> Report:
    """Hand each piece on as it comes: samples to `write`, what is new of the text to `text`."""
    report, shown = Report(), Shown(text)
    for piece in pieces:
        shown.show(piece.text)
        now_s = time.perf_counter() - report.began_s
        if piece.samples is None:
            report.tokens += 1
            report.first_text_s = report.first_text_s or now_s
            continue
        write(piece.samples)
        if not report.segments:
            report.first_sound_s, report.tokens_before_sound = time.perf_counter() - report.began_s, report.tokens
        report.segments += 1
        report.speech_s += len(piece.samples) / rate_hz
    report.took_s = time.perf_counter() - report.began_s
    shown.close()
    return report


class Shown:
    """An answer on a terminal, each character once."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.text, self.latest = out, "", ""
        print("answered: ", end="", file=out, flush=True)

    def show(self, text: str) -> None:
        """The text so far; a character of which not all bytes are there yet waits."""
        self.latest = text
        settled = text.rstrip("\ufffd")
        if settled.startswith(self.text):
            print(settled[len(self.text) :], end="", file=self.out, flush=True)
            self.text = settled

    def close(self) -> None:
        """End the line; a text that was corrected on the way is given again, whole."""
        print(self.latest[len(self.text) :] if self.latest.startswith(self.text) else f"\nanswered: {self.latest}", file=self.out, flush=True)


class Sink(ABC):
    """Where samples go as they come."""

    @abstractmethod
    def write(self, samples: Tensor) -> None:
        """Hand on samples [T] in [-1, 1]."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawPipe(Sink):
    """Samples as bytes for another program."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out

    def write(self, samples: Tensor) -> None:
        self.out.write(pcm(samples))
        self.out.flush()

    def close(self) -> None:
        self.out.flush()


class GrowingWav(Sink):
    """A file that appears with the first segment, and that any player can open after each."""

    def __init__(self, path: Path, rate_hz: int) -> None:
        self.path, self.rate_hz = path, rate_hz
        self.file: BinaryIO | None = None

    def write(self, samples: Tensor) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("wb")
            self.wave = wave.open(self.file, "wb")
            self.wave.setnchannels(1)
            self.wave.setsampwidth(2)
            self.wave.setframerate(self.rate_hz)
        # This also puts the length so far into the header.
        self.wave.writeframes(pcm(samples))
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.wave.close()
            self.file.close()


def pcm(samples: Tensor) -> bytes:
    """Samples [T] in [-1, 1] as 16-bit little-endian bytes; what is beyond is cut, for what was heard cannot be turned down any more."""
    return (samples.clamp(-1.0, 1.0) * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes()
