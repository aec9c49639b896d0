"""The published form, as its tasks share it: where training starts, and spoken conversations in the release's tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor

from echox.assets.hub import missing_files
from echox.backbones.base import LoraConfig, Turn
from echox.data.audio import audio_header
from echox.data.manifest import Role, Row
from echox.data.rows import stated_seconds
from echox.errors import ConfigError, ManifestError
from echox.models.published.compatibility import PAPER, Compatibility, form_of
from echox.models.published.folder import weights_fingerprint
from echox.models.published.hearing import WINDOW_S, windowed, windows
from echox.models.published.student import config_of, is_untrained
from echox.models.published.tokens import PROMPT_TOKENS, UNIT_COUNT, ReleaseTokens
from echox.models.published.translator import UnitTranslator
from echox.models.speech_llm import IGNORE
from echox.signals import Batch, Waveform
from echox.tasks.at_access import cost_of, costs_of, made_of
from echox.tasks.base import Examples, Hearing, TaskConfig, Track
from echox.tasks.spoken import Clip, RowsConfig, SpokenRows, padded
from echox.tasks.views import readable, real_length, released_tracks

WINDOW_TOKENS = 188  # what a window of 1500 encoder frames costs beside text tokens
WINDOW_FRAMES_HZ = 50  # of Whisper's encoder
TRANSCRIPTION_TOKENS = 300  # longer ones teach no CTC; so in the authors' training code
HEARING = ["mm_projector1", "asr_transformer_encoder", "out_norm", "lbm"]
SPEAKING = [f"unit_translator.{name}" for name in ("unit_embedding", "adapter", "model.layers", "model.norm", "lm_head")]
DENOISER = "unit_translator.aligner_MLP"

HEARD_WHOLE = f"clips are heard in whole windows of {WINDOW_S} s, so their seconds count the silence after them"

log = logging.getLogger(__name__)


def release_lora() -> LoraConfig:
    """LoRA as in the authors' training code of speech to speech; that of S2T before had v_proj too."""
    return LoraConfig(rank=64, alpha=16.0, dropout=0.05, targets=["q_proj", "k_proj"])


@dataclass(kw_only=True, slots=True)
class ReleaseTaskConfig(TaskConfig):
    """What every stage in the published form is told."""

    checkpoint: str = MISSING
    """Published folder that training starts from; "random" is a tiny untrained model for tests, "random:EchoX-3B" (or -8B) the true shapes
    untrained, for speed work."""
    released_form: bool = True
    """Compute in the checkpoint's own form, which its weights have learned; off, as the paper describes, and the exported folder says so."""

    def form(self) -> Compatibility:
        """What is computed, by its settings.

        Raises:
            CheckpointError, ConfigError, AssetError: the checkpoint is none.
        """
        return form_of(config_of(self.checkpoint)) if self.released_form else PAPER


def missing_of(checkpoint: str) -> list[str]:
    """What a published folder lacks to be trained from."""
    if is_untrained(checkpoint):
        return []
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [f"{folder} (published folder)"]
    names = [*missing_files(folder), *([] if (folder / "tokenizer.json").is_file() else ["tokenizer.json"])]
    return [str(folder / name) for name in names]


def checkpoint_fingerprint(checkpoint: str) -> str:
    """What names the weights that training starts from."""
    return checkpoint if is_untrained(checkpoint) else weights_fingerprint(Path(checkpoint))


