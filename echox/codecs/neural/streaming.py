"""Chunks of a stream through a decoder: causal layers remember their inputs, other convolutions see some frames twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn


class CausalWalk:
    """One chunk's way through causal layers.

    Args:
        past: what each layer left behind the chunk before, in the order of the layers; None at a stream's beginning.
    """

    def __init__(self, past: Sequence[Any] | None) -> None:
        self._past: Iterator[Any] | None = None if past is None else iter(past)
        self.left: list[Any] = []  # for the next chunk

    def through(self, layers: Sequence[nn.Module], x: Tensor) -> Tensor:
        """x [1, C, N] -> [1, C', N'], as the layers give for this part of the whole stream."""
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        encodec, mimi = transformers.models.encodec.modeling_encodec, transformers.models.mimi.modeling_mimi
        if isinstance(layer, (encodec.EncodecConv1d, mimi.MimiConv1d)):
            return self._convolved(layer, x)
        if isinstance(layer, (encodec.EncodecConvTranspose1d, mimi.MimiConvTranspose1d)):
            return self._upsampled(layer, x)
        if isinstance(layer, (encodec.EncodecResnetBlock, mimi.MimiResnetBlock)):
            return self.through(layer.block, x) + self._layer(layer.shortcut, x)
        if isinstance(layer, encodec.EncodecLSTM):
            return self._recurrent(layer, x)
        return layer(x)  # frame by frame

    def _taken(self) -> Any:
        return None if self._past is None else next(self._past)

    def _convolved(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The inputs that a kernel looks back on are remembered; before the first come those that the layer pads with."""
        before, reach = self._taken(), int(layer.padding_total)
        x = layer._pad1d(x, (reach, 0), mode=layer.pad_mode) if before is None else torch.cat([before, x], dim=-1)
        self.left.append(x[..., x.shape[-1] - reach :])
        return layer.conv(x)

    def _upsampled(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Inputs whose outputs reach into this chunk are given once more, and what they alone make is cut off."""
        before, stride = self._taken(), layer.conv.stride[0]
        again = math.ceil(layer.conv.kernel_size[0] / stride) - 1
        joined = x if before is None else torch.cat([before, x], dim=-1)
        self.left.append(joined[..., max(0, joined.shape[-1] - again) :])
        return layer(joined)[..., (joined.shape[-1] - x.shape[-1]) * stride :]

    def _recurrent(self, layer: nn.Module, x: Tensor) -> Tensor:
        made, state = layer.lstm(x.permute(2, 0, 1), self._taken())
        self.left.append(state)
        return made.permute(1, 2, 0) + x


@dataclass(frozen=True, slots=True)
class Window:
    """Frames of a stream that are still needed."""

    codes: Tensor  # [1, K, F]
    spoken: int  # of these frames, from the first


def windowed(codes: Tensor, past: Window | None, last: bool, *, sound: Callable[[Tensor], Tensor], reach: int, hop_samples: int) -> tuple[Tensor, Window]:
    """The next samples of a decoder whose frames are heard up to `reach` frames before and after: it is given those once more.

    Args:
        codes: [1, K, F]; sound: codes -> samples [1, T].
    Returns:
        samples [T] of the frames that no later one changes, all of them if `last`.
    """
    codes, spoken = (codes, 0) if past is None else (torch.cat([past.codes, codes], dim=-1), past.spoken)
    settled = codes.shape[-1] if last else max(spoken, codes.shape[-1] - reach)
    samples = codes.new_zeros(0, dtype=torch.float32)
    if settled > spoken:
        made = sound(codes)[0, spoken * hop_samples : settled * hop_samples]
        samples = torch.nn.functional.pad(made, (0, (settled - spoken) * hop_samples - len(made)))
    first = max(0, settled - reach)
    return samples, Window(codes[..., first:], settled - first)


def dac_reach(decoder: nn.Module) -> int:
    """Frames to either side that a frame of a DAC decoder is heard in: kernels of 7, at every rate of the way up."""
    frames, rate = 3.0, 1
    for block in decoder.block:
        frames += 1 / rate  # the transposed kernel, twice its stride
        rate *= block.conv_t1.stride[0]
        units = (block.res_unit1, block.res_unit2, block.res_unit3)
        frames += sum(unit.conv1.dilation[0] * (unit.conv1.kernel_size[0] // 2) for unit in units) / rate
    return math.ceil(frames + 3 / rate)
