"""Spoken conversations as tensors: what the align, S2T and Echo tasks share."""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echox.backbones.base import Backbone, Turn
from echox.config import neutral
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.audio_ref import Audio, AudioRef, audio_ref
from echox.data.augmentation import Augmentation, AugmentationConfig, DrawnClip
from echox.data.cache import ArrayCache
from echox.data.indexed_rows import ChosenRows, JoinedRows
from echox.data.manifest import UNFINISHED, OnBroken, Role, Row, manifest_fingerprint, read_manifests
from echox.data.text import edit_distance
from echox.encoders.base import Encoder
from echox.errors import ConfigError, SignalError
from echox.models.speech_llm import AUDIO, IGNORE, PAD
from echox.number_format import name_of
from echox.signals import Features

log = logging.getLogger(__name__)

Clip = Audio | DrawnClip


@dataclass(kw_only=True, slots=True)
class RowsConfig:
    """Manifests of spoken conversations."""

    train: list[str] = field(default_factory=list)
    """Manifests to train on."""
    valid: list[str] = neutral(default_factory=list)
    """Manifests to validate on."""
    sample: dict[str, int] = field(default_factory=dict)
    """Rows drawn at most from a training manifest, by its file name; the others are used whole."""
    on_broken: OnBroken = neutral(OnBroken.skip)
    """What to do with broken rows: skip them, each reported with its line, or refuse the manifest."""
    allow_outside: bool = neutral(False)
    """Allow audio outside a manifest's folder."""
    max_audio_s: float = 30.0
    """Seconds of audio at most; longer clips are left out and counted."""
    augmentation: AugmentationConfig | None = None
    """Change training clips each time they are met: pace, rooms, noise, hidden features; null leaves them as they are."""


@dataclass(kw_only=True, slots=True)
class SpokenDataConfig(RowsConfig):
    """Manifests of spoken conversations whose features are cached."""

    batch_s: float = neutral(120.0)
    """Audio encoded at once when features are cached, seconds with padding."""


