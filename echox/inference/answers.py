"""Questions, their answers, and the time that the parts of a pipeline take."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.codecs.base import Codec
from echox.core.errors import SignalError
from echox.data.audio import encoded_audio, save_audio

USER = "user"

# What reached its limit of length before its end, as answers.jsonl has it.
CUT_TEXT, CUT_SPEECH = "text", "speech"


class Speech(NamedTuple):
    """The speech of an answer."""

    units: tuple[int, ...] = ()
    samples: Tensor | None = None  # [T]; None where there is no speech
    is_cut: bool = False  # whether the unit decoder reached its limit before the end


NO_SPEECH = Speech()


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
    # By part, for the whole batch; of a streamed answer those of `Milestones`, for it alone.
    timings_s: dict[str, float] = field(default_factory=dict)
    batch: int = 1  # rows that shared those seconds
    # "text" or "speech", whichever reached its limit of length before its end, or both: "text,
    # speech".
    cut: str | None = None
    unheard: str | None = None  # why nothing was heard; None where something was, or was typed

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
    cause: Exception | None = None  # of the error, where something was raised


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


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard in a conversation's last clip."""

    ids: tuple[int, ...] = ()  # as the language model's tokens, whatever was heard
    text: str = ""
    unheard: str | None = None  # why nothing was heard in the turn to be answered, or None


def transcript_of(
    question: Question,
    windows: Sequence[tuple[int, ...]],
    text_of: Callable[[Sequence[int]], str],
    no_speech: str | None,
) -> Transcript:
    """Assemble the transcript of a conversation's last clip.

    Args:
        question: the conversation.
        windows: token ids of each window of the clip.
        text_of: turns token ids into text.
        no_speech: why the clip cannot be speech, so that what is recognised was not said; or None.
    """
    ids = tuple(token for window in windows for token in window)
    text = "" if no_speech else _joined_text([text_of(window) for window in windows])
    if any(character.isalnum() for character in text):
        return Transcript(ids, text)
    reason = no_speech or "no word was recognised in the clip"
    return Transcript(ids, "", _unless_written(question, reason))


def _joined_text(windows: Sequence[str]) -> str:
    if len(windows) == 1:
        return windows[0]
    # A window begins as a clip does, without the space that parts it from the words before.
    return " ".join(text.strip() for text in windows if text.strip())


def _unless_written(question: Question, reason: str) -> str | None:
    """The reason, where the turn that is to be answered consists of the clip alone."""
    turn = question.turns[-1]
    is_clip = turn.has_audio and not turn.text.strip()
    return f"nothing was heard, for {reason}" if is_clip else None


def answers_of(
    texts: Sequence[tuple[int, ...]],
    transcripts: Sequence[Transcript],
    speech: Sequence[Speech],
    text_of: Callable[[Sequence[int]], str],
    codec: Codec | None,
    clock: Clock,
    ended: Sequence[bool],
) -> list[Answer]:
    """Assemble the answers of a batch.

    Args:
        texts: token ids of each row's text.
        transcripts: of each row's last clip.
        speech: of each row.
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
            heard=transcript.text,
            heard_ids=transcript.ids,
            units=spoken.units,
            codebooks=codebooks,
            samples=spoken.samples,
            rate_hz=0 if spoken.samples is None else rate_hz,
            timings_s=clock.seconds,
            batch=len(texts),
            cut=cut_of(not has_ended, spoken.is_cut),
            unheard=transcript.unheard,
        )
        for ids, transcript, spoken, has_ended in zip(
            texts, transcripts, speech, ended, strict=True
        )
    ]


def cut_of(text: bool, speech: bool) -> str | None:
    """Return what was cut, as an answer's `cut` has it."""
    cut = [name for name, is_cut in ((CUT_TEXT, text), (CUT_SPEECH, speech)) if is_cut]
    return ", ".join(cut) or None


def refuse_unheard(answer: Answer | None, name: str, answer_silence: bool) -> None:
    """Check that something was heard in a question that is to be answered.

    Args:
        answer: to the question; None is not checked.
        name: of the question, such as its file.
        answer_silence: whether an answer was asked for all the same.

    Raises:
        SignalError: nothing was heard.
    """
    if answer is not None and answer.unheard is not None and not answer_silence:
        raise SignalError(
            f"{name} is not answered, {answer.unheard}; record it again, or set answer_silence=true"
        )


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
