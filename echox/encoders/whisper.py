"""The Whisper encoder: log-mel spectrogram, two convolutions, transformer layers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.assets.shapes import missing_weights, untrained
from echox.core.config import refuse_below
from echox.core.errors import ConfigError, SignalError
from echox.core.signals import Features, Waveform, valid_mask
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.encoders.whisper_weights import load_encoder

RATE_HZ = 16_000
HOP_SAMPLES = 160
FFT_SAMPLES = 400
WINDOW_FRAMES = 3_000  # mel frames in the 30 s Whisper was trained on


@dataclass(kw_only=True, slots=True)
class WhisperConfig(EncoderConfig):
    """Whisper's encoder, frozen unless `train`, by catalogue name, hub id or local folder.

    Raises:
        ConfigError: a number is out of range.
    """

    weights: str = "whisper_base"
    """Catalogue name, hub id or local folder of the weights, Soundwave's too, which holds one;
    "random" builds a small untrained encoder for tests, "random:NAME" that model's true shapes
    untrained, for speed work."""
    layers: int | None = None
    """Transformer layers to run; null runs all of them and the final norm, fewer give the states
    of that layer."""
    also_layers: list[int] = field(default_factory=list)
    """Layers before the last one whose states, normalized, are appended to its channels: the first
    is 1. With the fourth of the base model's six an adapter for the demo made a tenth fewer token
    errors early in training; features take as much more memory."""
    pad_to_window: bool = False
    """Pad every clip to the 30 s window of Whisper's training; off, a clip costs only its own
    length."""
    tail_s: float = 0.0
    """Seconds of silence encoded after each clip and cut off again; half a second brings the states
    of clips of a few seconds nearer to those of Whisper's 30 s window (mean cosine on a dozen clips
    0.94 instead of 0.91)."""
    random_dim: int = 32
    """Channels of the random encoder."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "random_dim")
        if not self.tail_s >= 0:
            raise ConfigError(f"encoder.tail_s is {self.tail_s}; use 0 or more seconds")
        if self.layers is not None and self.layers < 1:
            raise ConfigError(
                f"encoder.layers is {self.layers}; use 1 or more, or null for all layers"
            )
        is_ascending = self.also_layers == sorted(set(self.also_layers))
        if not is_ascending or min(self.also_layers, default=1) < 1:
            raise ConfigError(
                f"encoder.also_layers is {self.also_layers}; list each layer once, from 1 on, in "
                "ascending order"
            )


