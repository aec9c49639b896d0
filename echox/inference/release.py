"""Inference with a released EchoX or Soundwave folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.assets import asset_folder
from echox.codecs.base import CODECS, Codec
from echox.core.checkpoint import META
from echox.core.device import device_named
from echox.core.errors import AssetError, SignalError
from echox.core.signals import Features, Units
from echox.decoding import DecodeEngine
from echox.encoders.base import ENCODERS, Encoder
from echox.inference.answers import (
    NO_SPEECH,
    Answer,
    Clock,
    Piece,
    Question,
    Speech,
    answers_of,
    refuse_unusable,
)
from echox.inference.base import Pipeline
from echox.models.release.adapter import ShrunkSpeech
from echox.models.release.causal import Generated, Prompt, decode_steps
from echox.models.release.folder import Release, build, read_release
from echox.models.release.hearing import check_encoder, windowed
from echox.models.release.model import PublishedEchoX
from echox.models.release.names import INNER_WHISPER
from echox.models.release.tokens import PROMPT_TOKENS
from echox.models.segmenting import RELEASE_RULE, Segment, Segmenter, SegmentRule, segments

RELEASE_TOKENS = 512  # of an answer's text, as in the release's own script


class ReleasePipeline(Pipeline):
    """Answers spoken or typed questions as the release does, in batches."""

    def __init__(
        self,
        model: PublishedEchoX,
        encoder: Encoder,
        codec: Codec | None,
        *,
        max_tokens: int = RELEASE_TOKENS,
        rule: SegmentRule = RELEASE_RULE,
    ) -> None:
        """Keep the models, which lie on one device.

        Args:
            model: adapter, language model and unit translator.
            encoder: the release's Whisper.
            codec: its vocoder; None for Soundwave, which answers in text alone.
            max_tokens: text tokens of an answer at most.
            rule: when a segment is cut.
        """
        self.model = model
        self.encoder = encoder
        self.codec = codec
        self.max_tokens = max_tokens
        self.rule = rule
        self.rate_hz = encoder.rate_hz
        # All parts lie where the largest one does, and share its precision.
        weight = model.language.head.weight
        self.device, self.dtype = weight.device, weight.dtype

    @property
    def speaks(self) -> bool:
        """Whether answers are synthesized, or text alone, as Soundwave's are."""
        return self.codec is not None

    @cached_property
    def unit_engine(self) -> DecodeEngine:
        """The decode engine of all segments, those of batches and those of streams."""
        # Cached, because an engine copies the unit translator's weights.
        return self.model.speech_decode_engine(self.max_tokens)

    @torch.no_grad()
    def reply(self, questions: Sequence[Question], *, speak: bool = True) -> list[Answer]:
        """Answer conversations in one batch, with any number of clips each.

        Rows never influence each other.

        Args:
            questions: the conversations, with clips [T] at `rate_hz`.
            speak: False generates text only.

        Raises:
            SignalError: a clip is empty or holds NaN; placeholders and clips differ in number; a
                conversation is too long.
        """
        if not questions:
            return []
        clock = Clock(self.device)
        ids = [self._ids(question) for question in questions]
        speech = self._encode([clip for question in questions for clip in question.clips], clock)
        with clock.part("text"):
            generated = self.model.answer(self._prompt(questions, ids, speech), self.max_tokens)
        synthesized = [NO_SPEECH] * len(questions)
        if speak and self.speaks:
            synthesized = self._synthesize(generated, clock)
        return answers_of(
            [tuple(generated.row(row)) for row in range(len(questions))],
            self._transcribe(questions, speech),
            synthesized,
            self.model.tokens.text,
            self.codec,
            clock,
            generated.ended.tolist(),
        )

    @torch.no_grad()
    def stream(self, question: Question) -> Iterator[Piece]:
        """Answer one conversation piece by piece, in order.

        Yields:
            a piece of text after every token, and of samples [T] after every segment.

        Raises:
            SignalError: as `reply`.
        """
        ids = [self._ids(question)]
        speech = self._encode(question.clips, Clock(self.device))
        prompt = self._prompt([question], ids, speech)
        end_id = self.model.tokens.end_id
        segmenter, tokens, states = Segmenter(self.rule), [], []
        for token, state in decode_steps(self.model.language, prompt, end_id, self.max_tokens):
            # `decode_steps` gives the end token as well.
            if int(token) == end_id:
                break
            tokens.append(int(token))
            states.append(state)  # [1, H]
            # The text of all tokens: a character may be spread over several of them.
            yield Piece(self.model.tokens.text(tokens))
            # Without a codec no segment is needed.
            if self.speaks and (segment := segmenter.push(float(self.model.trigger_scores(state)))):
                yield self._piece(tokens, states, segment)
        # Nothing was pushed where nothing is synthesized, so this is speech too.
        if segment := segmenter.flush():
            yield self._piece(tokens, states, segment)

    def _piece(self, tokens: list[int], states: list[Tensor], segment: Segment) -> Piece:
        units = self._units([torch.cat(states[segment.start : segment.end])])[0]
        return Piece(self.model.tokens.text(tokens), self._decode(units))

    def _ids(self, question: Question) -> list[int]:
        """Prompt ids of a conversation, a placeholder for each clip."""
        for clip in question.clips:
            refuse_unusable(clip)
        ids = self.model.tokens.prompt(question.turns)
        # The release cut longer prompts in training, so the model has never read one.
        if len(ids) > PROMPT_TOKENS:
            raise SignalError(
                f"the conversation has {len(ids)} tokens, and EchoX was trained on {PROMPT_TOKENS} "
                "at most; shorten its text or drop its first turns"
            )
        return ids

    def _prompt(
        self, questions: Sequence[Question], ids: Sequence[list[int]], speech: ShrunkSpeech | None
    ) -> Prompt:
        clip_rows = torch.tensor(
            [row for row, question in enumerate(questions) for _ in question.clips],
            dtype=torch.int64,
            device=self.device,
        )
        prompt = self.model.prompt(ids, speech, clip_rows)
        # Rotary positions know no end: beyond it the model would go on without an error.
        longest = int(prompt.lengths.max()) + self.max_tokens
        limit = self.model.language.body.config.max_position_embeddings
        if longest > limit:
            raise SignalError(
                f"the prompt and its answer take {longest} positions, and the language model has "
                f"{limit}; shorten the audio, or lower max_tokens"
            )
        return prompt

    def _encode(self, clips: Sequence[Tensor], clock: Clock) -> ShrunkSpeech | None:
        """The clips of all rows as vectors for the language model; None where there is no clip."""
        if not clips:
            return None
        with clock.part("encoder"):
            features = self.encoder(windowed(clips, self.rate_hz).to(self.device))
        with clock.part("adapter"):
            # Whisper may run in another precision than the released weights.
            values = features.values.to(self.dtype)
            return self.model.adapter(Features(values, features.lengths, features.rate_hz))

    def _transcribe(
        self, questions: Sequence[Question], speech: ShrunkSpeech | None
    ) -> list[tuple[int, ...]]:
        """Per row, the CTC transcript of its last clip, as the language model's tokens."""
        if speech is None:
            return [()] * len(questions)
        # Vectors of blanks are kept too; their token is the audio placeholder.
        is_text = speech.kept & (speech.tokens != self.model.tokens.audio_id)
        clips = iter([tuple(row[keep].tolist()) for row, keep in zip(speech.tokens, is_text)])
        rows = [[next(clips) for _ in question.clips] for question in questions]
        return [row[-1] if row else () for row in rows]

    def _synthesize(self, generated: Generated, clock: Clock) -> list[Speech]:
        """Per row, the units and the samples of all its segments, joined."""
        with clock.part("units"):
            scores = self.model.trigger_scores(generated.hidden)  # [B, S]
            cuts = [
                list(segments(row[:length].tolist(), self.rule))
                for row, length in zip(scores, generated.lengths.tolist())
            ]
            states = [
                generated.hidden[row, segment.start : segment.end]
                for row, row_segments in enumerate(cuts)
                for segment in row_segments
            ]
            # All segments of all rows in one batch: no context crosses segments.
            units = iter(self._units(states))
        with clock.part("codec"):
            return [self._joined([next(units) for _ in row_segments]) for row_segments in cuts]

    def _joined(self, parts: list[list[int]]) -> Speech:
        """The units of a row's segments, and their samples one after the other."""
        # A segment may have no unit, and then no samples.
        decoded = [self._decode(part) for part in parts]
        samples = [part for part in decoded if part is not None]
        units = tuple(unit for part in parts for unit in part)
        return units, torch.cat(samples) if samples else None

    def _units(self, states: Sequence[Tensor]) -> list[list[int]]:
        """Hidden states [S, H] of segments -> units of each, all segments in one batch."""
        if not states:
            return []
        lengths = torch.tensor([len(part) for part in states], device=self.device)
        # The padding is not read: `speak` takes the lengths.
        hidden = pad_sequence(list(states), batch_first=True)  # [G, S, H]
        generated = self.model.speak(hidden, lengths, engine=self.unit_engine)
        return [self.model.tokens.units(generated.row(row)) for row in range(len(states))]

    def _decode(self, units: list[int]) -> Tensor | None:
        """Units of a segment -> samples [T] on the CPU; None without a unit."""
        if not units:
            return None
        # One segment at a time, as the release decodes.
        ids = torch.tensor([units], device=self.device)
        wave = self.codec.decode(Units(ids, torch.tensor([len(units)], device=self.device), None))
        return wave.samples[0, : int(wave.lengths[0])].float().cpu()