@dataclass(kw_only=True, slots=True)
class ConversationsConfig(RowsConfig):
    """Manifests of spoken conversations, in the release's prompt."""

    max_audio_s: float = 120.0
    """Seconds of audio at most; conversations with longer clips are left out and counted. What is beyond 30 s is heard in windows."""
    max_tokens: int = PROMPT_TOKENS
    """Tokens at most, one for each audio; longer conversations are left out and counted. The release cuts them."""

    def __post_init__(self) -> None:
        if self.augmentation is not None and self.augmentation.hides_features:
            raise ConfigError("in the published form the encoder runs inside the model, where no features are hidden; set augmentation's time_masks and channel_masks to 0")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation made ready."""

    row_id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]  # the same ids, IGNORE where nothing is to be learned
    clips: tuple[Clip, ...]
    said: tuple[tuple[int, ...], ...]  # tokens of each clip's transcription, () where unknown
    units: tuple[tuple[int, ...], ...] | None  # of the last answer, as words of the manifest
    cost: int  # tokens


@dataclass(frozen=True, slots=True)
class HeardBatch(Batch):
    """Spoken conversations."""

    ids: Tensor  # [B, N] padded with the end id, one placeholder per audio
    labels: Tensor  # [B, N]
    wave: Waveform  # A clips in whole windows, in the order of their placeholders
    clip_rows: Tensor  # [A] the row of each clip
    said: Tensor  # [A, S] tokens of what the clips say, IGNORE-padded


class Lessons(Examples):
    """Conversations."""

    def __init__(self, lessons: Sequence[Lesson], rows: SpokenRows) -> None:
        self.lessons, self.rows = lessons, rows

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> Lesson:
        return self.lessons[index]

    def at(self, index: int, epoch: int) -> Lesson:
        lesson = self.lessons[index]
        return replace(lesson, clips=self.rows.drawn(lesson.row_id, lesson.clips, epoch))

    def cost(self, index: int) -> int:
        return cost_of(self.lessons, index, lesson_cost)

    def costs(self) -> np.ndarray:
        return costs_of(self.lessons, lesson_cost)


def lesson_cost(lesson: Lesson) -> int:
    """What a conversation counts in a batch."""
    return lesson.cost


class SpokenLessons:
    """Rows of manifests as conversations in the release's tokens."""

    def __init__(self, config: ConversationsConfig, tokens: ReleaseTokens, compatibility: Compatibility, rate_hz: int) -> None:
        self.rows = SpokenRows(config)
        self.config = config
        self.tokens = tokens
        self.compatibility = compatibility
        self.rate_hz = rate_hz

    def read(
        self, split: str, *, last_only: bool = False, wanted: Callable[[Lesson], bool] | None = None, lengths: Callable[[], Path]
    ) -> Sequence[Lesson]:
        """The conversations of a split; those without audio or answer, and those that are too long, are left out and counted.

        Args:
            wanted: which of the others are meant; that one is left is then for the caller to see.
            lengths: names the file of lengths that `made_of` keeps.
        Raises:
            ManifestError: a manifest is broken, or no conversation remains to train on.
        """
        rows = self.rows.rows(split)

        def make(row: Row) -> list[Lesson]:
            lesson = self._lesson(row, last_only)
            return [lesson] if lesson is not None and (wanted is None or wanted(lesson)) else []

        lessons = made_of(rows, make, lesson_cost, on_broken=self.config.on_broken, lengths=lengths)
        if len(lessons) < len(rows):
            log.warning(
                "%d of %d rows of the %s split are left out: without audio, answer or what else is learned, or longer than %g s or %d tokens",
                len(rows) - len(lessons), len(rows), split, self.config.max_audio_s, self.config.max_tokens,
            )  # fmt: skip
        if split == "train" and wanted is None and not lessons:
            raise ManifestError(
                f"no row of {', '.join(self.config.train)} has a question with audio, an answer, at most {self.config.max_tokens} tokens and "
                f"clips of at most {self.config.max_audio_s:g} s; look at the rows, or raise max_tokens or max_audio_s"
            )
        return lessons

    def _lesson(self, row: Row, last_only: bool) -> Lesson | None:
        turns = list(row.turns)
        while turns and not (turns[-1].role is Role.ASSISTANT and turns[-1].text):
            turns.pop()
        heard = [item for item in turns if item.audio is not None and item.role is Role.USER]
        if not heard:
            return None
        said = [following.transcription for item, following in zip(turns, turns[1:]) if item.audio is not None and item.role is Role.USER]
        ids, labels = self.tokens.lesson([Turn(item.role.value, item.text, item in heard) for item in turns], last_only=last_only)
        if self.compatibility.forget_answers_before_audio:
            first = ids.index(self.tokens.audio_id)
            labels = [IGNORE] * first + labels[first:]
        lengths_s = [stated_seconds(item) or audio_header(item.audio).duration_s for item in heard]
        too_long = len(ids) > self.config.max_tokens or any(length_s > self.config.max_audio_s for length_s in lengths_s)
        if too_long or all(label == IGNORE for label in labels):
            return None
        seen = sum(windows(round(length_s * self.rate_hz), self.rate_hz) for length_s in lengths_s)
        words = turns[-1].words or (turns[-1].units and [(unit,) for unit in turns[-1].units])
        return Lesson(
            row_id=row.id,
            ids=tuple(ids),
            labels=tuple(labels),
            clips=tuple(item.audio for item in heard),
            said=tuple(map(self._transcribed, said)),
            units=tuple(words) if words else None,
            cost=len(ids) + WINDOW_TOKENS * seen,
        )

    def _transcribed(self, text: str) -> tuple[int, ...]:
        ids = self.tokens.tokenizer(text, add_special_tokens=False).input_ids if text else []
        return tuple(ids) if len(ids) <= TRANSCRIPTION_TOKENS else ()

    def collate(self, lessons: Sequence[Lesson]) -> HeardBatch:
        """Conversations -> one padded batch, their audio read.

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        labels = padded([lesson.labels for lesson in lessons], IGNORE)
        clips = [self.rows.load(clip, self.rate_hz) for lesson in lessons for clip in lesson.clips]
        return HeardBatch(
            row_ids=tuple(lesson.row_id for lesson in lessons),
            count=int((labels != IGNORE).sum()),
            ids=padded([lesson.ids for lesson in lessons], self.tokens.end_id),
            labels=labels,
            wave=windowed(clips, self.rate_hz),
            clip_rows=torch.tensor([number for number, lesson in enumerate(lessons) for _ in lesson.clips]),
            said=padded([tokens for lesson in lessons for tokens in lesson.said], IGNORE),
        )

    def tracks(self, batch: HeardBatch) -> list[Track]:
        """The conversations of a batch as an audit shows them."""
        tokens = self.tokens
        vocabulary = range(tokens.audio_id + 1)
        return list(released_tracks("text", batch.ids, batch.labels, tokens.end_id, vocabulary, range(tokens.begin_id), released_text(tokens)))

    def heard(self, batch: HeardBatch) -> list[Hearing]:
        """The clips of a batch as an audit shows them; they are heard in whole windows, silence after them too."""
        places = (batch.ids == self.tokens.audio_id).nonzero()[:, 1].tolist()
        seconds = (batch.wave.lengths / batch.wave.rate_hz).tolist()
        text = released_text(self.tokens)
        return [
            Hearing(row, at, length_s, round(length_s * WINDOW_FRAMES_HZ), said, int((said != IGNORE).sum()), range(self.tokens.audio_id), text)
            for row, at, length_s, said in zip(batch.clip_rows.tolist(), places, seconds, batch.said)
        ]


def spoken_tracks(translator: UnitTranslator, tokens: ReleaseTokens, ids: Tensor, labels: Tensor) -> list[Track]:
    """Text and units in one sequence of the unit translator, as an audit shows them: ids, labels [B, L]."""
    vocabulary = range(translator.text_size + translator.unit_rows.num_embeddings)
    tracks = released_tracks("units", ids, labels, tokens.end_id, vocabulary, unit_rows(tokens), released_text(tokens))
    return [replace(track, units=units_said(tokens, track.scored.tolist())) for track in tracks]


def released_text(tokens: ReleaseTokens) -> Callable[[Sequence[int]], str]:
    """Ids of the release as people read them."""
    return readable(lambda ids: tokens.text(ids), tokens.piece("a")[-1])


def released_padding(ids: Tensor, end_id: int) -> list[Tensor]:
    """The end ids that pad rows [B, N]."""
    return [row[length:] for row in ids if (length := real_length(row, end_id)) < len(row)]


def units_said(tokens: ReleaseTokens, ids: Sequence[int]) -> list[int]:
    """The units of unit words, also of those that the release would drop."""
    words = {token: word for word, token in tokens.unit_words.items()}
    return [unit for token in ids for unit in words.get(token, ())]


def unit_rows(tokens: ReleaseTokens) -> range:
    """From the first unit word to the last."""
    return range(min(tokens.unit_words.values()), max(tokens.unit_words.values()) + 1)


def unit_count_of(checkpoint: str) -> int:
    """Units that a published folder's vocoder has."""
    path = Path(checkpoint) / "vocoder_config.json"
    return json.loads(path.read_text("utf-8")).get("num_embeddings", UNIT_COUNT) if path.is_file() else UNIT_COUNT