@ENCODERS.register("whisper", WhisperConfig)
class WhisperEncoder(Encoder):
    """Whisper's encoder on unpadded clips, 50 frames/s; 30 s windows of longer audio are joined.

    On a clip of exactly 30 s it equals the original. On a shorter one it sees no padding, which
    suits a trained adapter but not Whisper's own decoder; `pad_to_window` restores the original.

    Source: Radford et al. 2022, arXiv:2212.04356, section 2.2.
    """

    mel_filters: Tensor
    hann: Tensor

    rate_hz = RATE_HZ
    frame_rate_hz = 50.0
    window_s = WINDOW_FRAMES * HOP_SAMPLES / RATE_HZ
    trainable = True

    def __init__(self, config: WhisperConfig) -> None:
        """Load the weights, or build the random model that `config.weights` asks for.

        Raises:
            AssetError: the weights are missing, damaged or not a Whisper's.
            ConfigError: the model has fewer layers than the config names.
        """
        super().__init__()
        self.config = config
        self.encoder, mel_filters = load_encoder(config.weights, config.random_dim)
        self.encoder.requires_grad_(config.train).eval()
        count = _layer_count(config, len(self.encoder.layers))
        # The final norm was trained on the last layer's states only.
        self.apply_final_norm = count == len(self.encoder.layers)
        self.encoder.layers = self.encoder.layers[:count]
        # Positions are sines, which Whisper's own training left alone too.
        self.encoder.embed_positions.requires_grad_(False)
        if not self.apply_final_norm:
            self.encoder.layer_norm.requires_grad_(False)  # it has no effect
        self.dim = self.encoder.config.d_model * (1 + len(config.also_layers))
        # Not persistent: both are computed anew at every load, so checkpoints need not hold them.
        self.register_buffer("mel_filters", mel_filters, persistent=False)  # [M, 201]
        self.register_buffer("hann", torch.hann_window(FFT_SAMPLES), persistent=False)

    @classmethod
    def outline(cls, config: WhisperConfig) -> WhisperEncoder:
        """Build the encoder with its true shapes on the meta device, without reading weights."""
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: WhisperConfig) -> list[str]:
        """List the weight files that are neither here nor in a pinned package."""
        return missing_weights(config.weights)

    def train(self, mode: bool = True) -> WhisperEncoder:
        """Stay in evaluation mode: an encoder applies no dropout, trained or not."""
        return super().train(False)

    def forward(self, wave: Waveform) -> Features:
        """Encode a batch in windows of 30 s.

        Args:
            wave: samples [B, T] at 16 kHz.

        Returns:
            values [B, F, D] at 50 frames/s, zeros past a row's length.

        Raises:
            SignalError: `wave.rate_hz` is not 16 kHz.
        """
        if wave.rate_hz != RATE_HZ:
            raise SignalError(
                f"the Whisper encoder takes audio at {RATE_HZ} Hz, got {wave.rate_hz} Hz; "
                "resample it first"
            )
        mel, mel_lengths = self._log_mel(_with_tail(wave, self.config.tail_s))  # [B, M, 2F]
        starts = range(0, mel.shape[2], WINDOW_FRAMES)
        windows = [self._encode_window(mel, mel_lengths, start) for start in starts]
        # Lengths of the clips themselves, which cuts off the frames of the tail.
        lengths = _mel_frames(wave.lengths) // 2
        states = torch.cat(windows, dim=1)[:, : int(lengths.max())]  # [B, F, D]
        real = valid_mask(lengths, states.shape[1])[:, :, None]
        return Features(states * real, lengths, self.frame_rate_hz)

    def _encode_window(self, mel: Tensor, mel_lengths: Tensor, start: int) -> Tensor:
        """Encode mel [B, M, N] from frame `start` on, 30 s at most -> [B, <= 1500, D].

        Rows that have ended before a frame hold zeros there.
        """
        window = mel[:, :, start : start + WINDOW_FRAMES]
        lengths = self._window_lengths(window, mel_lengths, start)
        states = self._convolve(window, lengths)
        B, N, _ = states.shape
        real = valid_mask((lengths + 1) // 2, N)  # the second convolution has stride 2
        real[:, 0] |= ~real.any(dim=1)  # a row that ended before this window still needs one key
        mask = torch.zeros(B, 1, 1, N, dtype=states.dtype, device=states.device)
        mask = mask.masked_fill(~real[:, None, None, :], float("-inf")).expand(B, 1, N, N)
        return torch.cat(self._run_layers(states, mask), dim=-1) * real[:, :, None]

    def _window_lengths(self, window: Tensor, mel_lengths: Tensor, start: int) -> Tensor:
        """Mel frames [B] of each row inside `window` [B, M, N], all N with `pad_to_window`."""
        if self.config.pad_to_window:
            lengths: Tensor | int = window.shape[2]
        else:
            lengths = (mel_lengths - start).clamp(0, window.shape[2])
        return torch.as_tensor(lengths, device=window.device).expand(window.shape[0])

    def _convolve(self, window: Tensor, lengths: Tensor) -> Tensor:
        """Mel [B, M, N] -> states [B, ceil(N / 2), H] with position embeddings."""
        encoder = self.encoder
        real = valid_mask(lengths, window.shape[2])[:, None]
        # Zeros past a row's end are what the convolutions pad with, so a row cannot tell padding
        # from its own border.
        states = F.gelu(encoder.conv1(window * real)) * real
        states = F.gelu(encoder.conv2(states)).transpose(1, 2)
        return states + encoder.embed_positions.weight[: states.shape[1]]

    def _run_layers(self, states: Tensor, mask: Tensor) -> list[Tensor]:
        """Run the transformer layers: the last states [B, N, H], then those of `also_layers`."""
        also = []
        for number, layer in enumerate(self.encoder.layers, start=1):
            states = layer(states, mask)
            # Older releases of transformers return a tuple.
            states = states[0] if isinstance(states, tuple) else states
            if number in self.config.also_layers:
                # Normalized, as the final norm does it to the states they stand beside.
                also.append(F.layer_norm(states, states.shape[-1:]))
        if self.apply_final_norm:
            states = self.encoder.layer_norm(states)
        return [states, *also]

    def _log_mel(self, wave: Waveform) -> tuple[Tensor, Tensor]:
        """Compute Whisper's log-mel at 100 frames/s, in float32: samples [B, T] -> [B, M, N].

        The second value is the lengths [B] in frames before any window padding.
        """
        frames = _mel_frames(wave.lengths)
        columns = int(frames.max())
        if self.config.pad_to_window:
            columns = -(-columns // WINDOW_FRAMES) * WINDOW_FRAMES
        # Under bfloat16 autocast the quiet bins would be lost.
        with torch.autocast(wave.samples.device.type, enabled=False):
            spectrum = self._spectrum(wave, columns)
            power = spectrum[:, :, :columns].abs().square()
            mel = (self.mel_filters @ power).clamp(min=1e-10).log10()
            # With `pad_to_window` the zeros after a clip are part of Whisper's input, as in the
            # original; without it nothing past a clip may decide its loudest value.
            real = valid_mask(frames, columns)[:, None] | self.config.pad_to_window
            loudest = mel.masked_fill(~real, -10.0).amax(dim=(1, 2), keepdim=True)
            return (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0 * real, frames

    def _spectrum(self, wave: Waveform, columns: int) -> Tensor:
        """Compute the complex spectrum [B, 201, >= columns] of samples [B, T]."""
        samples = wave.samples.float().where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
        missing = max(0, columns * HOP_SAMPLES - samples.shape[1])
        samples = F.pad(samples, (0, missing + FFT_SAMPLES))
        # Reflected at the start as in Whisper's own front end; at the end the zeros stand for its
        # 30 s padding.
        samples = torch.cat([samples[:, 1 : FFT_SAMPLES // 2 + 1].flip(1), samples], dim=1)
        return torch.stft(
            samples,
            FFT_SAMPLES,
            HOP_SAMPLES,
            window=self.hann,
            center=False,  # the padding above replaces the library's centring
            return_complex=True,
        )

    def fingerprint(self) -> str:
        """Hash the sums of the first values of each weight, and the settings: 16 hex digits."""
        with torch.no_grad():
            sums = [p.flatten()[:64].double().sum().item() for p in self.encoder.parameters()]
        config = self.config
        # `also_layers` comes last and unpacked, so that its default leaves older hashes unchanged.
        settings = [
            config.layers,
            config.pad_to_window,
            config.tail_s,
            "v1",
            *config.also_layers,
        ]
        return hashlib.sha256(json.dumps([sums, settings]).encode()).hexdigest()[:16]


def _layer_count(config: WhisperConfig, available: int) -> int:
    """Return the number of transformer layers to run, out of `available`.

    Raises:
        ConfigError: the config names layers the model does not have, or the last one twice.
    """
    count = available if config.layers is None else config.layers
    if count > available:
        raise ConfigError(
            f"encoder.layers is {count} but {config.weights!r} has {available} layers"
        )
    if config.also_layers and config.also_layers[-1] >= count:
        raise ConfigError(
            f"encoder.also_layers is {config.also_layers}, but the last of {count} layers is "
            "returned anyway; name layers before it"
        )
    return count


def _mel_frames(lengths: Tensor) -> Tensor:
    """Count the mel frames of clips of `lengths` samples [B]: an even number, at least 2."""
    frames = torch.div(lengths + HOP_SAMPLES - 1, HOP_SAMPLES, rounding_mode="floor").clamp(min=2)
    # Even, because the second convolution joins two mel frames to one encoder frame.
    return frames + frames % 2


def _with_tail(wave: Waveform, tail_s: float) -> Waveform:
    """Append `tail_s` seconds of silence to each clip."""
    if not tail_s:
        return wave
    tail = round(tail_s * wave.rate_hz)
    # Zeros first: what lies past a clip's length would otherwise stand in its tail.
    samples = wave.samples.where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
    return Waveform(F.pad(samples, (0, tail)), wave.lengths + tail, wave.rate_hz)
