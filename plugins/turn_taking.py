"""A worked example of a task and its criterion: detection of the end of a turn, frame by frame.

    echox-train recipe=turn_taking turn_taking.task.data.train=[turns.jsonl]

Every user turn with audio is one example. Its last frames are the end of the turn, all frames
before are not. The classifier is causal: a frame depends on those before it alone, as in a live
conversation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.core.config import refuse_below
from echox.core.errors import ConfigError, ManifestError
from echox.core.signals import Batch, Features, Loss, Outputs, valid_mask
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig
from echox.data.manifest import Role
from echox.encoders.base import ENCODERS, Encoder
from echox.tasks.base import TASKS, AuditBatch, Examples, Outline, StageContext, Task, TaskConfig
from echox.tasks.conversations import Clip, SpokenData, SpokenDataConfig

NO_FRAME = -1.0  # the label of a frame that is padding
FLOAT_BYTES = 4


@dataclass(kw_only=True, slots=True)
class TurnTakingConfig(TaskConfig):
    """End of turn or not, from the frozen encoder's frames."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations; each user turn with audio is a whole turn."""
    width: int = 64
    """Channels of the recurrent classifier."""
    end_s: float = 0.2
    """Seconds before the end of a clip in which the turn counts as finished."""

    def __post_init__(self) -> None:
        if self.width < 1 or not self.end_s > 0:
            raise ConfigError(
                f"width and end_s must be more than 0, and are {self.width} and {self.end_s}"
            )


@dataclass(frozen=True, slots=True)
class TurnBatch(Batch):
    """Features of A turns, with a label for each frame."""

    features: Features  # A clips
    labels: Tensor  # [A, F] 1 where the turn is finished, 0 before, NO_FRAME in the padding


