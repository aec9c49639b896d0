"""Rows of manifests as tensors: audio, encoder features and token ids of spoken conversations."""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from echox.backbones.base import Backbone, Turn
from echox.core.config import neutral, refuse_below
from echox.core.errors import ConfigError, SignalError
from echox.core.number_format import name_of
from echox.core.signals import Batch, Features, Waveform, padded
from echox.core.sources import code_of
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.audio_ref import Audio, AudioRef, audio_ref
from echox.data.augmentation import Augmentation, AugmentationConfig, DrawnClip
from echox.data.code_caches import cache_of_code
from echox.data.indexed_rows import ChosenRows, JoinedRows
from echox.data.manifest import (
    UNFINISHED,
    OnBroken,
    Role,
    Row,
    manifest_fingerprint,
    read_manifests,
)
from echox.data.text import edit_distance
from echox.encoders.base import Encoder, check_features, trains, weights_fingerprint
from echox.models.speech_llm import AUDIO, IGNORE, PAD

log = logging.getLogger(__name__)

Clip = Audio | DrawnClip
AnyBatch = TypeVar("AnyBatch", bound=Batch)
UnitPair = tuple[Sequence[int], Sequence[int]]
"""Units, and those that they should be."""

# Costs of clips are whole numbers: hundredths of a second.
COST_PER_S = 100


