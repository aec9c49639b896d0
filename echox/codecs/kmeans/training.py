"""Training of the acoustic model's three networks from clips of frame units, pitch and mel."""

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

from echox.codecs.kmeans.mel import (
    MelDiscriminator,
    MelNet,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from echox.codecs.kmeans.prosody import DurationNet, PitchNet, duration_loss, pitch_loss
from echox.core.progress import Bar
from echox.core.signals import valid_mask

AVERAGE_EVERY_STEPS = 50  # window of the loss that is shown
WARMUP_STEPS = 50
FINAL_RATE = 0.05  # share of the learning rate left at the end
CLOCK_LEAD = 0.02  # share by which the time limit has to run ahead of the steps before it counts


@dataclass(frozen=True, slots=True)
class Clip:
    """Training data of one recording."""

    units: Tensor  # [F] int64, a unit per encoder frame
    pitch_hz: Tensor  # [F * ratio] float32, 0 where unvoiced
    mel: Tensor  # [F * ratio, M] float16, log


@dataclass(frozen=True, slots=True)
class Effort:
    """Length and learning rate of one network's training."""

    steps: int
    batch: int  # clips
    rate: float  # peak learning rate
    limit_s: float  # training ends when this time has passed, however many steps that was


@dataclass(frozen=True, slots=True)
class Adversary:
    """The discriminator of the mel training."""

    net: MelDiscriminator
    start: float  # share of the training after which it joins; 1 or more leaves it out
    weight: float  # of its losses beside the absolute error


Autocast = Callable[[], AbstractContextManager]


def train_durations(
    net: DurationNet, clips: Sequence[Clip], effort: Effort, *, seed: int, autocast: Autocast
) -> None:
    """Train the duration network in place on whole recordings.

    Args:
        net, clips: on one device.
        effort: length of the training.
        seed: of the batches.
        autocast: makes the context of the forward passes.
    """
    # Each run of equal units is one merged unit [U] and its frames [U].
    runs = [torch.unique_consecutive(clip.units, return_counts=True) for clip in clips]

    def loss(indices: list[int], share: float) -> Tensor:
        units, keep = _padded([runs[index][0] for index in indices])
        frames, _ = _padded([runs[index][1] for index in indices])
        with autocast():
            predicted = net(units, keep)
        return duration_loss(predicted, frames, keep)

    _descend("durations", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


def train_pitch(
    net: PitchNet,
    clips: Sequence[Clip],
    effort: Effort,
    *,
    crop_frames: int,
    seed: int,
    autocast: Autocast,
) -> None:
    """Train the pitch network in place on random crops.

    Args:
        net, clips: on one device.
        effort: length of the training.
        crop_frames: encoder frames of a crop.
        seed: of the batches and the crops.
        autocast: makes the context of the forward passes.
    """
    positions = torch.Generator().manual_seed(seed)

    def loss(indices: list[int], share: float) -> Tensor:
        crops = [_crop(clips[i], crop_frames, net.upsample.ratio, positions) for i in indices]
        units, keep = _padded([crop.units for crop in crops])
        pitch_hz, fine_keep = _padded([crop.pitch_hz for crop in crops])
        with autocast():
            log_hz, voiced = net(units, keep)
        return pitch_loss(log_hz, voiced, pitch_hz, fine_keep)

    # "melody" is the phase's name in the work folder and in the metrics too.
    _descend("melody", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


def train_mel(
    net: MelNet,
    clips: Sequence[Clip],
    effort: Effort,
    *,
    crop_frames: int,
    adversary: Adversary,
    seed: int,
    autocast: Autocast,
) -> None:
    """Train the mel network in place on random crops: absolute error, later a discriminator too.

    Args:
        net, clips: on one device.
        effort: length of the training.
        crop_frames: encoder frames of a crop.
        adversary: the discriminator, trained in place.
        seed: of the batches and the crops.
        autocast: makes the context of the forward passes.
    """
    _set_statistics(net, clips)
    positions = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(adversary.net.parameters(), effort.rate / 2, betas=(0.5, 0.9))

    def loss(indices: list[int], share: float) -> Tensor:
        crops = [_crop(clips[i], crop_frames, net.upsample.ratio, positions) for i in indices]
        units, keep = _padded([crop.units for crop in crops])
        pitch_hz, fine_keep = _padded([crop.pitch_hz for crop in crops])
        mel = net.normalise(_padded([crop.mel.float() for crop in crops])[0])
        with autocast():
            generated = net(units, pitch_hz, keep)
        mask = fine_keep[:, :, None]  # [B, N, 1]
        error = ((generated - mel).abs() * mask).sum() / (mask.sum() * mel.shape[2])
        # Against mels of an untrained network the discriminator would win at once.
        if share < adversary.start:
            return error
        return error + adversary.weight * _adversarial_loss(
            adversary.net, optimiser, mel * mask, generated * mask, autocast
        )

    _descend("mel", net, loss, _shuffled(len(clips), effort.batch, seed), effort)


def _set_statistics(net: MelNet, clips: Sequence[Clip]) -> None:
    """Set mean and deviation of each mel bin over all clips."""
    frames = torch.cat([clip.mel for clip in clips]).float()  # [N, M]
    net.mean.copy_(frames.mean(0))
    # A bin above the recordings' bandwidth is constant, and must not be divided by 0.
    net.deviation.copy_(frames.std(0).clamp(min=1e-3))


@torch.no_grad()
def with_predicted_voicing(clip: Clip, pitch_net: PitchNet) -> Clip:
    """Return the clip with true pitch, but voiced exactly where the pitch network predicts it.

    True voicing reveals which sound is spoken; a mel network that relies on it garbles sounds
    wherever the pitch network errs.
    """
    units = clip.units[None]
    predicted_hz = pitch_net.pitch_hz(units, torch.ones_like(units, dtype=torch.bool))[0]
    both_voiced = (predicted_hz > 0) & (clip.pitch_hz > 0)
    pitch_hz = torch.where(both_voiced, clip.pitch_hz, predicted_hz)
    return dataclasses.replace(clip, pitch_hz=pitch_hz)


def _adversarial_loss(
    discriminator: MelDiscriminator,
    optimiser: torch.optim.Optimizer,
    real: Tensor,
    generated: Tensor,
    autocast: Autocast,
) -> Tensor:
    """Take one step of the discriminator, then score the generated mels [B, N, M] with it."""
    with autocast():
        real_scores, _ = discriminator(real)
        generated_scores, _ = discriminator(generated.detach())
    loss = discriminator_loss(real_scores, generated_scores)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    # Its weights need no gradients of the generator's loss, which only passes through.
    discriminator.requires_grad_(False)
    with autocast():
        with torch.no_grad():
            _, real_activations = discriminator(real)
        scores, activations = discriminator(generated)
    discriminator.requires_grad_(True)
    return generator_loss(scores) + feature_loss(real_activations, activations)


def _crop(clip: Clip, frames: int, ratio: int, generator: torch.Generator) -> Clip:
    """A random crop of so many encoder frames; the whole clip where it is shorter."""
    start = int(torch.randint(max(1, len(clip.units) - frames + 1), (1,), generator=generator))
    fine = slice(start * ratio, (start + frames) * ratio)
    return Clip(clip.units[start : start + frames], clip.pitch_hz[fine], clip.mel[fine])


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [N, ...] -> (right-padded with zeros [B, N, ...], bool [B, N])."""
    padded = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, valid_mask(lengths, padded.shape[1])


def _shuffled(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices, each once per epoch; a batch may span two epochs."""
    generator = torch.Generator().manual_seed(seed)
    indices: Iterator[int] = itertools.chain.from_iterable(
        torch.randperm(count, generator=generator).tolist() for _ in itertools.count()
    )
    while True:
        yield list(itertools.islice(indices, batch))


def _descend(
    name: str,
    net: torch.nn.Module,
    loss_of: Callable[[list[int], float], Tensor],
    batches: Iterator[list[int]],
    effort: Effort,
) -> None:
    """AdamW with a warm-up and a cosine that ends by steps or by time, whichever comes first.

    Args:
        name: label of the progress bar.
        net: trained in place.
        loss_of: indices of a batch and the finished share of the training -> loss [].
        batches: indices of each batch.
        effort: length of the training.
    """
    optimiser = torch.optim.AdamW(
        net.parameters(), effort.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    recent: list[Tensor] = []  # on the device: reading a loss would wait for it at every step
    note = None
    began_s = time.monotonic()
    with Bar(f"fitting {name}", effort.steps, unit="step") as bar:
        for step in range(effort.steps):
            by_time = (time.monotonic() - began_s) / effort.limit_s
            share = _finished_share(step / effort.steps, by_time)
            if share >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = effort.rate * min(1.0, (step + 1) / WARMUP_STEPS) * _cosine(share)
            loss = loss_of(next(batches), share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            recent = [*recent, loss.detach()][-AVERAGE_EVERY_STEPS:]
            if (step + 1) % AVERAGE_EVERY_STEPS == 0:
                note = f"loss {torch.stack(recent).mean():.3f}"
            bar.update(note=note)


def _finished_share(by_steps: float, by_time: float) -> float:
    """The finished share of a training.

    The clock counts only where it runs ahead, so that a fit that is fast enough is repeatable.
    """
    return by_time if by_time > by_steps + CLOCK_LEAD else by_steps


def _cosine(share: float) -> float:
    """Factor of the learning rate: 1 at the beginning, `FINAL_RATE` at the end."""
    # torch's float32 cosine: `math.cos` would round learning rates, and so fits, otherwise.
    cosine = torch.cos(torch.tensor(torch.pi * share)).item()
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + cosine)
