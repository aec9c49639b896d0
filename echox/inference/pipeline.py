"""Spoken questions in, spoken answers out: encoder, adapter, LLM, denoiser, unit decoder, codec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.base import Codec
from echox.core.device import multiplies_bf16_fast
from echox.core.errors import SignalError
from echox.core.signals import Spans, padded
from echox.data.silence import why_not_speech, without_silent_windows
from echox.decoding import DecodeEngine
from echox.decoding.greedy_text import GeneratedText, answer_typed, greedy_text
from echox.decoding.text import BackboneSteps, text_decode_engine, text_request
from echox.inference.answers import (
    NO_SPEECH,
    Answer,
    Clock,
    Question,
    Speech,
    Transcript,
    answers_of,
    refuse_unanswerable,
    transcript_of,
)
from echox.inference.base import NO_VOICE, Pipeline
from echox.inference.clip_cache import ClipCache, EncodedClip
from echox.inference.cutting import (
    Cutting,
    PauseCutting,
    PauseRule,
    StateCutting,
    segments_of,
)
from echox.inference.speech_stream import SpeechParts
from echox.inference.tts import TTSPipeline, UnitSynthesizer
from echox.models.echo import EchoBase, EchoModel
from echox.models.frozen import halve_frozen
from echox.models.segmenting import Cutter, SegmentsConfig, spans_of
from echox.models.speech_llm import AUDIO, PAD, Prompted, SpeechLLM

MAX_TOKENS = 64  # of an answer's text, where nothing else is asked for


@dataclass(frozen=True, slots=True)
class EncodedQuestions:
    """Conversations as the language model reads them, and what was heard."""

    prompted: Prompted
    # Of each one where its prompt may be parted: before each clip, so that what was said before a
    # question, and the system's message, are parts of their own.
    parts: list[tuple[int, ...]]
    transcripts: list[Transcript]  # of each one's last clip


@dataclass(frozen=True, slots=True)
class _ClipVectors:
    """Vectors of A clips, as prompts take them."""

    vectors: Tensor  # [A, L, H], right-padded
    lengths: Tensor  # [A]

    @classmethod
    def of(cls, clips: list[Tensor]) -> _ClipVectors:
        """Pad clips [L, H]."""
        lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
        return cls(pad_sequence(clips, batch_first=True), lengths)


class SpeechToSpeechPipeline(Pipeline):
    """Answers spoken or typed questions in text, and in speech where the checkpoint is of Echo.

    Checkpoints that echox trained and published ones are models of one interface.

    Attributes:
        segments: how answers are cut into segments that are decoded to units one by one; None cuts
            as the checkpoint was trained, and at pauses where it was trained on whole answers.
    """

    segments: SegmentsConfig | None = None

    def __init__(
        self,
        model: EchoBase | SpeechLLM,
        codec: Codec | None,
        *,
        max_tokens: int = MAX_TOKENS,
        bf16: bool | None = None,
        answer_silence: bool = False,
    ) -> None:
        """Keep the models, which lie on one device.

        Args:
            model: Echo, or S2T, which answers in text alone, as Soundwave does.
            codec: of Echo's unit tokens; None for S2T.
            max_tokens: text tokens of an answer at most.
            bf16: run under bfloat16 autocast; None where that is fast.
            answer_silence: answer where nothing was heard too.
        """
        self.answer_silence = answer_silence
        self.echo = model if isinstance(model, EchoBase) else None
        self.speech_llm = model.speech_llm if isinstance(model, EchoBase) else model
        self.backbone = self.speech_llm.backbone
        self.codec = codec
        self.rate_hz = self.speech_llm.encoder.rate_hz
        self.max_tokens = max_tokens
        self.device = next(model.parameters()).device
        self.bf16 = multiplies_bf16_fast(self.device) if bf16 is None else bf16
        if self.bf16:
            halve_frozen(self.backbone)  # as in training, so that both round alike

    @property
    def speaks(self) -> bool:
        """Whether answers are synthesized, or text alone."""
        return self.echo is not None

    def require_echo(self) -> EchoBase:
        """Return the model that synthesizes answers.

        Raises:
            SignalError: the checkpoint is of S2T, which synthesizes nothing.
        """
        if self.echo is None:
            raise SignalError(NO_VOICE)
        return self.echo

    @cached_property
    def unit_engine(self) -> DecodeEngine:
        """The decode engine of all answers' units, shared between batches and streams."""
        # Cached properties, because an engine copies weights: answers in text alone need none.
        with self.autocast():
            return self.require_echo().decode_engine(self.max_tokens)

    @cached_property
    def speech_parts(self) -> SpeechParts:
        """What the streams of all answers share."""
        echo, codec = self.require_echo(), self.require_codec()
        joins = echo.joins_segments and codec.streams
        return SpeechParts(echo, self.unit_engine, codec, self.bf16, joins)

    def require_text_engine(self) -> DecodeEngine[BackboneSteps]:
        """Return the decode engine of all answers' text, where there is one."""
        if self.text_engine is None:
            raise TypeError("this language model is decoded by its own library")
        return self.text_engine

    @cached_property
    def text_engine(self) -> DecodeEngine[BackboneSteps] | None:
        """The decode engine of all answers' text; None where `text_decode_engine` has none."""
        # An engine takes its precision from autocast as it is when the engine is built.
        with self.autocast():
            return text_decode_engine(self.backbone)

    def autocast(self) -> torch.autocast:
        """The precision that the models run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def reply(self, questions: Sequence[Question], *, speak: bool = True) -> list[Answer]:
        """Answer conversations in one batch, their user turns spoken or typed.

        Args:
            questions: the conversations, with clips [T] at `rate_hz`.
            speak: False generates text only, which is much faster.

        Raises:
            SignalError: a clip is unusable, a conversation has more or fewer places for audio than
                clips, or is too long for the model.
        """
        if not questions:
            return []
        # Before any model runs: a refusal in the middle would cost the whole batch.
        for question in questions:
            refuse_unanswerable(question)
        clock = Clock(self.device)
        with self.autocast():
            encoded = self._encode(questions, clock)
        # Of what nobody said a language model makes an answer all the same.
        answered = list(map(self.answers, encoded.transcripts))
        texts: list[tuple[int, ...]] = [()] * len(questions)
        speech, ended = [NO_SPEECH] * len(questions), [True] * len(questions)
        if any(answered):
            with clock.part("text"), self.autocast():
                generated = _kept(self._continue(encoded), answered)
            texts, ended = list(map(tuple, generated.rows())), generated.ended.tolist()
            if speak and self.speaks:
                speech = self._synthesize(generated, clock)
        return answers_of(
            texts,
            encoded.transcripts,
            speech,
            self._text_of,
            self.codec,
            clock,
            ended,
        )

    def answers(self, transcript: Transcript) -> bool:
        """Return whether a question with this transcript is answered."""
        return self.answer_silence or transcript.unheard is None

    def _text_of(self, ids: Sequence[int]) -> str:
        return self.backbone.detokenize(list(ids))

    def encode_questions(
        self, questions: Sequence[Question], known: ClipCache | None = None
    ) -> EncodedQuestions:
        """Encode the clips of B conversations, and embed these up to where the answer begins.

        Args:
            questions: the conversations.
            known: clips that are not encoded again, to which the others are added.

        Raises:
            SignalError: a conversation is too long for the model.
        """
        with self.autocast():
            return self._encode(questions, Clock(self.device), known)

    def prefill(self, question: Question, known: ClipCache) -> None:
        """Have the language model read what precedes a question that is still being spoken.

        Its answer then begins sooner, and is the same.

        Args:
            question: whose last turn has a place for audio, without a clip for it.
            known: clips that are not encoded again, to which the others are added.

        Raises:
            SignalError: the conversation is too long for the model.
        """
        engine = self.text_engine
        if engine is None:
            return
        with self.autocast():
            clips = known.encode(
                question.clips, lambda new: self._encode_clips(new, Clock(self.device))
            )
            like = clips[-1].vectors if clips else self.backbone.head_rows()
            nothing = EncodedClip(like.new_zeros(0, like.shape[1]), [])
            prompted, (parts,) = self._prompt([question], [*clips, nothing])
        engine.prefill(
            text_request(engine.steps, prompted.embeddings[0, : parts[-1] + 1], 1, parts=parts)
        )

    def _encode(
        self, questions: Sequence[Question], clock: Clock, known: ClipCache | None = None
    ) -> EncodedQuestions:
        # The clips of all rows, one after the other.
        clips = [clip for question in questions for clip in question.clips]

        def encode(clips: Sequence[Tensor]) -> list[EncodedClip]:
            return self._encode_clips(clips, clock)

        encoded = encode(clips) if known is None else known.encode(clips, encode)
        transcripts = self._transcribe(questions, encoded)
        return EncodedQuestions(*self._prompt(questions, encoded), transcripts)

    def _encode_clips(self, clips: Sequence[Tensor], clock: Clock) -> list[EncodedClip]:
        if not clips:
            return []
        if self.device.type == "cpu" and len(clips) > 1:
            # A CPU gains nothing from a batch here, whose shape would decide how bfloat16 rounds.
            return [each for clip in clips for each in self._encode_clips([clip], clock)]
        adapter, encoder = self.speech_llm.adapter, self.speech_llm.encoder
        with clock.part("encoder"):
            features = self.speech_llm.encode_clips([self._sounding(clip) for clip in clips])
        with clock.part("adapter"):
            speech = adapter(features)
        window = None if encoder.window_s is None else encoder.window_s * encoder.frame_rate_hz
        # Clones, for a view would keep the padding of the whole batch.
        rows = zip(speech.vectors, speech.lengths.tolist())
        vectors = [row[:length].clone() for row, length in rows]
        return list(map(EncodedClip, vectors, adapter.transcripts(speech, window)))

    def _sounding(self, clip: Tensor) -> Tensor:
        """A clip without the windows in which nothing sounds, of which words would be invented."""
        window_s = self.speech_llm.encoder.window_s
        if window_s is None:
            return clip
        return without_silent_windows(clip, self.rate_hz, window_s)

    def _continue(self, encoded: EncodedQuestions) -> GeneratedText:
        prompted = encoded.prompted
        return greedy_text(
            self.backbone,
            prompted.embeddings,
            prompted.mask,
            self.max_tokens,
            engine=self.text_engine,
            parts=encoded.parts,
        )

    def _prompt(
        self, questions: Sequence[Question], clips: Sequence[EncodedClip]
    ) -> tuple[Prompted, list[tuple[int, ...]]]:
        """Embed B conversations: -> their prompts, and where each of their clips begins."""
        ids = [_with_audio(self.backbone.prompt(list(question.turns))) for question in questions]
        # Clips of all rows one after the other, the order that `SpeechLLM.prompt` takes.
        clip_rows = torch.tensor(
            [row for row, each in enumerate(questions) for turn in each.turns if turn.has_audio],
            dtype=torch.int64,  # without clips the list is empty, which would be float
            device=self.device,
        )
        padded_ids = padded(ids, PAD).to(self.device)
        speech = _ClipVectors.of([clip.vectors for clip in clips]) if clips else None
        prompted = self.speech_llm.prompt(padded_ids, speech, clip_rows, self.max_tokens)
        starts = [
            tuple(positions[ids == AUDIO].tolist())
            for ids, positions in zip(padded_ids, prompted.positions)
        ]
        return prompted, starts

    @torch.no_grad()
    def generate_text(self, questions: Sequence[Question]) -> GeneratedText:
        """Generate the answers' tokens [B, S] and the states [B, S, H] that predicted them.

        Rows never influence each other.

        Raises:
            SignalError: as `reply`.
        """
        for question in questions:
            refuse_unanswerable(question)
        with self.autocast():
            return self._continue(self.encode_questions(questions))

    def _synthesize(self, generated: GeneratedText, clock: Clock) -> list[Speech]:
        """Per row, the speech of its answer."""
        # From the states that predicted the text, not from the text itself: that is Echo.
        hidden, text = generated.hidden, generated.ids
        echo = self.require_echo()
        with clock.part("units"), self.autocast():
            spans = self._spans(generated)
            if echo.joins_segments:
                rows = list(range(len(hidden)))
                pieces = echo.speak_spans(hidden, spans, engine=self.unit_engine, text=text)
            else:
                rows = spans.rows.tolist()
                pieces = echo.speak_segments(hidden, spans, engine=self.unit_engine, text=text)
        # Outside autocast, for the synthesizer has its own.
        units, samples = UnitSynthesizer(self.require_codec(), self.bf16).synthesize(pieces, clock)
        speech = [NO_SPEECH] * len(hidden)
        for row, tokens, piece in zip(rows, pieces, zip(units, samples)):
            speech[row] = _joined(speech[row], Speech(*piece, is_cut=tokens.is_cut))
        return speech

    def _spans(self, generated: GeneratedText) -> Spans:
        """The segments of whole answers, those that `cutting` finds token by token."""
        own = self.require_echo().cutter
        if self.segments is None and own is not None:
            return own.spans(generated.hidden, generated.lengths)
        triples = [
            (row, segment.start, segment.end)
            for row, (ids, states) in enumerate(zip(generated.rows(), generated.hidden))
            for segment in segments_of(self.cutting(), ids, states[: len(ids)], self._text_of)
        ]
        return spans_of(triples, self.device)

    def cutting(self, segments: SegmentsConfig | None = None) -> Cutting:
        """Return what cuts one answer as its tokens come.

        Args:
            segments: how to cut; None cuts as the pipeline was told.

        Raises:
            ConfigError: the trigger of the segments is not one token of the language model.
        """
        chosen, own = segments or self.segments, self.require_echo().cutter
        if chosen is not None:
            return StateCutting(Cutter(chosen, self.backbone))
        return PauseCutting(PauseRule()) if own is None else StateCutting(own)

    def _transcribe(
        self, questions: Sequence[Question], clips: Sequence[EncodedClip]
    ) -> list[Transcript]:
        """Per row, the CTC transcript of its last clip."""
        of_all = iter(clips)
        rows = [[next(of_all) for _ in question.clips] for question in questions]
        return [
            self._transcript(question, row[-1].windows) if row else Transcript()
            for question, row in zip(questions, rows)
        ]

    def _transcript(self, question: Question, windows: list[tuple[int, ...]]) -> Transcript:
        no_speech = why_not_speech(question.clips[-1], self.rate_hz)
        return transcript_of(question, windows, self._text_of, no_speech)

    def synthesize(self, texts: Sequence[str]) -> list[Answer]:
        """Synthesize typed texts with Echo's own unit decoder, without the language model.

        Raises:
            SignalError: the checkpoint is of S2T, which synthesizes nothing.
        """
        return self.tts.synthesize(texts)

    @cached_property
    def tts(self) -> TTSPipeline:
        """Echo's own unit decoder as text to speech.

        Raises:
            SignalError: the checkpoint has none that reads typed texts.
        """
        if not isinstance(self.echo, EchoModel):
            raise SignalError(
                "this checkpoint has no voice for typed texts; load one of stage echo or t2c"
            )
        # With the shared engine: building one copies the decoder's weights.
        voice, codec = self.echo.voice, self.require_codec()
        return TTSPipeline(voice, self.backbone, codec, bf16=self.bf16, engine=self.unit_engine)

    def answer_typed(self, questions: Sequence[str], *, trained: bool = True) -> list[str]:
        """Answer typed questions by the language model alone, in one batch.

        Args:
            questions: the texts.
            trained: False takes the pretrained model, without what S2T and Echo trained on top.
        """
        if trained:
            return self._answer_typed(questions, self.text_engine)
        # The engine has the trained adapters merged, so the pretrained model goes without.
        with self.backbone.as_pretrained():
            return self._answer_typed(questions, None)

    def _answer_typed(self, questions: Sequence[str], engine: DecodeEngine | None) -> list[str]:
        if not questions:
            return []
        with self.autocast():
            return answer_typed(self.backbone, list(questions), self.max_tokens, engine=engine)


def _kept(generated: GeneratedText, rows: Sequence[bool]) -> GeneratedText:
    """The texts of some rows [B]; the others are empty."""
    kept = torch.tensor(rows, device=generated.lengths.device)
    return dataclasses.replace(
        generated, lengths=generated.lengths * kept, ended=generated.ended | ~kept
    )


def _joined(before: Speech, after: Speech) -> Speech:
    """The units of two pieces of an answer, and their samples one after the other."""
    # A piece may have no unit, and then no samples.
    samples = [part for part in (before.samples, after.samples) if part is not None]
    return Speech(
        (*before.units, *after.units),
        torch.cat(samples) if samples else None,
        before.is_cut or after.is_cut,
    )


def _with_audio(pieces: Sequence[Sequence[int]]) -> list[int]:
    """A prompt's pieces joined by AUDIO placeholders."""
    return [
        token
        for number, piece in enumerate(pieces)
        for token in ([AUDIO] if number else []) + list(piece)
    ]
