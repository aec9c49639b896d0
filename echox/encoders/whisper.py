"""The Whisper encoder: log-mel spectrogram, two convolutions, transformer layers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of, untrained
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.encoders.inner_whisper import inner_encoder
from echox.errors import AssetError, ConfigError, SignalError
from echox.signals import Features, Waveform, valid_mask

RATE_HZ = 16_000
HOP_SAMPLES = 160
FFT_SAMPLES = 400
WINDOW_FRAMES = 3_000  # mel frames in the 30 s Whisper was trained on
# Of the random encoder's weights. With the library's 0.02 a clip's frames differ by their positions alone: these made 99.96 % of the
# variance of speech, and here they make a fifth of it.
RANDOM_STD = 0.2


@dataclass(kw_only=True, slots=True)
class WhisperConfig(EncoderConfig):
    """Whisper's encoder, frozen, from a catalogue name, a hub id or a local folder."""

    weights: str = "whisper_base"
    """Catalogue name, hub id or local folder of the weights, Soundwave's too, which holds one; "random" builds a small untrained encoder for tests, "random:NAME" that
    model's true shapes untrained, for speed work."""
    layers: int | None = None
    """Transformer layers to run; None runs all of them and the final norm, fewer give the states of that layer."""
    also_layers: list[int] = field(default_factory=list)
    """Layers before the last one whose states, normalised, are appended to its channels: the first is 1. With the fourth of the base model's
    six an adapter for the demo made a tenth fewer token errors early in training; features take as much more room."""
    pad_to_window: bool = False
    """Pad every clip to the 30 s window of Whisper's training; off, a clip costs only its own length."""
    tail_s: float = 0.0
    """Seconds of silence heard after each clip and cut off again; half a second brings the states of clips of a few seconds nearer to
    those of Whisper's 30 s window (mean cosine on a dozen clips 0.94 instead of 0.91)."""
    random_dim: int = 32
    """Channels of the random encoder."""

    def __post_init__(self) -> None:
        if self.tail_s < 0:
            raise ConfigError(f"encoder.tail_s is {self.tail_s}; use 0 or more seconds")
        if self.layers is not None and self.layers < 1:
            raise ConfigError(f"encoder.layers is {self.layers}; use 1 or more, or null for all layers")
        if self.also_layers != sorted(set(self.also_layers)) or min(self.also_layers, default=1) < 1:
            raise ConfigError(f"encoder.also_layers is {self.also_layers}; list each layer once, from 1 on, in ascending order")


