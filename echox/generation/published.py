"""Answering with a published EchoX folder: hear, think, cut by the trigger, speak segment by segment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from echox.assets import asset_folder
from echox.backbones.base import Turn
from echox.checkpoint import META
from echox.codecs.base import CODECS, Codec
from echox.device import device_named
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import AssetError, SignalError
from echox.generation.answering import Answer, Clock, Question, answers_of, refuse_unusable, spoken_questions
from echox.models.segmenting import RELEASE_RULE, Segmenter, SegmentRule, segments
from echox.models.published.adapter import ShrunkSpeech
from echox.models.published.causal import Generated, Prompt, decode_steps
from echox.models.published.folder import Release, build, read_release
from echox.models.published.hearing import check_encoder, windowed
from echox.models.published.model import PublishedEchoX
from echox.models.published.names import INNER_WHISPER
from echox.models.published.tokens import PROMPT_TOKENS
from echox.models.unit_loop import UnitLoop
from echox.signals import Features, Units


RELEASE_TOKENS = 512  # of an answer's text, as in the release's own script


@dataclass(frozen=True, slots=True)
class Piece:
    """What streaming gives: the text so far, and a segment's speech where one was completed."""

    text: str
    samples: Tensor | None = None  # [T] float32 on the CPU


class PublishedAnswerer:
    """Hears questions and answers them aloud, as the release does, batched."""

    def __init__(
        self, model: PublishedEchoX, encoder: Encoder, codec: Codec | None, *, max_tokens: int = RELEASE_TOKENS, rule: SegmentRule = RELEASE_RULE
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.codec = codec
        self.max_tokens = max_tokens
        self.rule = rule
        self.rate_hz = encoder.rate_hz
        weight = model.language.head.weight
        self.device, self.dtype = weight.device, weight.dtype

    @property
    def speaks(self) -> bool:
        """Whether answers are heard, or only read, as Soundwave's are."""
        return self.codec is not None

    @cached_property
    def loop(self) -> UnitLoop:
        """Where all segments are spoken: those of a manifest's rows and those of streams."""
        return self.model.speaking_loop(self.max_tokens)

    def answer(self, clips: Sequence[Tensor], history: Sequence[Sequence[Turn]] | None = None) -> list[Answer]:
        """Answer spoken questions in one batch; see `Answerer.answer`."""
        return self.reply(spoken_questions(clips, history))

    @torch.no_grad()
    def reply(self, questions: Sequence[Question], *, speak: bool = True) -> list[Answer]:
        """Answer conversations in one batch, with any number of audios each; rows never influence each other.

        Raises:
            SignalError: a clip is empty or holds NaN; placeholders and audios differ in number; a conversation is too long.
        """
        if not questions:
            return []
        clock = Clock(self.device)
        ids = [self._ids(question) for question in questions]
        speech = self._listen([clip for question in questions for clip in question.clips], clock)
        with clock.part("text"):
            said = self.model.answer(self._prompt(questions, ids, speech), self.max_tokens)
        sounds = self._sound(said, clock) if speak and self.speaks else [((), None)] * len(questions)
        tokens = [tuple(said.row(row)) for row in range(len(questions))]
        return answers_of(tokens, self._heard(questions, speech), sounds, self.model.tokens.text, self.codec, clock, said.ended.tolist())

    @torch.no_grad()
    def stream(self, question: Question) -> Iterator[Piece]:
        """Answer one conversation as it is thought: text after every token, speech of each segment once it is cut, in order.

        Raises:
            SignalError: as `reply`.
        """
        clock = Clock(self.device)
        ids = [self._ids(question)]
        prompt = self._prompt([question], ids, self._listen(question.clips, clock))
        segmenter, tokens, states = Segmenter(self.rule), [], []
        for token, state in decode_steps(self.model.language, prompt, self.model.tokens.end_id, self.max_tokens):
            if int(token) == self.model.tokens.end_id:
                break
            tokens.append(int(token))
            states.append(state)
            yield Piece(self.model.tokens.text(tokens))
            if self.speaks and (segment := segmenter.push(float(self.model.trigger_scores(state)))):
                yield self._piece(tokens, states[segment.start : segment.end])
        if segment := segmenter.flush():
            yield self._piece(tokens, states[segment.start : segment.end])

    def _piece(self, tokens: list[int], states: list[Tensor]) -> Piece:
        units = self._units([torch.cat(states)])[0]
        return Piece(self.model.tokens.text(tokens), self._decode(units))

    def _ids(self, question: Question) -> list[int]:
        for clip in question.clips:
            refuse_unusable(clip)
        ids = self.model.tokens.prompt(question.turns)
        if len(ids) > PROMPT_TOKENS:
            raise SignalError(
                f"the conversation has {len(ids)} tokens, and EchoX was trained on {PROMPT_TOKENS} at most; shorten its text or drop its first turns"
            )
        return ids

    def _prompt(self, questions: Sequence[Question], ids: Sequence[list[int]], speech: ShrunkSpeech | None) -> Prompt:
        owners = torch.tensor(
            [row for row, question in enumerate(questions) for _ in question.clips], dtype=torch.int64, device=self.device
        )
        prompt = self.model.prompt(ids, speech, owners)
        longest, room = int(prompt.lengths.max()) + self.max_tokens, self.model.language.body.config.max_position_embeddings
        if longest > room:
            raise SignalError(
                f"the prompt and its answer take {longest} positions, and the language model has {room}; shorten the audio, or lower max_tokens"
            )
        return prompt

    def _listen(self, clips: Sequence[Tensor], clock: Clock) -> ShrunkSpeech | None:
        """Clips of all rows -> adapted speech; None where there is no clip."""
        if not clips:
            return None
        with clock.part("encoder"):
            features = self.encoder(windowed(clips, self.rate_hz).to(self.device))
        with clock.part("adapter"):
            return self.model.adapter(Features(features.values.to(self.dtype), features.lengths, features.rate_hz))

    def _heard(self, questions: Sequence[Question], speech: ShrunkSpeech | None) -> list[tuple[int, ...]]:
        """Per row, what CTC read from its last clip, as the language model's tokens."""
        if speech is None:
            return [()] * len(questions)
        spoken = speech.kept & (speech.tokens != self.model.tokens.audio_id)
        clips = iter([tuple(row[keep].tolist()) for row, keep in zip(speech.tokens, spoken)])
        rows = [[next(clips) for _ in question.clips] for question in questions]
        return [row[-1] if row else () for row in rows]

    def _sound(self, said: Generated, clock: Clock) -> list[tuple[tuple[int, ...], Tensor | None]]:
        """Per row, the units of all segments and their samples [T], joined; None where nothing is to be heard."""
        with clock.part("units"):
            scores = self.model.trigger_scores(said.hidden)
            cuts = [list(segments(row[:length].tolist(), self.rule)) for row, length in zip(scores, said.lengths.tolist())]
            states = [said.hidden[row, cut.start : cut.end] for row, found in enumerate(cuts) for cut in found]
            units = iter(self._units(states))
        with clock.part("codec"):
            return [self._joined([next(units) for _ in found]) for found in cuts]

    def _joined(self, parts: list[list[int]]) -> tuple[tuple[int, ...], Tensor | None]:
        samples = [sound for part in parts if (sound := self._decode(part)) is not None]
        return tuple(unit for part in parts for unit in part), torch.cat(samples) if samples else None

    def _units(self, states: Sequence[Tensor]) -> list[list[int]]:
        """Hidden states [S, H] of segments -> units of each, all segments in one batch."""
        if not states:
            return []
        lengths = torch.tensor([len(part) for part in states], device=self.device)
        spoken = self.model.speak(torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True), lengths, loop=self.loop)
        return [self.model.tokens.units(spoken.row(row)) for row in range(len(states))]

    def _decode(self, units: list[int]) -> Tensor | None:
        """Units -> samples [T] on the CPU; no unit gives nothing."""
        if not units:
            return None
        ids = torch.tensor([units], device=self.device)
        wave = self.codec.decode(Units(ids, torch.tensor([len(units)], device=self.device), None))
        return wave.samples[0, : int(wave.lengths[0])].float().cpu()


