"""The audio of one user, cut into questions by hand or by voice activity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.inference.audio_input import StreamResampler
from echox.inference.voice_activity import RATE_HZ as ACTIVITY_HZ
from echox.inference.voice_activity import Activity, VoiceActivity, VoiceActivityConfig

LONGEST_S = 60.0  # of one question
# Audio that is kept behind the detected end of speech: the last sounds are quiet.
TAIL_S = 0.1


class QuestionBuffer:
    """Keeps the audio of the question that is being asked, and no more."""

    def __init__(self, rate_hz: int, voice_activity: VoiceActivityConfig | None) -> None:
        """Begin a stream.

        Args:
            rate_hz: sampling rate of the questions.
            voice_activity: finds where they begin and end; None takes all until `take`.

        Raises:
            PackageError: voice activity needs the extra `serve`.
        """
        self.rate_hz = rate_hz
        self._detector = None if voice_activity is None else VoiceActivity(voice_activity)
        self._resamplers: tuple[StreamResampler, StreamResampler] | None = None
        self._kept = torch.zeros(0)  # at `rate_hz`
        self._dropped = 0  # samples at `rate_hz` before those
        self._begin_s: float | None = None  # of the question, where speech was detected
        self._end_s: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of audio that the question has so far."""
        return len(self._kept) / self.rate_hz

    def push(self, samples: Tensor, source_hz: int) -> Iterator[Activity]:
        """Take the next samples [T] float32.

        Args:
            samples: in [-1, 1].
            source_hz: samples per second; the same until a question ends.

        Returns:
            borders of speech that are known now, to be read to the end; `take` between two of them
            returns the question that ended, however many lie in the samples.

        Raises:
            SignalError: the rate changed within a question, or the question is too long.
        """
        resampler, for_detector = self._resampler(source_hz)
        self._kept = torch.cat([self._kept, resampler.push(samples)])
        if self._detector is None:
            self._refuse_too_long()
            return iter(())
        return self._borders(self._detector.push(for_detector.push(samples)), self._detector.config)

    def _borders(
        self, found: Iterable[Activity], config: VoiceActivityConfig
    ) -> Iterator[Activity]:
        for activity in found:
            at_s = activity.sample / ACTIVITY_HZ
            if activity.begins:
                self._begin_s, self._end_s = at_s, None
            else:
                self._end_s = at_s
            yield activity
        if self._begin_s is None:
            # Nobody speaks: what is kept may still turn out to be a beginning.
            self._drop(self._time_s - 1.0 - config.padding_ms / 1000)
        else:
            self._refuse_too_long()

    def _resampler(self, source_hz: int) -> tuple[StreamResampler, StreamResampler]:
        if self._resamplers is None or (
            source_hz != self._resamplers[0].source_hz and not len(self._kept)
        ):
            self._resamplers = (
                StreamResampler(source_hz, self.rate_hz),
                StreamResampler(source_hz, ACTIVITY_HZ),
            )
        if source_hz != self._resamplers[0].source_hz:
            raise SignalError(
                f"audio came at {source_hz} Hz within a question that began at "
                f"{self._resamplers[0].source_hz} Hz; end the question first"
            )
        return self._resamplers

    @property
    def _time_s(self) -> float:
        """Seconds of the stream so far."""
        return (self._dropped + len(self._kept)) / self.rate_hz

    def _refuse_too_long(self) -> None:
        if self.seconds > LONGEST_S:
            self.clear()
            raise SignalError(
                f"a question is longer than {LONGEST_S:g} s, so its audio was dropped; "
                "end it sooner"
            )

    def take(self) -> Tensor:
        """Return the question [T] at `rate_hz` and begin the next one; [0] without audio."""
        if self._detector is None and self._resamplers is not None:
            # Nothing of this question belongs to the next one.
            self._kept = torch.cat([self._kept, self._resamplers[0].finish()])
        begin_s = self._dropped / self.rate_hz if self._begin_s is None else self._begin_s
        end_s = self._time_s if self._end_s is None else self._end_s + TAIL_S
        first = max(0, round(begin_s * self.rate_hz) - self._dropped)
        end = min(len(self._kept), round(end_s * self.rate_hz) - self._dropped)
        clip = self._kept[first:end].clone()
        self._drop(self._time_s if self._end_s is None else end_s)
        self._begin_s = self._end_s = None
        return clip

    def clear(self) -> None:
        """Drop the audio of the question that is being asked."""
        self._drop(self._time_s)
        self._begin_s = self._end_s = None

    def _drop(self, until_s: float) -> None:
        """Forget the audio before a time of the stream."""
        count = min(len(self._kept), max(0, round(until_s * self.rate_hz) - self._dropped))
        self._kept, self._dropped = self._kept[count:], self._dropped + count
