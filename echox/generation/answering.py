"""Spoken questions in, spoken answers out: encoder -> adapter -> language model -> denoiser -> units -> waveform."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from echox.backbones.base import Backbone, Turn
from echox.codecs.base import Codec
from echox.data.audio import pad_waveforms
from echox.device import multiplies_bf16_fast
from echox.errors import SignalError
from echox.models.decoding import SpokenText, answer_typed, greedy_text
from echox.models.denoising import TextVoice
from echox.models.echo import EchoModel
from echox.models.frozen import halve_frozen
from echox.models.speech_adapter import AdaptedSpeech, ctc_tokens
from echox.models.speech_llm import AUDIO, PAD, Prompted, SpeechLLM
from echox.models.text_loop import text_loop
from echox.models.unit_loop import UnitLoop
from echox.models.unit_loop.text_speech import decoder_loop
from echox.signals import Features, Units

USER = "user"
MAX_TOKENS = 64  # of an answer's text, where nothing else is asked for


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for an answer."""

    turns: tuple[Turn, ...]
    clips: tuple[Tensor, ...] = ()  # samples [T] at the encoder's rate, one for each turn that has audio


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and what it sounds like."""

    text: str
    token_ids: tuple[int, ...] = ()
    heard: str = ""  # what the adapter's CTC read from the last clip
    heard_ids: tuple[int, ...] = ()  # the same, as the language model's tokens
    units: tuple[int, ...] = ()  # frame after frame with several codebooks
    codebooks: int = 1
    samples: Tensor | None = None  # [T] float32 on the CPU; None where nothing was spoken
    rate_hz: int = 0
    timings_s: dict[str, float] = field(default_factory=dict)  # seconds of each part, for the whole batch
    batch: int = 1  # rows that shared those seconds
    is_cut: bool = False  # whether the text reached the most tokens it may have before its end

    @property
    def seconds(self) -> float:
        """Length of the speech."""
        return 0.0 if self.samples is None else len(self.samples) / self.rate_hz


class Clock:
    """Seconds spent in each part of one batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_s = self._now_s()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + self._now_s() - began_s, 4)

    def _now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spoken_questions(clips: Sequence[Tensor], history: Sequence[Sequence[Turn]] | None = None) -> list[Question]:
    """Questions that are heard, each after the turns before it, which are written."""
    before = history or [()] * len(clips)
    return [Question((*turns, Turn(USER, "", True)), (clip,)) for clip, turns in zip(clips, before, strict=True)]


