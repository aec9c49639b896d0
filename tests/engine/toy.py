"""A task small enough to train in a second: predict the next letter of ragged alphabets.

As a program, it trains in a folder and may send itself a signal on the way: `toy.py RUN_DIR
--signal 9 --at 7`. Several such runs, with `then` between them, follow each other in one process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echox.core.signals import Batch, Loss, Outputs
from echox.criteria.base import Criterion
from echox.engine.config import Precision, TrainConfig
from echox.engine.trainer import train
from echox.tasks.base import Examples, StageContext, Task, TaskConfig

LETTERS = 12
LONG = 8


@dataclass(kw_only=True, slots=True)
class ToyConfig(TaskConfig):
    rows: int = 40
    dropout: float = 0.2
    poisoned_row: str | None = None
    fingerprint: str = "letters-1"
    signal_at: dict[int, int] = field(default_factory=dict)  # training forward pass -> signal


@dataclass(frozen=True, slots=True)
class Letters(Batch):
    ids: Tensor  # [B, S] int64
    lengths: Tensor  # [B]


@dataclass(frozen=True, slots=True)
class LetterOutputs(Outputs):
    logits: Tensor  # [B, S - 1, LETTERS]


class Strings(Examples):
    def __init__(self, rows: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 13, (rows,), generator=random).tolist()
        self.rows = [(f"row-{i}", (torch.arange(n) + i) % LETTERS) for i, n in enumerate(lengths)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.rows[index]

    def cost(self, index: int) -> int:
        return len(self.rows[index][1])


class LetterModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, 8)
        self.hidden = nn.Linear(8, 16)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(16, LETTERS)
        self.only_long = nn.Linear(16, 16)
        self.never = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.dropout(self.hidden(self.embedding(ids)).relu())
        # A part that only some batches use, as ranks may differ in it.
        if (lengths > LONG).any():
            hidden = hidden + self.only_long(hidden) * (lengths > LONG)[:, None, None]
        return self.output(hidden)


class ToyTask(Task):
    passes = 0

    def build(self) -> nn.Module:
        return LetterModel(self.config.dropout)

    def trained_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("frozen")
        }

    def examples(self, split: str) -> Examples:
        return Strings(self.config.rows, seed=0) if split == "train" else Strings(8, seed=1)

    def collate(self, examples) -> Batch:
        names, strings = zip(*examples)
        ids = nn.utils.rnn.pad_sequence(list(strings), batch_first=True)
        lengths = torch.tensor([len(s) for s in strings])
        return Letters(names, int((lengths - 1).sum()), ids, lengths)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        if model.training:
            self.passes += 1
            if self.passes in self.config.signal_at:
                os.kill(os.getpid(), self.config.signal_at[self.passes])
        logits = model(batch.ids[:, :-1], batch.lengths)
        return LetterOutputs(
            logits * float("nan") if self.config.poisoned_row in batch.row_ids else logits
        )

    def score(self, model, batches) -> dict[str, float]:
        # Draws random numbers on purpose: validation must not disturb training.
        torch.rand(3)
        return {"rows": float(sum(len(batch.row_ids) for batch in batches()))}

    def data_fingerprints(self) -> dict[str, str]:
        return {"letters": self.config.fingerprint}


class NextLetter(Criterion):
    def forward(self, outputs: Outputs, batch: Batch) -> Loss:
        targets = batch.ids[:, 1:].clone()
        targets[torch.arange(targets.shape[1]) >= (batch.lengths - 1)[:, None]] = -100
        total = cross_entropy(
            outputs.logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="sum"
        )
        correct = (outputs.logits.argmax(-1) == targets).sum()
        return Loss(total, batch.count, {"accuracy": (correct, torch.tensor(batch.count))})


def toy_task(**settings) -> ToyTask:
    return ToyTask(
        ToyConfig(**settings), StageContext(parts=None, seed=0, cache_dir=Path("unused"))
    )


def toy_config(**settings) -> TrainConfig:
    defaults = dict(
        steps=12,
        batch_size=4,
        accumulation=2,
        lr=1e-2,
        save_every=5,
        log_every=2,
        validate_every=4,
        precision=Precision.fp32,
    )
    return TrainConfig(**defaults | settings)


def train_toy(
    run_dir: Path, task: ToyTask | None = None, *, takes_new_settings: bool = False, **settings
) -> Path:
    config = toy_config(**settings)
    return train(
        task or toy_task(),
        NextLetter(),
        config,
        run_dir=run_dir,
        stage="toy",
        seed=7,
        device=torch.device("cpu"),
        recipe_dict={"steps": config.steps},
        takes_new_settings=takes_new_settings,
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--signal", type=int)
    parser.add_argument("--at", type=int)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--no-clip", action="store_true")
    parser.add_argument("--split-batches", action="store_true")
    options = parser.parse_args(arguments)
    task = toy_task(
        dropout=options.dropout, signal_at={options.at: options.signal} if options.signal else {}
    )
    clip = {"grad_clip": None} if options.no_clip else {}
    every = {
        "accumulation": options.accumulation,
        "save_every": options.save_every,
        "split_batches": options.split_batches,
    }
    train_toy(options.run_dir, task, steps=options.steps, **every, **clip)


if __name__ == "__main__":
    for is_separator, run in itertools.groupby(sys.argv[1:], lambda argument: argument == "then"):
        if not is_separator:
            main(list(run))