@ENCODERS.register("whisper", WhisperConfig)
class WhisperEncoder(Encoder):
    """Whisper's encoder run on unpadded clips, 50 frames/s; longer audio is encoded in windows of 30 s and joined.

    On a clip of exactly 30 s it equals the original. On a shorter one it sees no padding, which suits a trained adapter but not
    Whisper's own decoder; `pad_to_window` restores the original there too.
    Source: Radford et al. 2022, arXiv:2212.04356, section 2.2.
    """

    rate_hz = RATE_HZ
    frame_rate_hz = 50.0

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, mel_filters = _load(config)
        self.encoder.requires_grad_(False).eval()
        kept = len(self.encoder.layers) if config.layers is None else config.layers
        if kept > len(self.encoder.layers):
            raise ConfigError(f"encoder.layers is {kept} but {config.weights!r} has {len(self.encoder.layers)} layers")
        if config.also_layers and config.also_layers[-1] >= kept:
            raise ConfigError(f"encoder.also_layers is {config.also_layers}, but the last of {kept} layers is heard anyway; name layers before it")
        self.apply_final_norm = kept == len(self.encoder.layers)
        self.encoder.layers = self.encoder.layers[:kept]
        self.dim = self.encoder.config.d_model * (1 + len(config.also_layers))
        self.register_buffer("mel_filters", mel_filters, persistent=False)  # [M, 201]
        self.register_buffer("hann", torch.hann_window(FFT_SAMPLES), persistent=False)

    @classmethod
    def outline(cls, config: WhisperConfig) -> WhisperEncoder:
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: WhisperConfig) -> list[str]:
        return missing_weights(config.weights)

    def train(self, mode: bool = True) -> WhisperEncoder:
        return super().train(False)  # frozen: dropout never acts

    @torch.no_grad()
    def forward(self, wave: Waveform) -> Features:
        if wave.rate_hz != RATE_HZ:
            raise SignalError(f"the Whisper encoder takes audio at {RATE_HZ} Hz, got {wave.rate_hz} Hz; resample it first")
        mel, mel_lengths = self._log_mel(_with_tail(wave, self.config.tail_s))  # [B, M, 2F], even
        windows = [self._encode_window(mel, mel_lengths, start) for start in range(0, mel.shape[2], WINDOW_FRAMES)]
        lengths = _mel_frames(wave.lengths) // 2
        states = torch.cat(windows, dim=1)[:, : int(lengths.max())]
        return Features(states * valid_mask(lengths, states.shape[1])[:, :, None], lengths, self.frame_rate_hz)

    def _encode_window(self, mel: Tensor, mel_lengths: Tensor, start: int) -> Tensor:
        """One window of at most 30 s: mel [B, M, N] from frame `start` -> [B, <=1500, dim], zeros where a row has ended."""
        window = mel[:, :, start : start + WINDOW_FRAMES]
        left = window.shape[2] if self.config.pad_to_window else (mel_lengths - start).clamp(0, window.shape[2])
        left = torch.as_tensor(left, device=mel.device).expand(mel.shape[0])
        encoder = self.encoder
        keep = valid_mask(left, window.shape[2])
        # Zeros past a row's end are what the convolutions pad with, so a row cannot tell padding from its own border.
        states = F.gelu(encoder.conv1(window * keep[:, None])) * keep[:, None]
        states = F.gelu(encoder.conv2(states)).transpose(1, 2)
        B, N, _ = states.shape
        states = states + encoder.embed_positions.weight[:N]
        real = valid_mask((left + 1) // 2, N)
        real[:, 0] |= ~real.any(dim=1)  # a row that ended before this window still needs one key
        mask = torch.zeros(B, 1, 1, N, dtype=states.dtype, device=states.device).masked_fill(~real[:, None, None, :], float("-inf"))
        mask = mask.expand(B, 1, N, N)
        also = []
        for number, layer in enumerate(encoder.layers, start=1):
            states = layer(states, mask)
            states = states[0] if isinstance(states, tuple) else states
            if number in self.config.also_layers:
                also.append(F.layer_norm(states, states.shape[-1:]))
        if self.apply_final_norm:
            states = encoder.layer_norm(states)
        return torch.cat([states, *also], dim=-1) * real[:, :, None]

    def _log_mel(self, wave: Waveform) -> tuple[Tensor, Tensor]:
        """Whisper's log-mel: samples [B, T] -> ([B, M, N], lengths [B] before any window padding) at 100 frames/s, in float32."""
        frames = _mel_frames(wave.lengths)
        columns = int(frames.max())
        if self.config.pad_to_window:
            columns = -(-columns // WINDOW_FRAMES) * WINDOW_FRAMES
        size = columns * HOP_SAMPLES
        with torch.autocast(wave.samples.device.type, enabled=False):
            samples = wave.samples.float().where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
            samples = F.pad(samples, (0, max(0, size - samples.shape[1]) + FFT_SAMPLES))
            # Reflected at the start as Whisper's features are; at the end the zeros stand in for its 30 s padding.
            samples = torch.cat([samples[:, 1 : FFT_SAMPLES // 2 + 1].flip(1), samples], dim=1)
            spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=self.hann, center=False, return_complex=True)
            power = spectrum[:, :, :columns].abs().square()
            mel = (self.mel_filters @ power).clamp(min=1e-10).log10()
            # In the window the zeros after a clip are part of what Whisper hears; elsewhere nothing lies beyond its end.
            keep = valid_mask(frames, columns)[:, None] | self.config.pad_to_window
            loudest = mel.masked_fill(~keep, -10.0).amax(dim=(1, 2), keepdim=True)
            return (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0 * keep, frames

    def fingerprint(self) -> str:
        with torch.no_grad():
            probe = [p.flatten()[:64].double().sum().item() for p in self.encoder.parameters()]
        settings = [self.config.layers, self.config.pad_to_window, self.config.tail_s, "v1", *self.config.also_layers]
        return hashlib.sha256(json.dumps([probe, settings]).encode()).hexdigest()[:16]


def _mel_frames(lengths: Tensor) -> Tensor:
    """Mel frames of clips of so many samples: an even number, at least 2."""
    frames = torch.div(lengths + HOP_SAMPLES - 1, HOP_SAMPLES, rounding_mode="floor").clamp(min=2)
    return frames + frames % 2


def _with_tail(wave: Waveform, tail_s: float) -> Waveform:
    """Each clip followed by `tail_s` seconds of silence."""
    if not tail_s:
        return wave
    tail = round(tail_s * wave.rate_hz)
    samples = wave.samples.where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
    return Waveform(F.pad(samples, (0, tail)), wave.lengths + tail, wave.rate_hz)


def _load(config: WhisperConfig) -> tuple[nn.Module, Tensor]:
    if config.weights == "random" or config.weights.startswith(UNTRAINED):
        return _untrained(_untrained_shape(config))
    from transformers import WhisperModel

    folder = asset_folder(config.weights)
    if (inner := inner_encoder(folder)) is not None:
        return inner[0], _mel_filters(inner[1])
    with loading("a Whisper model", folder):
        encoder = WhisperModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").encoder
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    return encoder, _mel_filters(extractor)


def _untrained_shape(config: WhisperConfig) -> transformers.WhisperConfig:
    """
    Raises:
        AssetError: the model is not known, or is no Whisper.
    """
    if config.weights == "random":
        return transformers.WhisperConfig(
            d_model=config.random_dim, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=2 * config.random_dim, init_std=RANDOM_STD
        )
    shape = shape_of(config.weights.removeprefix(UNTRAINED))
    if not isinstance(shape, transformers.WhisperConfig):
        raise AssetError(f"encoder.weights {config.weights!r} has the shape of a {shape.model_type}, not of a Whisper; name a Whisper")
    return shape


def _untrained(shape: transformers.WhisperConfig) -> tuple[nn.Module, Tensor]:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)  # random, but the same weights in every stage and on every rank
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(shape)
    torch.set_rng_state(generator_state)
    return encoder, _mel_filters(transformers.WhisperFeatureExtractor(feature_size=shape.num_mel_bins))


def _mel_filters(extractor: transformers.WhisperFeatureExtractor) -> Tensor:
    """[M, 201]"""
    return torch.as_tensor(extractor.mel_filters, dtype=torch.float32).T.contiguous()