class SpokenRows:
    """Rows of manifests."""

    def __init__(self, config: RowsConfig) -> None:
        self.config = config
        self.augmentation = Augmentation(config.augmentation) if config.augmentation is not None else None

    def drawn(self, row_id: str, clips: Sequence[Audio], epoch: int) -> tuple[Clip, ...]:
        """A row's clips as training meets them in an epoch: as they are, unless they are augmented."""
        return tuple(clips) if self.augmentation is None else self.augmentation.drawn(row_id, clips, epoch)

    def load(self, clip: Clip, rate_hz: int) -> Tensor:
        """Samples [T] of a clip, changed where it is one that training meets.

        Raises:
            SignalError: it cannot be read, or holds NaN.
        """
        return self.augmentation.load(clip, rate_hz) if isinstance(clip, DrawnClip) else load_audio(clip, rate_hz)

    def paths(self, split: str) -> list[str]:
        """Manifests of a split."""
        return {"train": self.config.train, "valid": self.config.valid}[split]

    def rows(self, split: str) -> Sequence[Row]:
        """Rows of a split, none where no manifest is named for "valid"; a list, unless a manifest is large and its rows are read at access."""
        if split == "valid" and not self.config.valid:
            return []
        rows = read_manifests(self.paths(split), on_broken=self.config.on_broken, allow_outside=self.config.allow_outside)
        if isinstance(rows, tuple):
            left_out = self._left_out() if split == "train" else set()
            return [row for row in rows if row.id not in left_out]
        parts = rows.parts if isinstance(rows, JoinedRows) else [rows]
        sample = self.config.sample if split == "train" else {}
        names = [Path(path).name for path in self.paths(split)]
        parts = [drawn_rows(part, sample[name], name) if name in sample else part for name, part in zip(names, parts)]
        return parts[0] if len(parts) == 1 else JoinedRows(parts)

    def _left_out(self) -> set[str]:
        """Ids of the rows that `sample` does not draw; rows without an answer are the first to go."""
        left_out: set[str] = set()
        for path in self.config.train:
            wanted = self.config.sample.get(Path(path).name)
            if wanted is not None:
                rows = list(read_manifests([path], on_broken=OnBroken.skip, allow_outside=self.config.allow_outside))
                random.Random(Path(path).name).shuffle(rows)
                rows.sort(key=lambda row: row.answer is None or not row.answer.text)
                left_out |= {row.id for row in rows[wanted:]}
        return left_out

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of every manifest; those that share a name, as `manifest.jsonl` of two corpora, are told apart by their paths."""
        names = {path: Path(path).name for path in [*self.config.train, *self.config.valid]}
        shared = Counter(names.values())
        return {f"manifest:{name if shared[name] == 1 else path}": manifest_fingerprint(path) for path, name in names.items()}


def drawn_rows(rows: Sequence[Row], wanted: int, seed: str) -> ChosenRows:
    """So many rows at most of a large manifest, in its order; rows without an answer only where too few have one."""
    answered: list[int] = []
    others: list[int] = []
    for number in np.random.default_rng(list(seed.encode())).permutation(len(rows)):
        if len(answered) == wanted:
            break
        answer = rows[int(number)].answer
        (others if answer is None or not answer.text else answered).append(int(number))
    return ChosenRows(rows, np.sort(np.array([*answered, *others][:wanted], dtype=np.int64)))


class SpokenData(SpokenRows):
    """Rows of manifests, and the frozen encoder's features of their clips, cached on disk."""

    def __init__(self, config: SpokenDataConfig, cache_dir: Path) -> None:
        super().__init__(config)
        self.folder = cache_dir / "features"
        self._caches: dict[str, ArrayCache] = {}

    def cache_features(self, clips: Mapping[str, Sequence[Audio]], encoder: Encoder, *, bf16: bool, label: str) -> None:
        """Encode what is not cached yet, in batches of like length, and remember where it is.

        Args:
            clips: by split. Where augmentation changes how training clips sound, theirs are encoded at each step instead, and not here.
        Raises:
            SignalError: no clip can be decoded; or one cannot, and broken ones are refused.
        """
        self.cache = ArrayCache(self.folder, f"{encoder.fingerprint()}-{name_of(bf16)}")
        self._encode = partial(_encoded, encoder, bf16)
        self.rate_hz, self.sample_rate_hz, self.dim = encoder.frame_rate_hz, encoder.rate_hz, encoder.dim
        online = self.augmentation is not None and self.config.augmentation.changes_sound
        if online:
            log.warning("augmentation changes how clips sound, so training encodes them at every step instead of once; caches hold the others")
        headers = {clip_key(clip): (clip, audio_header(clip)) for split in clips.values() for clip in split}
        self._frames = {key: math.ceil(header.duration_s * self.rate_hz) for key, (_, header) in headers.items()}
        kept = dict.fromkeys(clip_key(clip) for split, found in clips.items() if not (online and split == "train") for clip in found)
        costs = [round(headers[key][1].duration_s * 100) for key in kept]

        def compute(keys: list[str]) -> list[Tensor]:
            heard = {key: samples for key in keys if (samples := self._decoded(headers[key][0], encoder.rate_hz)) is not None}
            features = self._encode(list(heard.values())) if heard else Features(torch.empty(0, 0, encoder.dim), torch.empty(0), self.rate_hz)
            rows = dict(zip(heard, (values[:length] for values, length in zip(features.values, features.lengths.tolist()))))
            # A clip of no frames stands for one that cannot be decoded, until its file changes.
            return [rows.get(key, torch.empty(0, encoder.dim, dtype=torch.bfloat16)) for key in keys]

        self.cache.fill(list(kept), compute, costs=costs, batch_cost=round(self.config.batch_s * 100), label=label)
        broken = [headers[key][0] for key in kept if not self.cache.length(key)]
        if broken and len(broken) == len(kept):
            load_audio(broken[0], encoder.rate_hz)  # says why
        if broken:
            log.warning("%d clips cannot be decoded and are left out, such as %s; 'echox-prepare validate' says why", len(broken), broken[0])

    def _decoded(self, clip: Audio, rate_hz: int) -> Tensor | None:
        """Samples of a clip; None where it is broken and the config skips what is."""
        try:
            return load_audio(clip, rate_hz)
        except SignalError as error:
            if self.config.on_broken is OnBroken.refuse:
                raise
            log.warning("%s; left out", error)
            return None

    def usable(self, clip: Audio) -> bool:
        """Whether a clip could be decoded and is not too long."""
        return 0 < self.frames(clip) <= self.config.max_audio_s * self.rate_hz

    def features(self, clips: Sequence[Clip]) -> Features:
        """Features of clips, padded to one batch [A, F, D] float32 on the CPU: cached ones, or those of clips as training meets them.

        Raises:
            ConfigError: clips would have to be encoded on a GPU in a process that loads data.
        """
        if not clips:
            return Features(torch.zeros(0, 1, self.dim), torch.zeros(0, dtype=torch.int64), self.rate_hz)
        drawn = [clip for clip in clips if isinstance(clip, DrawnClip)]
        plain = [clip.audio if isinstance(clip, DrawnClip) else clip for clip in clips]
        keys = list(map(clip_key, plain))
        if (drawn and self.augmentation.config.changes_sound) or not all(key in self.cache for key in keys):
            features = self._encode([self.load(clip, self.sample_rate_hz) for clip in clips]).to("cpu")
            features = Features(features.values.float(), features.lengths, features.rate_hz)
        else:
            values = [self.cache[key] for key in keys]
            lengths = torch.tensor([len(value) for value in values])
            features = Features(torch.nn.utils.rnn.pad_sequence(values, batch_first=True).float(), lengths, self.rate_hz)
        return self.augmentation.hidden(features, drawn) if drawn else features

    def frames(self, clip: Audio) -> int:
        """Frames of a clip; of one that is encoded at every step, as its length has them."""
        key = clip_key(clip)
        return self.cache.length(key) if key in self.cache else self._frames[key]