@dataclass(kw_only=True, slots=True)
class RowsConfig:
    """Manifests of spoken conversations.

    Raises:
        ConfigError: a number is out of range.
    """

    train: list[str] = field(default_factory=list)
    """Manifests to train on."""
    valid: list[str] = neutral(default_factory=list)
    """Manifests to validate on."""
    sample: dict[str, int] = field(default_factory=dict)
    """Rows drawn at most from a training manifest, by its file name; the others are used whole."""
    on_broken: OnBroken = neutral(OnBroken.skip)
    """What to do with broken rows: skip them, each reported with its line, or refuse the
    manifest."""
    allow_outside: bool = neutral(False)
    """Allow audio outside a manifest's folder."""
    max_audio_s: float = 30.0
    """Seconds of audio at most; longer clips are left out and counted."""
    augmentation: AugmentationConfig | None = None
    """Change training clips in every epoch: speed, room acoustics, noise, masked features; null
    leaves them as they are."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "max_audio_s", above=True)
        for name, count in self.sample.items():
            if count < 1:
                raise ConfigError(
                    f"sample.{name} is {count}; use 1 or more, or leave the manifest out of train"
                )


@dataclass(kw_only=True, slots=True)
class SpokenDataConfig(RowsConfig):
    """Manifests of spoken conversations whose features are cached.

    Raises:
        ConfigError: a number is out of range.
    """

    batch_s: float = neutral(120.0)
    """Audio encoded at once when features are cached, seconds with padding."""

    def __post_init__(self) -> None:
        RowsConfig.__post_init__(self)
        refuse_below(self, 0, "batch_s", above=True)


class SpokenRows:
    """Rows of manifests, and the audio of their clips.

    Args:
        config: the manifests, and how training clips are augmented.

    Raises:
        ConfigError: a folder of noises or rooms for augmentation is missing or holds no sound.
    """

    def __init__(self, config: RowsConfig) -> None:
        self.config = config
        self.augmentation = (
            Augmentation(config.augmentation) if config.augmentation is not None else None
        )

    def drawn(self, row_id: str, clips: Sequence[Clip], epoch: int) -> tuple[Clip, ...]:
        """Clips of a row as training reads them in an epoch, augmented where that is configured."""
        if self.augmentation is None:
            return tuple(clips)
        return self.augmentation.drawn(row_id, list(map(recording_of, clips)), epoch)

    def load(self, clip: Clip, rate_hz: int) -> Tensor:
        """Read the samples of a clip, and augment them where the clip was drawn for an epoch.

        Args:
            clip: of `drawn`, or as in the manifest.
            rate_hz: samples per second of the result.

        Returns:
            samples [T] float32.

        Raises:
            SignalError: the clip cannot be read, or holds NaN.
        """
        if isinstance(clip, DrawnClip):
            return self._required_augmentation().load(clip, rate_hz)
        return load_audio(clip, rate_hz)

    def _required_augmentation(self) -> Augmentation:
        if self.augmentation is None:
            raise ConfigError(
                "a clip was drawn for an epoch by another config; set augmentation in this one too"
            )
        return self.augmentation

    def paths(self, split: str) -> list[str]:
        """Manifests of a split."""
        return {"train": self.config.train, "valid": self.config.valid}[split]

    def rows(self, split: str) -> Sequence[Row]:
        """Read the rows of a split.

        Args:
            split: "train", or "valid", which may have no manifest and no row.

        Returns:
            a list, or, where a manifest is large, a sequence that reads its rows at access.

        Raises:
            ManifestError: a manifest is missing or empty, or broken and broken rows are refused.
        """
        if split == "valid" and not self.config.valid:
            return []
        # A tuple where they are held in memory, else a sequence that reads rows at access.
        rows = read_manifests(
            self.paths(split),
            on_broken=self.config.on_broken,
            allow_outside=self.config.allow_outside,
        )
        if isinstance(rows, tuple):
            left_out = self._unsampled_ids() if split == "train" else set()
            return [row for row in rows if row.id not in left_out]
        # One part for each manifest, of which each has a sample of its own.
        parts = rows.parts if isinstance(rows, JoinedRows) else [rows]
        sample = self.config.sample if split == "train" else {}
        names = [Path(path).name for path in self.paths(split)]
        parts = [
            sample_rows(part, sample[name], name) if name in sample else part
            for name, part in zip(names, parts)
        ]
        return parts[0] if len(parts) == 1 else JoinedRows(parts)

    def _unsampled_ids(self) -> set[str]:
        """Ids of the rows that `sample` does not draw; those without an answer go first."""
        left_out: set[str] = set()
        for path in self.config.train:
            name = Path(path).name
            if name not in self.config.sample:
                continue
            # Read apart from the other manifests: the draw must not depend on what is beside it.
            rows = list(
                read_manifests(
                    [path], on_broken=OnBroken.skip, allow_outside=self.config.allow_outside
                )
            )
            random.Random(name).shuffle(rows)
            # A stable sort, so that rows with an answer stay shuffled among themselves.
            rows.sort(key=lambda row: row.answer is None or not row.answer.text)
            left_out |= {row.id for row in rows[self.config.sample[name] :]}
        return left_out

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of every manifest.

        Manifests that share a file name, as `manifest.jsonl` of two corpora, are named by path.

        Raises:
            ManifestError: a manifest cannot be read.
        """
        names = {path: Path(path).name for path in [*self.config.train, *self.config.valid]}
        counts = Counter(names.values())
        return {
            f"manifest:{name if counts[name] == 1 else path}": manifest_fingerprint(path)
            for path, name in names.items()
        }


def sample_rows(rows: Sequence[Row], count: int, seed: str) -> ChosenRows:
    """Draw rows of a large manifest, in its order.

    Rows without an answer are drawn only where too few have one.

    Args:
        rows: of the manifest, read at access.
        count: rows at most.
        seed: of the draw.
    """
    answered: list[int] = []
    others: list[int] = []
    # Rows are read in random order until there are enough, so that most are never read.
    for number in np.random.default_rng(list(seed.encode())).permutation(len(rows)):
        if len(answered) == count:
            break
        answer = rows[int(number)].answer
        (others if answer is None or not answer.text else answered).append(int(number))
    return ChosenRows(rows, np.sort(np.array([*answered, *others][:count], dtype=np.int64)))