@dataclass(frozen=True, slots=True)
class TurnOutputs(Outputs):
    """Scores of real frames, all clips one after the other."""

    logits: Tensor  # [N] of "finished"
    labels: Tensor  # [N] float, 0 or 1

    @classmethod
    def example(cls, seed: int, rows: int) -> tuple[TurnOutputs, Batch]:
        """Return random outputs of clips of four frames, N = 4 * `rows`, for the contract."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(4 * rows, generator=generator)
        labels = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(rows)
        row_ids = tuple(f"row-{number}" for number in range(rows))
        return cls(logits, labels), Batch(row_ids, max(1, 4 * rows))


@dataclass(frozen=True, slots=True)
class _Turn:
    row_id: str
    clip: Clip


class Turns(Examples[_Turn]):
    """User turns with audio; the cost of one is its frames."""

    def __init__(self, turns: Sequence[_Turn], data: SpokenData) -> None:
        self.turns, self.data = turns, data

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: int) -> _Turn:
        return self.turns[index]

    def at(self, index: int, epoch: int) -> _Turn:
        """Return a turn whose clip is augmented for this epoch, where the config asks for it."""
        turn = self.turns[index]
        clip = self.data.drawn(turn.row_id, [turn.clip], epoch)[0]
        return dataclasses.replace(turn, clip=clip)

    def cost(self, index: int) -> int:
        """Return the encoder frames of a turn."""
        return self.data.frames(self.turns[index].clip)


class TurnClassifier(nn.Module):
    """A GRU over the frozen encoder's frames, with one score a frame."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.norm = nn.LayerNorm(encoder.dim)
        self.recurrent = nn.GRU(encoder.dim, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def scores(self, features: Features) -> Tensor:
        """Compute the logits [A, F] of "finished" from frames [A, F, D].

        Padding is after a clip, so that it has no effect on real frames.
        """
        # Still it is zeroed: of NaN in the padding, the gradient would be NaN too.
        mask = valid_mask(features.lengths, features.values.shape[1])
        states, _ = self.recurrent(self.norm(features.values.where(mask[..., None], 0)))
        return self.head(states)[..., 0]


@TASKS.register("turn_taking", TurnTakingConfig)
class TurnTakingTask(Task[TurnClassifier, TurnBatch]):
    """Training of a classifier of the end of a turn, on the frozen encoder's frames."""

    needs = ("encoder",)

    def __init__(self, config: TurnTakingConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)

    def build(self) -> TurnClassifier:
        """Build the classifier on a pretrained encoder.

        Raises:
            ManifestError: no user turn of the training manifests has audio.
        """
        self.splits = {split: self._turns(split) for split in ("train", "valid")}
        return TurnClassifier(ENCODERS.build(self.context.parts.encoder), self.config.width)

    def _turns(self, split: str) -> list[_Turn]:
        turns = [
            _Turn(row.id, item.audio)
            for row in self.data.rows(split)
            for item in row.turns
            if item.role is Role.USER and item.audio is not None
        ]
        if split == "train" and not turns:
            raise ManifestError(
                f"no user turn of {', '.join(self.config.data.train)} has audio; give them some"
            )
        return turns

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        """Return the sizes of encoder and classifier on the meta device."""
        config = self.context.parts.encoder
        encoder = ENCODERS.entry_of(config).implementation.outline(config)
        with torch.device("meta"):
            model = TurnClassifier(encoder, self.config.width)
        return Outline(
            model=model,
            parts={"encoder": ["encoder"], "classifier": ["norm", "recurrent", "head"]},
            cost_unit="encoder frames",
            longest_cost=round(self.config.data.max_audio_s * encoder.frame_rate_hz),
            # A GRU keeps its input, three gates and its state for the backward pass.
            activations={"classifier": FLOAT_BYTES * (encoder.dim + 4 * self.config.width)},
        )

    def trained_state_dict(self, model: TurnClassifier) -> dict[str, Tensor]:
        # The encoder is frozen, and loaded by its own config.
        state = model.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("encoder.")}

    def prepare(self, model: TurnClassifier) -> None:
        clips = {split: [turn.clip for turn in turns] for split, turns in self.splits.items()}
        self.data.cache_features(
            clips, model.encoder, bf16=self.context.bf16, label="encoding turns"
        )

    def examples(self, split: str) -> Turns:
        usable = [turn for turn in self.splits[split] if self.data.usable(turn.clip)]
        return Turns(usable, self.data)

    def collate(self, examples: Sequence[_Turn]) -> TurnBatch:
        """Pad A turns into one batch, with labels [A, F]."""
        features = self.data.require_features([turn.clip for turn in examples])
        positions = torch.arange(features.values.shape[1])  # [F]
        ends = features.lengths[:, None]  # [A, 1]
        end_frames = max(1, round(self.config.end_s * features.rate_hz))
        is_end = positions >= ends - end_frames  # [A, F]
        labels = is_end.float().where(positions < ends, NO_FRAME)
        row_ids = tuple(turn.row_id for turn in examples)
        return TurnBatch(row_ids, max(1, int(features.lengths.sum())), features, labels)

    def forward(self, model: TurnClassifier, batch: TurnBatch) -> TurnOutputs:
        """Compute the logits of the real frames [N]."""
        is_real = batch.labels != NO_FRAME
        return TurnOutputs(model.scores(batch.features)[is_real], batch.labels[is_real])

    def score(
        self, model: TurnClassifier, batches: Callable[[], Iterable[TurnBatch]]
    ) -> dict[str, float]:
        """Return the shares of turns whose end is detected, and of those interrupted too early."""
        turns = detected = early = 0
        for batch in batches():
            is_finished = model.scores(batch.features) > 0  # [A, F]
            # Padding has neither label, so it counts for none of the two.
            detected += int((is_finished & (batch.labels == 1)).any(1).sum())
            early += int((is_finished & (batch.labels == 0)).any(1).sum())
            turns += len(batch.row_ids)
        return {"end_found": detected / max(1, turns), "interrupted": early / max(1, turns)}

    def audit_batch(self, model: TurnClassifier, batch: TurnBatch) -> AuditBatch:
        """Return the number of end frames of each turn as a note, and the padding as views."""
        lengths = zip(batch.row_ids, (batch.labels == 1).sum(1).tolist(), strict=True)
        notes = [
            f"{row}: the turn is finished in its last {frames} frames" for row, frames in lengths
        ]
        frames = batch.features.values
        padding = [row[length:] for row, length in zip(frames, batch.features.lengths, strict=True)]
        return AuditBatch(padding=padding, notes=notes)

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


@dataclass(kw_only=True, slots=True)
class TurnTakingCriterionConfig(CriterionConfig):
    """Binary cross-entropy of every frame.

    Raises:
        ConfigError: a number is out of range.
    """

    finished_weight: float = 5.0
    """Weight of a frame in which the turn is finished; such frames are few."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "finished_weight")


@CRITERIA.register("turn_taking", TurnTakingCriterionConfig)
class TurnTakingCriterion(Criterion[TurnOutputs]):
    """Binary cross-entropy, summed over frames."""

    def __init__(self, config: TurnTakingCriterionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: TurnOutputs, batch: Batch) -> Loss:
        """Compute the loss, summed over N frames, with the accuracy of the frames."""
        # A sum over thousands of frames would lose digits in bfloat16.
        logits, labels = outputs.logits.float(), outputs.labels.float()
        weight = logits.new_tensor(self.config.finished_weight)
        total = F.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weight, reduction="sum"
        )
        correct = ((logits > 0) == (labels > 0.5)).sum()
        parts = {"accuracy": (correct, correct.new_tensor(labels.numel()))}
        return Loss(total, batch.count, parts)
