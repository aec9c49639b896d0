"""Questions, their answers, and the time that the parts of a pipeline take."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.codecs.base import Codec
from echox.core.errors import SignalError
from echox.data.audio import encoded_audio, save_audio

USER = "user"

# Units of an answer, and their samples [T], or None where there is no speech.
Speech = tuple[tuple[int, ...], Tensor | None]
NO_SPEECH: Speech = ((), None)


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for an answer, with clips [T] of its spoken turns."""

    turns: tuple[Turn, ...]
    # Samples [T] at the encoder's rate, one clip for each turn that has audio.
    clips: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in text and, where it was synthesized, in samples [T]."""

    # The names are those of answers.jsonl, where both have a field.
    text: str
    token_ids: tuple[int, ...] = ()
    heard: str = ""  # transcript of the last clip by the adapter's CTC
    heard_ids: tuple[int, ...] = ()  # the same, as the language model's tokens
    units: tuple[int, ...] = ()  # frame after frame with several codebooks
    codebooks: int = 1
    samples: Tensor | None = None  # [T] float32 on the CPU; None where nothing was synthesized
    rate_hz: int = 0  # of the samples; 0 without any
    timings_s: dict[str, float] = field(default_factory=dict)  # by part, for the whole batch
    batch: int = 1  # rows that shared those seconds
    is_cut: bool = False  # whether the text reached the limit of tokens before its end

    @property
    def seconds(self) -> float:
        """Duration of the speech in seconds."""
        return 0.0 if self.samples is None else len(self.samples) / self.rate_hz

    def save(self, path: str | Path) -> None:
        """Write the speech to a .wav or .flac file, which appears only when complete.

        Raises:
            SignalError: there is no speech, or the file cannot be written.
        """
        if self.samples is None:
            raise SignalError(f"the answer has no speech, so {path} was not written")
        save_audio(path, self.samples, self.rate_hz)

    def _repr_html_(self) -> str:
        """Return the answer as notebooks show it: its text and, if it has speech, a player."""
        text = f"<p>{html.escape(self.text)}</p>" if self.text else ""
        if self.samples is None:
            return text
        wav = base64.b64encode(encoded_audio(self.samples, self.rate_hz)).decode()
        return f'{text}<audio controls src="data:audio/wav;base64,{wav}"></audio>'


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of a streamed answer: the text so far, and samples [T] where it brings speech."""

    text: str
    samples: Tensor | None = None  # [T] float32 on the CPU
    first_sample: int = 0  # how many samples of the answer came before these
    heard: str = ""  # transcript of the last clip
    answer: Answer | None = None  # with the last piece: all but the samples
    error: str = ""  # in place of the answer: why there is none


class Clock:
    """Seconds spent in each part of a pipeline on one batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to those of a part."""
        began_s = self._now_s()
        yield
        # Added up, for a part may run more than once on a batch.
        self.seconds[name] = round(self.seconds.get(name, 0.0) + self._now_s() - began_s, 4)

    def _now_s(self) -> float:
        # Kernels run asynchronously: without waiting, their time would count for a later part.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spoken_questions(
    clips: Sequence[Tensor], history: Sequence[Sequence[Turn]] | None = None
) -> list[Question]:
    """Questions that are one clip each, after written turns.

    Args:
        clips: samples [T] at the encoder's rate.
        history: for each clip the turns before it, in text.
    """
    before = history or [()] * len(clips)
    # Strict: histories of another number would belong to other clips.
    return [
        Question((*turns, Turn(USER, "", True)), (clip,))
        for clip, turns in zip(clips, before, strict=True)
    ]


def answers_of(
    texts: Sequence[tuple[int, ...]],
    transcripts: Sequence[tuple[int, ...]],
    speech: Sequence[Speech],
    text_of: Callable[[Sequence[int]], str],
    codec: Codec | None,
    clock: Clock,
    ended: Sequence[bool],
) -> list[Answer]:
    """Assemble the answers of a batch.

    Args:
        texts: token ids of each row's text.
        transcripts: token ids of each row's last clip.
        speech: units and samples [T] of each row.
        text_of: turns token ids into text.
        codec: None where nothing is synthesized.
        clock: the batch's seconds.
        ended: whether each row's text ended before the limit.
    """
    codebooks, rate_hz = (1, 0) if codec is None else (codec.codebooks, codec.rate_hz)
    # Strict: with a row too few, every later answer would go to a wrong question.
    return [
        Answer(
            text=text_of(ids),
            token_ids=ids,
            heard=text_of(heard_ids),
            heard_ids=heard_ids,
            units=units,
            codebooks=codebooks,
            samples=samples,
            rate_hz=0 if samples is None else rate_hz,
            timings_s=clock.seconds,
            batch=len(texts),
            is_cut=not has_ended,
        )
        for ids, heard_ids, (units, samples), has_ended in zip(
            texts, transcripts, speech, ended, strict=True
        )
    ]


def refuse_unanswerable(question: Question) -> None:
    """Check a question before models run.

    Raises:
        SignalError: a clip is unusable, or the turns have more or fewer places for audio than there
            are clips.
    """
    for clip in question.clips:
        refuse_unusable(clip)
    places = sum(turn.has_audio for turn in question.turns)
    if places != len(question.clips):
        raise SignalError(
            f"{places} turns of a conversation have a place for audio, but {len(question.clips)} "
            "clips came with it; give one to each"
        )


def refuse_unusable(clip: Tensor) -> None:
    """Check the samples [T] of a clip.

    Raises:
        SignalError: it is empty, not one-dimensional, or holds NaN or infinity.
    """
    if clip.ndim != 1 or clip.numel() == 0:
        raise SignalError(
            "a question's samples must be [T] with T of at least 1, and have shape "
            f"{list(clip.shape)}; record it again"
        )
    # The models would pass NaN on to the answer without an error.
    if not torch.isfinite(clip).all():
        raise SignalError("a question holds NaN or infinite samples; export it again")