@torch.no_grad()
def _encoded(encoder: Encoder, bf16: bool, clips: Sequence[Tensor]) -> Features:
    """Clips [T_i] -> features, rounded to bfloat16 as caches keep them."""
    # An encoder of signal processing alone has no parameters; one without buffers either computes where the audio is.
    device = next((tensor.device for tensor in chain(encoder.parameters(), encoder.buffers())), torch.device("cpu"))
    if device.type == "cuda" and torch.utils.data.get_worker_info() is not None:
        raise ConfigError("augmented clips are encoded on the GPU as they are read, which other processes cannot do; set num_workers=0 in the stage's train")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        features = encoder(pad_waveforms(clips, encoder.rate_hz).to(device))
    return Features(features.values.bfloat16(), features.lengths, features.rate_hz)


def clip_key(clip: Audio) -> str:
    """What a clip's features are cached under: its name, size and time of change, so that a new recording is encoded anew."""
    ref = audio_ref(clip)
    about = ref.file.stat()
    part = "" if ref == AudioRef(ref.file) else f"|{ref.name}"
    return hashlib.sha256(f"{ref.file.resolve()}|{about.st_size}|{about.st_mtime_ns}{part}".encode()).hexdigest()[:24]


def conversation_ids(backbone: Backbone, row: Row) -> tuple[list[int], list[int], list[Audio]]:
    """A row in the backbone's chat template.

    Returns:
        prompt ids with AUDIO placeholders up to the last answer; that answer's ids with the end token, unless it is unfinished (empty
        where the row has none); the clips in the order of their placeholders.
    """
    turns = list(row.turns)
    answer = turns.pop() if turns and turns[-1].role is Role.ASSISTANT else None
    pieces = backbone.prompt([Turn(item.role.value, item.text, item.audio is not None and item.role is Role.USER) for item in turns])
    ids = [token for number, piece in enumerate(pieces) for token in ([AUDIO] if number else []) + piece]
    clips = [item.audio for item in turns if item.audio is not None and item.role is Role.USER]
    if answer is None or not answer.text:
        return ids, [], clips
    end = [] if answer.extra.get(UNFINISHED, False) else [backbone.end_id]
    return ids, [*backbone.tokenize(answer.text), *end], clips


def unit_distance(said: Sequence[int], wanted: Sequence[int], codebooks: int) -> int:
    """Edit distance of units; of K codebooks, frame after frame, the sum over codebooks."""
    return sum(edit_distance(said[k::codebooks], wanted[k::codebooks]) for k in range(codebooks))


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Ragged ints -> [B, max] int64; at least one column."""
    width = max(1, max(map(len, rows), default=0))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), width)


def prompt_and_labels(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [B, N] of prompts followed by targets, and labels [B, N]: at each position the id that comes next, IGNORE elsewhere."""
    ids = padded([[*prompt, *target] for prompt, target in zip(prompts, targets)], PAD)
    labels = [[*[IGNORE] * (len(prompt) - 1), *target] if target else [] for prompt, target in zip(prompts, targets)]
    return ids, torch.nn.functional.pad(padded(labels, IGNORE), (0, ids.shape[1]), value=IGNORE)[:, : ids.shape[1]]