def answers_of(
    said: Sequence[tuple[int, ...]],
    heard: Sequence[tuple[int, ...]],
    sounds: Sequence[tuple[tuple[int, ...], Tensor | None]],
    text_of: Callable[[Sequence[int]], str],
    codec: Codec | None,
    clock: Clock,
    ended: Sequence[bool],
) -> list[Answer]:
    """The answers of a batch, from each row's tokens, what was heard as tokens, its units with their samples, and whether its text ended."""
    return [
        Answer(
            text=text_of(tokens),
            token_ids=tokens,
            heard=text_of(listened),
            heard_ids=listened,
            units=units,
            codebooks=1 if codec is None else codec.codebooks,
            samples=samples,
            rate_hz=0 if samples is None else codec.rate_hz,
            timings_s=clock.seconds,
            batch=len(said),
            is_cut=not has_ended,
        )
        for tokens, listened, (units, samples), has_ended in zip(said, heard, sounds, ended, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Speaker:
    """Turns unit-language words into sound."""

    codec: Codec
    bf16: bool
    max_words: int = 1024

    @torch.no_grad()
    def sound(self, words: Sequence[Sequence[int]], clock: Clock) -> tuple[list[tuple[int, ...]], list[Tensor | None]]:
        """Words per row -> units per row, and samples [T] per row (None where there is nothing to hear)."""
        rows = [tuple(self.codec.units_of(list(row))) for row in words]
        with clock.part("codec"), torch.autocast(clock.device.type, torch.bfloat16, enabled=self.bf16):
            wave = self.codec.decode(Units.of_rows(rows, self.codec.codebooks, clock.device))
            samples = [row[:length].float().cpu() if length else None for row, length in zip(wave.samples, wave.lengths.tolist())]
        return rows, samples


class Voice:
    """Typed text, spoken: a T2C model and its codec."""

    def __init__(
        self, model: TextVoice, backbone: Backbone, codec: Codec, *, bf16: bool | None = None, loop: UnitLoop | None = None
    ) -> None:
        """Args: loop: one of this voice, to be shared; None makes one when it is first needed."""
        self.model = model
        self.backbone = backbone
        self.codec = codec
        self.device = next(model.parameters()).device
        self.bf16 = multiplies_bf16_fast(self.device) if bf16 is None else bf16
        self.speaker = Speaker(codec, self.bf16)
        self._loop = loop

    @property
    def loop(self) -> UnitLoop:
        """Where all texts are spoken."""
        if self._loop is None:
            self._loop = _loop_of(self.model, self.bf16)
        return self._loop

    @torch.no_grad()
    def say(self, texts: Sequence[str]) -> list[Answer]:
        """Speak texts in one batch; an empty text gives an answer without samples."""
        if not texts:
            return []
        clock = Clock(self.device)
        ids = [tuple(self.backbone.tokenize(text)) for text in texts]
        with clock.part("units"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            padded = _padded(ids, 0).to(self.device)
            words = self.model.speak(padded, torch.tensor([len(row) for row in ids], device=self.device), self.speaker.max_words, self.loop)
        units, samples = self.speaker.sound(words, clock)
        return [
            Answer(
                text,
                token_ids=tokens,
                units=row,
                codebooks=self.codec.codebooks,
                samples=sound,
                rate_hz=self.codec.rate_hz,
                timings_s=clock.seconds,
                batch=len(texts),
            )
            for text, tokens, row, sound in zip(texts, ids, units, samples)
        ]


class Answerer:
    """Hears questions and answers them, aloud where it has a voice."""

    def __init__(self, model: EchoModel | SpeechLLM, codec: Codec | None, *, max_tokens: int = MAX_TOKENS, bf16: bool | None = None) -> None:
        self.echo = model if isinstance(model, EchoModel) else None
        self.speech_llm = model.speech_llm if isinstance(model, EchoModel) else model
        self.backbone = self.speech_llm.backbone
        self.codec = codec
        self.rate_hz = self.speech_llm.encoder.rate_hz
        self.max_tokens = max_tokens
        self.device = next(model.parameters()).device
        self.bf16 = multiplies_bf16_fast(self.device) if bf16 is None else bf16
        if self.bf16:
            halve_frozen(self.backbone)  # as in training

    @property
    def speaks(self) -> bool:
        """Whether answers are heard, or only read."""
        return self.echo is not None

    @cached_property
    def loop(self) -> UnitLoop:
        """Where all answers are spoken, whichever batch they are of."""
        return _loop_of(self.echo.voice, self.bf16)

    @cached_property
    def text_loop(self) -> UnitLoop | None:
        """Where all answers are thought, if it may be done in a loop."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return text_loop(self.backbone)

    def answer(self, clips: Sequence[Tensor], history: Sequence[Sequence[Turn]] | None = None) -> list[Answer]:
        """Answer spoken questions in one batch; rows never influence each other.

        Args:
            clips: samples [T] in [-1, 1] at `rate_hz`, of any length.
            history: for each clip the turns before it, in text.
        Raises:
            SignalError: a clip is empty, not one-dimensional, or holds NaN or infinity.
        """
        return self.reply(spoken_questions(clips, history))

    @torch.no_grad()
    def reply(self, questions: Sequence[Question], *, speak: bool = True) -> list[Answer]:
        """Answer conversations in one batch, their user turns spoken or typed.

        Args:
            speak: False reads the answers only, which is much faster.
        Raises:
            SignalError: a clip is unusable, a conversation has more or fewer places for audio than clips, or is too long for the model.
        """
        if not questions:
            return []
        for question in questions:
            refuse_unanswerable(question)
        clock = Clock(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            speech = self._listen([clip for question in questions for clip in question.clips], clock)
            said = self._think(questions, speech, clock)
            words = self._voice(said, clock) if speak and self.echo is not None else None
        if words is None:
            sounds = [((), None)] * len(questions)
        else:
            sounds = list(zip(*Speaker(self.codec, self.bf16).sound(words, clock)))
        ids = [tuple(row[:length]) for row, length in zip(said.ids.tolist(), said.lengths.tolist())]
        return answers_of(ids, self._heard(questions, speech), sounds, self._text_of, self.codec, clock, said.ended.tolist())

    def _text_of(self, ids: Sequence[int]) -> str:
        return self.backbone.detokenize(list(ids))

    def _listen(self, clips: Sequence[Tensor], clock: Clock) -> AdaptedSpeech:
        """Clips of all rows -> adapted speech, on the device."""
        with clock.part("encoder"):
            features = self.speech_llm.hear(pad_waveforms(clips, self.rate_hz).to(self.device)) if clips else self._silence()
        with clock.part("adapter"):
            return self.speech_llm.adapter(features) if clips else _nothing_heard(features, self.backbone.hidden_size)

    def _silence(self) -> Features:
        encoder = self.speech_llm.encoder
        return Features(torch.zeros(0, 0, encoder.dim, device=self.device), torch.zeros(0, dtype=torch.int64, device=self.device), encoder.frame_rate_hz)

    def _think(self, questions: Sequence[Question], speech: AdaptedSpeech, clock: Clock) -> SpokenText:
        with clock.part("text"):
            prompted = self._prompt(questions, speech)
            return greedy_text(self.backbone, prompted.embeddings, prompted.mask, self.max_tokens, loop=self.text_loop)

    def _prompt(self, questions: Sequence[Question], speech: AdaptedSpeech) -> Prompted:
        ids = [_with_audio(self.backbone.prompt(list(question.turns))) for question in questions]
        clip_rows = torch.tensor([row for row, question in enumerate(questions) for _ in question.clips], dtype=torch.int64, device=self.device)
        return self.speech_llm.prompt(_padded(ids, PAD).to(self.device), speech, clip_rows, self.max_tokens)

    def prompted(self, questions: Sequence[Question]) -> Prompted:
        """Conversations with their clips heard, up to where the answer begins."""
        return self._prompt(questions, self._listen([clip for question in questions for clip in question.clips], Clock(self.device)))

    @torch.no_grad()
    def think(self, questions: Sequence[Question]) -> SpokenText:
        """The answers in tokens, with the hidden states that predicted them; rows never influence each other.

        Raises:
            SignalError: as `reply`.
        """
        for question in questions:
            refuse_unanswerable(question)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            prompted = self.prompted(questions)
            return greedy_text(self.backbone, prompted.embeddings, prompted.mask, self.max_tokens, loop=self.text_loop)

    def _voice(self, said: SpokenText, clock: Clock) -> list[list[int]]:
        with clock.part("units"):
            return self.echo.speak(said.hidden, said.lengths, loop=self.loop)

    def _heard(self, questions: Sequence[Question], speech: AdaptedSpeech) -> list[tuple[int, ...]]:
        """Per row, what CTC read from its last clip, as the language model's tokens."""
        table = self.speech_llm.adapter.token_ids.tolist()
        clips = iter(ctc_tokens(speech.ctc_logits, speech.frame_lengths))
        rows = [[next(clips) for _ in question.clips] for question in questions]
        return [tuple(table[index] for index in row[-1]) if row else () for row in rows]

    def say(self, texts: Sequence[str]) -> list[Answer]:
        """Speak typed texts with Echo's own unit decoder, the language model left out.

        Raises:
            SignalError: the checkpoint is of S2T and has no voice.
        """
        if self.echo is None:
            raise SignalError("this checkpoint is of stage s2t and has no voice; load one of stage echo or t2c")
        return Voice(self.echo.voice, self.backbone, self.codec, bf16=self.bf16, loop=self.loop).say(texts)

    def answer_typed(self, questions: Sequence[str], *, trained: bool = True) -> list[str]:
        """The same language model's answers to typed questions, in one batch.

        Args:
            trained: False asks the model as it came, without what S2T and Echo taught it.
        """
        if trained:
            return self._typed(questions, self.text_loop)
        with self.backbone.as_pretrained():
            return self._typed(questions, None)

    def _typed(self, questions: Sequence[str], loop: UnitLoop | None) -> list[str]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return answer_typed(self.backbone, list(questions), self.max_tokens, loop=loop) if questions else []


def _loop_of(voice: TextVoice, bf16: bool) -> UnitLoop:
    """A voice's decode loop, in bfloat16 where answers are."""
    with torch.autocast(next(voice.parameters()).device.type, torch.bfloat16, enabled=bf16):
        return decoder_loop(voice.decoder)


def refuse_unanswerable(question: Question) -> None:
    """
    Raises:
        SignalError: a clip is unusable, or the turns have more or fewer places for audio than there are clips.
    """
    for clip in question.clips:
        refuse_unusable(clip)
    places = sum(turn.has_audio for turn in question.turns)
    if places != len(question.clips):
        raise SignalError(f"{places} turns of a conversation have a place for audio, but {len(question.clips)} clips came with it; give one to each")


def refuse_unusable(clip: Tensor) -> None:
    """
    Raises:
        SignalError: a clip is empty, not one-dimensional, or holds NaN or infinity.
    """
    if clip.ndim != 1 or clip.numel() == 0:
        raise SignalError(f"a question's samples must be [T] with T of at least 1, and have shape {list(clip.shape)}; record it again")
    if not torch.isfinite(clip).all():
        raise SignalError("a question holds NaN or infinite samples; export it again")


def _nothing_heard(features: Features, width: int) -> AdaptedSpeech:
    """The adapter's result for no clip at all."""
    none = features.lengths
    return AdaptedSpeech(features.values.new_zeros(0, 1, 1), none, features.values.new_zeros(0, 1, width), none)


def _with_audio(pieces: Sequence[Sequence[int]]) -> list[int]:
    """A prompt's pieces joined by AUDIO placeholders."""
    return [token for number, piece in enumerate(pieces) for token in ([AUDIO] if number else []) + list(piece)]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Ragged ints -> [B, max] int64, at least one column."""
    width = max(1, max(map(len, rows)))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)
