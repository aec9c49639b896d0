"""One question answered live: text on the terminal, speech into a growing file or a pipe."""

from __future__ import annotations

import sys
import time
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.core.errors import DiskError, SignalError
from echox.core.files import make_folder, translate_disk_faults
from echox.data.audio import load_audio
from echox.inference.answers import USER, Answer, Piece, Question, refuse_unheard
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.streaming import stream

PIPE = "-"  # the output that streams to stdout


def refuse_output(output: str) -> None:
    """Check that speech can be written to `output` while it comes.

    Raises:
        SignalError: it is neither a .wav file nor the pipe.
    """
    if output != PIPE and Path(output).suffix != ".wav":
        raise SignalError(
            f"a stream is written as .wav, or as raw samples to {PIPE}, but output is {output}; "
            "change it"
        )


def answer_live(
    pipeline: SpeechToSpeechPipeline,
    question: str,
    output: str,
) -> None:
    """Answer one audio file, print the text as it comes and how late the speech was.

    Args:
        pipeline: of a checkpoint that synthesizes speech.
        question: the audio file.
        output: a .wav file, complete after every chunk, or "-": 16-bit little-endian mono samples
            on stdout, and the text on stderr.

    Raises:
        SignalError: the clip is unusable, the checkpoint synthesizes nothing, or the answer is
            empty.
    """
    if not pipeline.speaks:
        raise SignalError(
            "this checkpoint has no voice, so there is no speech to stream; give one of stage "
            "echo, or an EchoX folder, or leave stream out"
        )
    clip = load_audio(question, pipeline.rate_hz)
    rate_hz, is_pipe = pipeline.require_codec().rate_hz, output == PIPE
    # The samples own stdout, so all text goes to stderr.
    text = sys.stderr if is_pipe else sys.stdout
    pieces = stream(pipeline, Question((Turn(USER, "", True),), (clip,)))
    # Closed on errors too, so that what was written until then can be played.
    with _open_sink(output, rate_hz) as sink:
        timings = play(pieces, sink.write, text, rate_hz)
    refuse_unheard(timings.answer, question, pipeline.answer_silence)
    if not timings.chunks:
        raise SignalError(
            f"the model has nothing to say to {question}, so {output} was not written"
        )
    print(f"spoken:   {timings.sentence()}" + ("" if is_pipe else f": {output}"), file=text)


def _open_sink(output: str, rate_hz: int) -> Sink:
    if output != PIPE:
        return GrowingWav(Path(output), rate_hz)
    # Raw samples do not tell their format.
    print(
        f"raw samples: 16-bit little-endian, mono, {rate_hz} Hz; such as | aplay -f S16_LE "
        f"-r {rate_hz}",
        file=sys.stderr,
    )
    return RawPipe(sys.stdout.buffer)


@dataclass(slots=True)
class StreamTimings:
    """When a stream gave its text and its speech."""

    began_s: float = field(default_factory=time.perf_counter)
    first_text_s: float = 0.0  # seconds after the question was given
    first_speech_s: float = 0.0
    tokens_before_speech: int = 0
    tokens: int = 0
    chunks: int = 0
    speech_s: float = 0.0  # seconds of audio
    took_s: float = 0.0  # seconds of the whole stream
    answer: Answer | None = None  # all but the samples

    def sentence(self) -> str:
        """The timings as a sentence."""
        cut = None if self.answer is None else self.answer.cut
        return (
            f"{self.speech_s:.1f} s of speech in {self.chunks} chunks, in {self.took_s:.2f} s; "
            f"first text after {self.first_text_s:.2f} s, first speech after "
            f"{self.first_speech_s:.2f} s and {self.tokens_before_speech} of {self.tokens} tokens"
            + (f"; cut at its limit of length: {cut}" if cut else "")
        )