class SpokenData(SpokenRows):
    """Rows of manifests, and the frozen encoder's features of their clips, cached on disk."""

    config: SpokenDataConfig

    def __init__(self, config: SpokenDataConfig, cache_dir: Path) -> None:
        super().__init__(config)
        self.folder = cache_dir / "features"

    def cache_features(
        self, clips: Mapping[str, Sequence[Clip]], encoder: Encoder, *, bf16: bool, label: str
    ) -> None:
        """Encode the clips that are not cached yet, in batches of like length.

        Of an encoder that is trained nothing is encoded here: `features` gives waveforms then.

        Args:
            clips: by split. Where augmentation changes the sound of training clips, those are
                encoded at each step instead, and not here.
            encoder: as `build_encoder` returned it, perhaps frozen since.
            bf16: encode under bfloat16 autocast.
            label: words beside the progress bar.

        Raises:
            SignalError: no clip can be decoded; or one cannot, and broken ones are refused; or
                the encoder's features are not what it states.
        """
        self.trains_encoder = trains(encoder)
        # Another precision gives other features, which get a cache of their own.
        self.cache = cache_of_code(
            self.folder,
            weights_fingerprint(encoder),
            code_of(encoder),
            name_of(bf16),
            contents="features",
        )
        self._encode = partial(encode_clips, encoder, bf16)
        self.rate_hz, self.dim = encoder.frame_rate_hz, encoder.dim
        self.sample_rate_hz = encoder.rate_hz
        by_key = {clip_key(clip): recording_of(clip) for split in clips.values() for clip in split}
        durations_s = {key: audio_header(clip).duration_s for key, clip in by_key.items()}
        # For clips that are encoded at every step: batching asks for their frames before.
        self._frames = {
            key: math.ceil(duration_s * self.rate_hz) for key, duration_s in durations_s.items()
        }
        if self.trains_encoder:
            return
        cached = self._keys_to_cache(clips)
        self.cache.fill(
            cached,
            lambda keys: self._encode_readable([by_key[key] for key in keys]),
            costs=[round(durations_s[key] * COST_PER_S) for key in cached],
            batch_cost=round(self.config.batch_s * COST_PER_S),
            label=label,
        )
        self._report_unreadable([by_key[key] for key in cached])

    def _keys_to_cache(self, clips: Mapping[str, Sequence[Clip]]) -> list[str]:
        """Keys of the clips whose features stay the same at every step, each once, in order."""
        # Whether training clips sound different at every step; masks alone work on cached features.
        online = self.augmentation is not None and self.augmentation.config.changes_sound
        if online:
            log.warning(
                "augmentation changes how clips sound, so training encodes them at every step "
                "instead of once; caches hold the others"
            )
        # A dictionary, for unique keys in the order of the clips.
        keys = dict.fromkeys(
            clip_key(clip)
            for split, split_clips in clips.items()
            if not (online and split == "train")
            for clip in split_clips
        )
        return list(keys)

    def _encode_readable(self, clips: Sequence[Audio]) -> list[Tensor]:
        """Features [F, D] of each clip; no frames for one that cannot be decoded.

        No frames are cached too, and stand for such a clip until its file changes.
        """
        samples = [self._decode(clip) for clip in clips]
        readable = [clip_samples for clip_samples in samples if clip_samples is not None]
        encoded: Iterator[Tensor] = iter(())
        if readable:
            features = self._encode(readable)
            lengths = features.lengths.tolist()
            encoded = iter([row[:length] for row, length in zip(features.values, lengths)])
        # Of the dtype that the encoder's features are rounded to.
        no_frames = torch.empty(0, self.dim, dtype=torch.bfloat16)
        return [no_frames if clip_samples is None else next(encoded) for clip_samples in samples]

    def _decode(self, clip: Audio) -> Tensor | None:
        """Samples [T] of a clip; None where it is broken and the config skips broken ones."""
        try:
            return load_audio(clip, self.sample_rate_hz)
        except SignalError as error:
            if self.config.on_broken is OnBroken.refuse:
                raise
            log.warning("%s; left out", error)
            return None

    def _report_unreadable(self, clips: Sequence[Audio]) -> None:
        """Warn of clips that cannot be decoded.

        Raises:
            SignalError: no clip can be decoded.
        """
        unreadable = [clip for clip in clips if not self.cache.length(clip_key(clip))]
        if unreadable and len(unreadable) == len(clips):
            load_audio(unreadable[0], self.sample_rate_hz)  # raises, and says why
        if unreadable:
            log.warning(
                "%d clips cannot be decoded and are left out, such as %s; "
                "'echox-prepare validate' says why",
                len(unreadable),
                unreadable[0],
            )

    def usable(self, clip: Clip) -> bool:
        """Whether a clip could be decoded and is not too long."""
        return 0 < self.frames(clip) <= self.config.max_audio_s * self.rate_hz

    def require_features(self, clips: Sequence[Clip]) -> Features:
        """Features of clips, for a task that takes the encoder as pretrained; see `features`.

        Raises:
            ConfigError: the encoder is trained.
        """
        features = self.features(clips)
        if isinstance(features, Waveform):
            raise ConfigError("this task does not train the encoder; set encoder.train=false")
        return features

    def features(self, clips: Sequence[Clip]) -> Features | Waveform:
        """Features of clips, from the cache, or encoded now where augmentation changes the sound.

        Args:
            clips: of `drawn`, or as in the manifest.

        Returns:
            values [A, F, D] float32 on the CPU; where the encoder is trained, the samples [A, T]
            that `encoded` encodes with the weights of the step.

        Raises:
            ConfigError: clips would have to be encoded on a GPU in a process that loads data.
            SignalError: a clip that is encoded now cannot be read.
        """
        if not clips:
            lengths = torch.zeros(0, dtype=torch.int64)
            return Features(torch.zeros(0, 1, self.dim), lengths, self.rate_hz)  # A = 0, F = 1
        if self.trains_encoder:
            samples = [self.load(clip, self.sample_rate_hz) for clip in clips]
            return pad_waveforms(samples, self.sample_rate_hz)
        # All clips or none of them are drawn for an epoch.
        drawn = [clip for clip in clips if isinstance(clip, DrawnClip)]
        keys = [clip_key(clip) for clip in clips]
        augmentation = self._required_augmentation() if drawn else None
        is_changed = augmentation is not None and augmentation.config.changes_sound
        if is_changed or not all(key in self.cache for key in keys):
            features = self._encode([self.load(clip, self.sample_rate_hz) for clip in clips])
            # Batches are collated on the CPU.
            features = features.to("cpu")
            features = Features(features.values.float(), features.lengths, features.rate_hz)
        else:
            features = self._cached_features(keys)
        return features if augmentation is None else augmentation.hidden(features, drawn)

    def _cached_features(self, keys: Sequence[str]) -> Features:
        values = [self.cache[key] for key in keys]  # [F, D] bfloat16 each
        lengths = torch.tensor([len(value) for value in values])
        padded_values = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        return Features(padded_values.float(), lengths, self.rate_hz)

    def frames(self, clip: Clip) -> int:
        """Number of frames of a clip; estimated from its duration where it is not cached."""
        key = clip_key(clip)
        return self.cache.length(key) if key in self.cache else self._frames[key]


