"""Training of the codec's three nets from clips of frame units, pitch and mel."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.unit_vocoder.mel import MelJudge, MelNet, deception_loss, feature_loss, judge_loss
from echox.codecs.unit_vocoder.prosody import Durations, Melody, duration_loss, melody_loss
from echox.progress import Bar
from echox.signals import valid_mask

AVERAGE_EVERY_STEPS = 50  # window of the loss that is shown
FINAL_RATE = 0.05  # share of the learning rate left at the end


@dataclass(frozen=True, slots=True)
class Clip:
    """What the nets learn from one recording."""

    units: Tensor  # [F] int64, a unit per encoder frame
    pitch_hz: Tensor  # [F * ratio] float32, 0 where unvoiced
    mel: Tensor  # [F * ratio, M] float16, log


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a net is trained."""

    steps: int
    batch: int  # clips
    rate: float  # peak learning rate
    limit_s: float  # the net is taken as it is when this time has passed


Autocast = Callable[[], AbstractContextManager]


def train_durations(net: Durations, clips: Sequence[Clip], effort: Effort, seed: int, autocast: Autocast) -> float:
    """Fit durations on whole recordings.

    Returns:
        the average loss of the last steps.
    """
    runs = [torch.unique_consecutive(clip.units, return_counts=True) for clip in clips]

    def loss(rows: list[int], share: float) -> Tensor:
        units, keep = _padded([runs[row][0] for row in rows])
        frames, _ = _padded([runs[row][1] for row in rows])
        with autocast():
            predicted = net(units, keep)
        return duration_loss(predicted, frames, keep)

    return _descend("durations", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


def train_melody(net: Melody, clips: Sequence[Clip], effort: Effort, crop_frames: int, seed: int, autocast: Autocast) -> float:
    """Fit the pitch on random crops; returns as `train_durations`."""
    places = torch.Generator().manual_seed(seed)

    def loss(rows: list[int], share: float) -> Tensor:
        crops = [_crop(clips[row], crop_frames, net.upsample.ratio, places) for row in rows]
        units, keep = _padded([crop.units for crop in crops])
        pitch_hz, fine_keep = _padded([crop.pitch_hz for crop in crops])
        with autocast():
            log_hz, voiced = net(units, keep)
        return melody_loss(log_hz, voiced, pitch_hz, fine_keep)

    return _descend("melody", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


def train_mel(
    net: MelNet, clips: Sequence[Clip], effort: Effort, crop_frames: int, judge: MelJudge, judge_from: float, judge_weight: float, seed: int, autocast: Autocast
) -> float:
    """Fit the mel on random crops: absolute error first, the judge beside it after the share `judge_from` of the effort; returns as `train_durations`."""
    every_mel = torch.cat([clip.mel for clip in clips]).float()
    net.mean.copy_(every_mel.mean(0))
    net.deviation.copy_(every_mel.std(0).clamp(min=1e-3))
    del every_mel
    ratio = net.upsample.ratio
    places = torch.Generator().manual_seed(seed)
    judge_optimiser = torch.optim.AdamW(judge.parameters(), effort.rate / 2, betas=(0.5, 0.9))

    def loss(rows: list[int], share: float) -> Tensor:
        crops = [_crop(clips[row], crop_frames, ratio, places) for row in rows]
        units, keep = _padded([crop.units for crop in crops])
        pitch_hz, fine_keep = _padded([crop.pitch_hz for crop in crops])
        mel = net.normalise(_padded([crop.mel.float() for crop in crops])[0])
        with autocast():
            made = net(units, pitch_hz, keep)
        shown = fine_keep[:, :, None]
        error = ((made - mel).abs() * shown).sum() / (shown.sum() * mel.shape[2])
        if share < judge_from:
            return error
        return error + judge_weight * _judged(judge, judge_optimiser, mel * shown, made * shown, autocast)

    return _descend("mel", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


@torch.no_grad()
def with_told_voicing(clip: Clip, melody: Melody) -> Clip:
    """The clip with true pitch, but voiced just where the melody net says so.

    True voicing tells which sound is spoken; a mel net that trusts it garbles sounds wherever the melody net errs.
    """
    told_hz = melody.pitch_hz(clip.units[None], torch.ones_like(clip.units[None], dtype=torch.bool))[0]
    pitch_hz = torch.where((told_hz > 0) & (clip.pitch_hz > 0), clip.pitch_hz, told_hz)
    return dataclasses.replace(clip, pitch_hz=pitch_hz)


def _judged(judge: MelJudge, optimiser: torch.optim.Optimizer, real: Tensor, made: Tensor, autocast: Autocast) -> Tensor:
    """Teach the judge once, then ask it about the made mels."""
    with autocast():
        real_scores, _ = judge(real)
        made_scores, _ = judge(made.detach())
    loss = judge_loss(real_scores, made_scores)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    judge.requires_grad_(False)
    with autocast():
        with torch.no_grad():
            _, real_seen = judge(real)
        scores, seen = judge(made)
    judge.requires_grad_(True)
    return deception_loss(scores) + feature_loss(real_seen, seen)


def _crop(clip: Clip, frames: int, ratio: int, generator: torch.Generator) -> Clip:
    start = int(torch.randint(max(1, len(clip.units) - frames + 1), (1,), generator=generator))
    fine = slice(start * ratio, (start + frames) * ratio)
    return Clip(clip.units[start : start + frames], clip.pitch_hz[fine], clip.mel[fine])


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows -> (right-padded with zeros [B, N, ...], bool [B, N])."""
    padded = pad_sequence(rows, batch_first=True)
    return padded, valid_mask(torch.tensor([len(row) for row in rows], device=padded.device), padded.shape[1])


def _shuffled(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers, every row once per round."""
    generator = torch.Generator().manual_seed(seed)
    rows: Iterator[int] = itertools.chain.from_iterable(torch.randperm(count, generator=generator).tolist() for _ in itertools.count())
    while True:
        yield list(itertools.islice(rows, batch))


def _descend(name: str, net: torch.nn.Module, loss_of: Callable[[list[int], float], Tensor], batches: Iterator[list[int]], effort: Effort) -> float:
    """AdamW with a warm-up and a cosine that reaches its end by steps or by time, whichever comes first."""
    optimiser = torch.optim.AdamW(net.parameters(), effort.rate, betas=(0.9, 0.98), weight_decay=0.01)
    recent: list[Tensor] = []
    note = None
    began_s = time.monotonic()
    with Bar(f"fitting {name}", effort.steps, unit="step") as bar:
        for step in range(effort.steps):
            share = _share(step / effort.steps, (time.monotonic() - began_s) / effort.limit_s)
            if share >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = effort.rate * min(1.0, (step + 1) / 50) * _cosine(share)
            loss = loss_of(next(batches), share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            recent = [*recent, loss.detach()][-AVERAGE_EVERY_STEPS:]
            if step % AVERAGE_EVERY_STEPS == AVERAGE_EVERY_STEPS - 1:
                note = f"loss {torch.stack(recent).mean():.3f}"
            bar.update(note=note)
    return float(torch.stack(recent).mean()) if recent else float("nan")


def _share(by_steps: float, by_time: float) -> float:
    """How much of the effort is done; the clock counts only where it runs ahead, so that a fit in good time is repeatable."""
    return by_time if by_time > by_steps + 0.02 else by_steps


def _cosine(share: float) -> float:
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * share)).item())