def play(
    pieces: Iterable[Piece], write: Callable[[Tensor], None], text: TextIO, rate_hz: int
) -> StreamTimings:
    """Pass each piece on as it comes.

    Args:
        pieces: of `stream`.
        write: takes samples [T].
        text: where new text is printed.
        rate_hz: of the samples.

    Returns:
        when the pieces came.
    """
    timings, printer = StreamTimings(), TextPrinter(text)
    for piece in pieces:
        timings.answer = piece.answer
        if piece.answer is not None and not piece.text:
            continue  # nothing was heard, or nothing is said
        printer.show(piece.text)
        if piece.answer is not None:
            continue
        now_s = time.perf_counter() - timings.began_s
        if piece.samples is None:
            timings.tokens += 1
            # Of the first piece only: 0 is "not yet".
            timings.first_text_s = timings.first_text_s or now_s
            continue
        write(piece.samples)
        if not timings.chunks:
            # After `write`: speech counts once it is handed on.
            timings.first_speech_s = time.perf_counter() - timings.began_s
            timings.tokens_before_speech = timings.tokens
        timings.chunks += 1
        timings.speech_s += len(piece.samples) / rate_hz
    timings.took_s = time.perf_counter() - timings.began_s
    if printer.has_begun:
        printer.close()
    return timings


class TextPrinter:
    """Prints a growing text, each character once."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.printed, self.latest = out, "", ""
        self.has_begun = False

    def show(self, text: str) -> None:
        """Print what is new in the text so far.

        A character of which some bytes are missing is printed once it is complete.
        """
        # With the first text, for a question that is refused has no answer.
        if not self.has_begun:
            print("answered: ", end="", file=self.out, flush=True)
        self.has_begun = True
        self.latest = text
        # Tokens may end within a character of several bytes, which decodes to U+FFFD.
        complete = text.rstrip("\ufffd")
        if complete.startswith(self.printed):
            print(complete[len(self.printed) :], end="", file=self.out, flush=True)
            self.printed = complete

    def close(self) -> None:
        """End the line; a text whose beginning has changed is printed again as a whole."""
        if self.latest.startswith(self.printed):
            rest = self.latest[len(self.printed) :]
        else:
            # More tokens may change how earlier ones are spelled, and a pipe takes nothing back.
            rest = f"\nanswered: {self.latest}"
        print(rest, file=self.out, flush=True)


class Sink(ABC):
    """Takes the samples of a stream."""

    @abstractmethod
    def write(self, samples: Tensor) -> None:
        """Take samples [T] in [-1, 1]."""

    @abstractmethod
    def close(self) -> None:
        """End the stream."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawPipe(Sink):
    """Raw samples for another program."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out

    def write(self, samples: Tensor) -> None:
        """Write samples [T] as 16-bit little-endian bytes, at once."""
        self.out.write(pcm(samples))
        # Without this, speech would wait until a buffer is full.
        self.out.flush()

    def close(self) -> None:
        """Flush; the pipe stays open, for it is the process's stdout."""
        self.out.flush()


class GrowingWav(Sink):
    """A .wav file that appears with the first chunk and is complete after each."""

    def __init__(self, path: Path, rate_hz: int) -> None:
        self.path, self.rate_hz = path, rate_hz
        self.file: BinaryIO | None = None

    def write(self, samples: Tensor) -> None:
        """Append samples [T] and correct the header's length.

        Raises:
            DiskError: the disk is full or cannot be written.
        """
        content = pcm(samples)
        try:
            with translate_disk_faults(self.path, len(content)):
                file = self._open() if self.file is None else self.file
                # `writeframes`, not `writeframesraw`: it writes the length so far into the header.
                self.wave.writeframes(content)
                file.flush()
        except DiskError:
            # Closing writes too, and its error would stand for this one.
            with suppress(OSError):
                self.close()
            self.file = None
            raise

    def _open(self) -> BinaryIO:
        make_folder(self.path.parent)
        # Opened here, because `wave` gives no access to its file, which is flushed after writes.
        file = self.file = self.path.open("wb")
        self.wave = wave.open(self.file, "wb")
        self.wave.setnchannels(1)
        self.wave.setsampwidth(2)
        self.wave.setframerate(self.rate_hz)
        return file

    def close(self) -> None:
        """Close the file, if there was any chunk."""
        if self.file is not None:
            with translate_disk_faults(self.path), self.file:
                self.wave.close()


def pcm(samples: Tensor) -> bytes:
    """Samples [T] in [-1, 1] as 16-bit little-endian bytes.

    Larger samples are clipped: earlier chunks are played already, so a stream cannot be scaled.
    """
    # By 32767 on both sides: 32768 would overflow at 1.0.
    scaled = (samples.clamp(-1.0, 1.0) * 32767).round()
    return scaled.to(torch.int16).numpy().astype("<i2").tobytes()