def load_release_pipeline(
    folder: str | Path,
    *,
    device: str = "auto",
    encoder_folder: str | None = None,
    max_tokens: int = RELEASE_TOKENS,
) -> ReleasePipeline:
    """Load a released EchoX or Soundwave folder as a pipeline.

    Args:
        folder: as downloaded, or as `echox-prepare import` wrote it.
        device: auto, cpu, cuda or cuda:N.
        encoder_folder: where Whisper lies; None finds it by the folder's `audio_tower`, and
            Soundwave's among its own weights.
        max_tokens: text tokens of an answer at most.

    Raises:
        CheckpointError, ConfigError: a file or a tensor is missing, damaged or misshapen.
        AssetError: Whisper cannot be had.
    """
    target = device_named(device)
    release = read_release(folder)
    # Soundwave has no unit translator, and no vocoder in its folder.
    codec: Codec | None = None
    if release.speaks:
        config = CODECS.parse({"name": "unit_hifigan", "folder": str(folder)})
        codec = CODECS.build(config).to(target)
    encoder = _encoder(encoder_folder or whisper_of(release), release.config["adapter_size"])
    # Half precision as released where that is fast; CPUs multiply it slowly.
    model = build(release, dtype=None if target.type == "cuda" else torch.float32)
    return ReleasePipeline(model.to(target), encoder.to(target), codec, max_tokens=max_tokens)