@torch.no_grad()
def encode_clips(encoder: Encoder, bf16: bool, clips: Sequence[Tensor]) -> Features:
    """Encode clips, and round the features to bfloat16 as caches keep them.

    Args:
        encoder: the frozen encoder.
        bf16: encode under bfloat16 autocast.
        clips: samples [T] each.

    Returns:
        values [A, F, D] bfloat16 on the encoder's device.

    Raises:
        ConfigError: the encoder is on a GPU and this process loads data for another.
        SignalError: what the encoder returned is not what it states, or not finite.
    """
    # An encoder of signal processing alone has no parameters; one without buffers either computes
    # where the audio is.
    device = next(
        (tensor.device for tensor in chain(encoder.parameters(), encoder.buffers())),
        torch.device("cpu"),
    )
    if device.type == "cuda" and torch.utils.data.get_worker_info() is not None:
        raise ConfigError(
            "augmented clips are encoded on the GPU as they are read, "
            "which other processes cannot do; set num_workers=0 in the stage's train"
        )
    wave = pad_waveforms(clips, encoder.rate_hz).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        features = encoder(wave)
    check_features(encoder, wave, features)
    return Features(features.values.bfloat16(), features.lengths, features.rate_hz)


def recording_of(clip: Clip) -> Audio:
    """The recording of a clip, whether it was drawn for an epoch or not."""
    return clip.audio if isinstance(clip, DrawnClip) else clip