def load_published_answerer(
    folder: str | Path, *, device: str = "auto", encoder_folder: str | None = None, max_tokens: int = RELEASE_TOKENS
) -> PublishedAnswerer:
    """Everything a published EchoX or Soundwave folder needs to answer.

    Args:
        folder: as downloaded, or as `echox-prepare import` wrote it.
        encoder_folder: where Whisper lies; None finds it by the folder's `audio_tower`, and Soundwave's among its own weights.
    Raises:
        CheckpointError, ConfigError: a file or a tensor is missing, damaged or misshapen.
        AssetError: Whisper cannot be had.
    """
    place = device_named(device)
    release = read_release(folder)
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(folder)})).to(place) if release.speaks else None
    encoder = _encoder(encoder_folder or whisper_of(release), release.config["adapter_size"])
    # Half precision as published where that is fast; CPUs multiply it slowly.
    model = build(release, dtype=None if place.type == "cuda" else torch.float32)
    return PublishedAnswerer(model.to(place), encoder.to(place), codec, max_tokens=max_tokens)


def _encoder(weights: str, dim: int) -> Encoder:
    """
    Raises:
        CheckpointError: its frames have another number of channels than the adapter takes.
    """
    encoder = ENCODERS.build(ENCODERS.parse({"name": "whisper", "weights": weights, "pad_to_window": True}))
    check_encoder(encoder, dim, f"the Whisper in {weights}", "encoder_folder")
    return encoder


def whisper_of(release: Release) -> str:
    """Where the Whisper of a published folder lies.

    Soundwave's is among its own weights. EchoX's path is relative to the folder it was started from: tried are that of this process,
    the checkpoint's own and the one above it, and what `echox-prepare import` noted; then the catalogue and the hub are asked.

    Raises:
        AssetError: it is nowhere.
    """
    folder, tower = release.folder, str(release.config.get("audio_tower") or "")
    if any(name.startswith(INNER_WHISPER) for name in release.tensors):
        return str(folder)
    places = [Path(tower).expanduser(), folder / tower, folder.parent / tower, folder.parent / Path(tower).name] if tower else []
    noted = _noted_whisper(folder)
    for place in [*places, *([Path(noted)] if noted else [])]:
        if (place / "config.json").is_file():
            return str(place)
    try:
        return str(asset_folder(tower)) if tower and not tower.startswith((".", "/")) else str(asset_folder("openai/" + Path(tower).name))
    except AssetError as error:
        raise AssetError(
            f"the Whisper that {folder} hears with ({tower or 'audio_tower is not in its config.json'}) was not found; set encoder_folder to where it lies"
        ) from error


def _noted_whisper(folder: Path) -> str | None:
    try:
        return json.loads((folder / META).read_text("utf-8")).get("whisper")
    except (OSError, ValueError):
        return None
