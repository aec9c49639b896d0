"""Base class of the pipelines that answer spoken questions, whatever checkpoint they load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.codecs.base import Codec
from echox.core.errors import SignalError
from echox.data.audio import load_audio, resampled
from echox.inference.answers import Answer, Question, spoken_questions


def samples_of(clip: str | Path | Tensor, rate_hz: int | None, target_hz: int) -> Tensor:
    """Return the samples [T] float32 of a clip at another sampling rate, on the CPU.

    Args:
        clip: an audio file of any rate and number of channels, or samples [T] in [-1, 1].
        rate_hz: sampling rate of samples; a file says its own.
        target_hz: sampling rate to return.

    Raises:
        SignalError: the file or the samples cannot be used, or samples come without a rate.
    """
    if isinstance(clip, (str, Path)):
        return load_audio(clip, target_hz)
    # No rate is assumed: samples of another one would give a wrong answer without any error.
    if rate_hz is None:
        raise SignalError("samples come without their sampling rate; set rate_hz")
    return resampled(torch.as_tensor(clip).float().cpu(), rate_hz, target_hz)


NO_VOICE = "this checkpoint is of stage s2t and has no voice; load one of stage echo or t2c"


class Pipeline(ABC):
    """Answers spoken questions in text and, where its checkpoint can, aloud.

    Attributes:
        rate_hz: sampling rate of the clips that `answer` takes.
        max_tokens: text tokens of an answer at most.
        device: where the models are.
        codec: of the answers' units; None where the checkpoint answers in text alone.
    """

    rate_hz: int
    max_tokens: int
    device: torch.device
    codec: Codec | None

    @property
    @abstractmethod
    def speaks(self) -> bool:
        """Whether answers are synthesized, or text alone."""

    def require_codec(self) -> Codec:
        """Return the codec of the answers' units.

        Raises:
            SignalError: the checkpoint answers in text alone.
        """
        if self.codec is None:
            raise SignalError(NO_VOICE)
        return self.codec

    @abstractmethod
    def reply(self, questions: Sequence[Question], *, speak: bool = True) -> list[Answer]:
        """Answer conversations in one batch, their user turns spoken or typed.

        Args:
            questions: the conversations, with clips [T] at `rate_hz`.
            speak: False generates text only, which is much faster.

        Raises:
            SignalError: a clip is unusable, a conversation has more or fewer places for audio than
                clips, or is too long for the model.
        """

    def answer(
        self, clips: Sequence[Tensor], history: Sequence[Sequence[Turn]] | None = None
    ) -> list[Answer]:
        """Answer spoken questions in one batch; rows never influence each other.

        Args:
            clips: samples [T] in [-1, 1] at `rate_hz`, of any length.
            history: for each clip the turns before it, in text.

        Raises:
            SignalError: a clip is empty, not one-dimensional, or holds NaN or infinity.
        """
        # Each clip becomes the last user turn of its own conversation.
        return self.reply(spoken_questions(clips, history))

    def __call__(
        self,
        question: str | Path | Tensor,
        *,
        rate_hz: int | None = None,
        history: Sequence[Turn] = (),
        speak: bool = True,
    ) -> Answer:
        """Answer one spoken question.

        Args:
            question: an audio file of any rate and number of channels, or samples [T] in [-1, 1].
            rate_hz: sampling rate of samples; a file says its own.
            history: the turns before the question, in text.
            speak: False generates text only.

        Raises:
            SignalError: the file or the samples cannot be used, or samples come without a rate.
        """
        clip = samples_of(question, rate_hz, self.rate_hz)
        return self.reply(spoken_questions([clip], [history]), speak=speak)[0]