def clip_key(clip: Clip) -> str:
    """Key of a clip's features in the cache.

    From the file's path, size and time of change, so that a new recording is encoded anew.
    """
    ref = audio_ref(recording_of(clip))
    status = ref.file.stat()
    # Clips that are bytes or seconds of a larger file are told apart by name.
    part = "" if ref == AudioRef(ref.file) else f"|{ref.name}"
    content = f"{ref.file.resolve()}|{status.st_size}|{status.st_mtime_ns}{part}"
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def conversation_ids(backbone: Backbone, row: Row) -> tuple[list[int], list[int], list[Audio]]:
    """Token ids of a row in the backbone's chat template.

    Args:
        backbone: the language model.
        row: of a manifest.

    Returns:
        prompt ids with AUDIO placeholders up to the last answer; ids of that answer with the end
        token, unless it is unfinished (empty where the row has none); and the clips in the order
        of their placeholders.
    """
    items = list(row.turns)
    # A row may end with a question, which is then all prompt.
    answer = items.pop() if items and items[-1].role is Role.ASSISTANT else None
    # Only the user's audio enters the prompt; an assistant's is a target of other tasks.
    has_audio = [item.audio is not None and item.role is Role.USER for item in items]
    turns = [Turn(item.role.value, item.text, flag) for item, flag in zip(items, has_audio)]
    # The template is split where audio goes: a placeholder stands before each further piece.
    ids = [
        token
        for number, piece in enumerate(backbone.prompt(turns))
        for token in ([AUDIO] if number else []) + piece
    ]
    clips = [item.audio for item in items if item.audio is not None and item.role is Role.USER]
    if answer is None or not answer.text:
        return ids, [], clips
    end = [] if answer.extra.get(UNFINISHED, False) else [backbone.end_id]
    return ids, [*backbone.tokenize(answer.text), *end], clips


def unit_error(
    batches: Iterable[AnyBatch],
    pairs: Callable[[AnyBatch], Iterable[UnitPair]],
    scored_rows: int,
    codebooks: int = 1,
) -> dict[str, float]:
    """Unit error rate of generated speech as a task scores it.

    Args:
        batches: of validation.
        pairs: generates the units of a batch: each with those that were to be generated.
        scored_rows: rows after which to stop; batches are scored whole, so a few more may count.
        codebooks: K of the codec.
    """
    errors = units = rows = 0
    for batch in batches:
        if rows >= scored_rows:
            break
        for hypothesis, reference in pairs(batch):
            # Of several codebooks frame by frame, the sum over them.
            errors += sum(
                edit_distance(hypothesis[k::codebooks], reference[k::codebooks])
                for k in range(codebooks)
            )
            units += len(reference)
        rows += len(batch.row_ids)
    return {"unit_error": errors / max(1, units)}


def prompt_and_labels(
    prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Sequences of prompts followed by their targets.

    Args:
        prompts: ids of B prompts.
        targets: ids of B targets, which may be empty.

    Returns:
        ids [B, N], PAD-padded, and labels [B, N]: at each position the id that comes next where
        that is a target, IGNORE elsewhere.
    """
    # [B, N]; an id is predicted one position before it.
    ids = padded([[*prompt, *target] for prompt, target in zip(prompts, targets)], PAD)
    labels = padded(
        [
            [*[IGNORE] * (len(prompt) - 1), *target] if target else []
            for prompt, target in zip(prompts, targets)
        ],
        IGNORE,
    )
    N = ids.shape[1]
    # Labels are one shorter than ids, or empty: they are padded by N and cut to N.
    return ids, torch.nn.functional.pad(labels, (0, N), value=IGNORE)[:, :N]
