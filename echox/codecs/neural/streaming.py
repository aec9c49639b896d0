"""Chunks of a stream through a decoder.

Causal layers keep the inputs that they still need; decoders with other convolutions get the frames
of their receptive field a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

if TYPE_CHECKING:
    # Not at run time: transformers imports a model's code when it is named.
    from transformers.models.dac.modeling_dac import DacDecoder
    from transformers.models.encodec.modeling_encodec import (
        EncodecConv1d,
        EncodecConvTranspose1d,
        EncodecLSTM,
    )
    from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d


class CausalPass:
    """One chunk's pass through causal layers.

    Args:
        past: `states` of the last chunk, one per stateful layer in the order of the layers; None
            at the beginning of a stream.
    """

    def __init__(self, past: Sequence[Any] | None) -> None:
        self._past: Iterator[Any] | None = None if past is None else iter(past)
        self.states: list[Any] = []  # for the next chunk

    def run(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Compute the layers' output for the chunk [1, C, N] as a part of the whole stream.

        Returns:
            [1, C', N'].
        """
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        # By attribute: transformers imports a model's code when it is named.
        models = transformers.models
        encodec, mimi = models.encodec.modeling_encodec, models.mimi.modeling_mimi
        if isinstance(layer, (encodec.EncodecConv1d, mimi.MimiConv1d)):
            return self._conv(layer, x)
        if isinstance(layer, (encodec.EncodecConvTranspose1d, mimi.MimiConvTranspose1d)):
            return self._transposed_conv(layer, x)
        if isinstance(layer, (encodec.EncodecResnetBlock, mimi.MimiResnetBlock)):
            return self.run(layer.block, x) + self._layer(layer.shortcut, x)
        if isinstance(layer, encodec.EncodecLSTM):
            return self._lstm(layer, x)
        return layer(x)  # activations, which have no state

    def _next_past(self) -> Any:
        return None if self._past is None else next(self._past)

    def _conv(self, layer: EncodecConv1d | MimiConv1d, x: Tensor) -> Tensor:
        """Convolution whose left context is kept; the layer's own padding before the first."""
        past, reach = self._next_past(), int(layer.padding_total)
        if past is None:
            x = layer._pad1d(x, (reach, 0), mode=layer.pad_mode)
        else:
            x = torch.cat([past, x], dim=-1)
        self.states.append(x[..., x.shape[-1] - reach :])
        # Not the layer itself, which would pad once more.
        return layer.conv(x)

    def _transposed_conv(
        self, layer: EncodecConvTranspose1d | MimiConvTranspose1d, x: Tensor
    ) -> Tensor:
        """Transposed convolution that gets the inputs once more whose outputs reach this chunk.

        The outputs of those inputs alone are cut off.
        """
        past, stride = self._next_past(), layer.conv.stride[0]
        overlap = math.ceil(layer.conv.kernel_size[0] / stride) - 1  # inputs
        joined = x if past is None else torch.cat([past, x], dim=-1)
        self.states.append(joined[..., max(0, joined.shape[-1] - overlap) :])
        return layer(joined)[..., (joined.shape[-1] - x.shape[-1]) * stride :]

    def _lstm(self, layer: EncodecLSTM, x: Tensor) -> Tensor:
        output, state = layer.lstm(x.permute(2, 0, 1), self._next_past())  # [N, 1, C]
        self.states.append(state)
        return output.permute(1, 2, 0) + x


@dataclass(frozen=True, slots=True)
class Window:
    """Frames of a stream that are still needed."""

    codes: Tensor  # [1, K, F]
    decoded_frames: int  # how many of these frames, from the first, already are samples


def decode_window(
    codes: Tensor,
    past: Window | None,
    last: bool,
    *,
    decode: Callable[[Tensor], Tensor],
    reach: int,
    hop_samples: int,
) -> tuple[Tensor, Window]:
    """Decode the next frames of a stream by a decoder with a bounded receptive field.

    Args:
        codes: [1, K, F].
        past: state that the last call returned; None for the first chunk.
        last: no more frames follow.
        decode: codes [1, K, F] -> samples [1, T].
        reach: frames before and after its own that a frame's samples depend on.
        hop_samples: samples per frame.

    Returns:
        samples [T] of the frames that no later one changes, of all frames if `last`; the state for
        the next chunk.
    """
    done = 0
    if past is not None:
        codes, done = torch.cat([past.codes, codes], dim=-1), past.decoded_frames
    F = codes.shape[-1]
    final = F if last else max(done, F - reach)
    samples = codes.new_zeros(0, dtype=torch.float32)
    if final > done:
        decoded = decode(codes)[0, done * hop_samples : final * hop_samples]
        # A decoder may return a few samples less than its whole frames.
        samples = torch.nn.functional.pad(decoded, (0, (final - done) * hop_samples - len(decoded)))
    first = max(0, final - reach)
    return samples, Window(codes[..., first:], final - first)


def dac_reach(decoder: DacDecoder) -> int:
    """Return the receptive field of a DAC decoder: frames on either side of a frame's own.

    Every stage has kernels of 7, and the stages' rates rise from that of the frames.
    """
    frames, rate = 3.0, 1  # the first convolution; samples of the stage per frame
    for block in decoder.block:
        frames += 1 / rate  # the transposed kernel, twice its stride
        rate *= _conv(block, "conv_t1").stride[0]
        units = [_conv(block, f"res_unit{number}.conv1") for number in (1, 2, 3)]
        width = sum(conv.dilation[0] * (conv.kernel_size[0] // 2) for conv in units)
        frames += width / rate
    return math.ceil(frames + 3 / rate)  # the last convolution


def _conv(block: nn.Module, path: str) -> nn.Conv1d | nn.ConvTranspose1d:
    conv = block.get_submodule(path)
    if not isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d)):
        raise TypeError(f"{path} of a DAC's {type(block).__name__} is no convolution")
    return conv