def _encoder(weights: str, dim: int) -> Encoder:
    """The Whisper of a folder.

    Raises:
        CheckpointError: its frames have another number of channels than the adapter takes.
    """
    # The release pads every window to Whisper's 30 seconds.
    config = ENCODERS.parse({"name": "whisper", "weights": weights, "pad_to_window": True})
    encoder = ENCODERS.build(config)
    check_encoder(encoder, dim, f"the Whisper in {weights}", "encoder_folder")
    return encoder


def whisper_of(release: Release) -> str:
    """Find the Whisper of a released folder.

    Soundwave's is among its own weights. EchoX's path is relative to the folder it was started
    from: tried are that of this process, the checkpoint's own and the one above it, and what
    `echox-prepare import` noted; then the catalogue and the hub are asked.

    Returns:
        a folder.

    Raises:
        AssetError: it is nowhere.
    """
    if any(name.startswith(INNER_WHISPER) for name in release.tensors):
        return str(release.folder)
    tower = str(release.config.get("audio_tower") or "")
    for place in _whisper_places(release.folder, tower):
        # A folder of this name may hold something else.
        if (place / "config.json").is_file():
            return str(place)
    # A path names no model of the hub, but its last part may be that of OpenAI's model.
    is_hub_name = tower and not tower.startswith((".", "/"))
    try:
        return str(asset_folder(tower if is_hub_name else "openai/" + Path(tower).name))
    except AssetError as error:
        raise AssetError(
            f"the Whisper of {release.folder} ({tower or 'audio_tower is not in its config.json'}) "
            "was not found; set encoder_folder to where it lies"
        ) from error


def _whisper_places(folder: Path, tower: str) -> Iterator[Path]:
    """Where the Whisper of a folder may lie, the likeliest place first."""
    if tower:
        yield Path(tower).expanduser()
        yield folder / tower
        yield folder.parent / tower
        yield folder.parent / Path(tower).name
    if noted := _noted_whisper(folder):
        yield Path(noted)


def _noted_whisper(folder: Path) -> str | None:
    """The folder that `echox-prepare import` noted, if any."""
    # A folder as downloaded has no such file.
    try:
        return json.loads((folder / META).read_text("utf-8")).get("whisper")
    except (OSError, ValueError):
        return None
