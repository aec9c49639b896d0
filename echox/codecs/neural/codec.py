"""What all neural codecs share: weights, the codebooks that are used, rows that do not hear each other's padding, chunks."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of
from echox.codecs.base import Codec, CodecConfig, DecodeState
from echox.errors import ConfigError, SignalError
from echox.signals import Units, Waveform, valid_mask

RANDOM = "random"


@dataclass(kw_only=True, slots=True)
class NeuralCodecConfig(CodecConfig):
    """A neural codec of the transformers library."""

    weights: str
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones: more sound better and are more to predict. Each takes log2(entries) bits a frame."""

    def __post_init__(self) -> None:
        if self.codebooks < 1:
            raise ConfigError(f"codec.codebooks is {self.codebooks}; a codec speaks with one codebook at least")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config says of its codes."""

    rate_hz: int
    hop_samples: int  # of a frame
    codebooks: int  # there are
    entries: int  # of each codebook


@dataclass(frozen=True, slots=True)
class RowStates(DecodeState):
    """Where each row's stream of frames stands; None before its first."""

    rows: tuple[Any, ...]


class NeuralCodec(Codec):
    """Frames of K codes at a steady rate; a leaf knows its model.

    Codes are always found and spoken in float32: under bfloat16 many a frame's nearest entry is another one.
    """

    merges = False
    hub_name: ClassVar[str]  # of the class in transformers, whose code is loaded when it is needed
    pads_from: int | None = None  # frames from which a row gives the same codes and sound with padding after it; None where it never does

    def __init__(self, config: NeuralCodecConfig) -> None:
        """
        Raises:
            AssetError: the weights are not there, or of another model. ConfigError: the model has fewer codebooks.
        """
        super().__init__()
        self.config = config
        self.net = self._load(config)
        shape = self.shape(self.net.config)
        if config.codebooks > shape.codebooks:
            raise ConfigError(f"codec.codebooks is {config.codebooks}, but {config.weights} has {shape.codebooks}")
        self.rate_hz, self.hop_samples = shape.rate_hz, shape.hop_samples
        self.unit_rate_hz = shape.rate_hz / shape.hop_samples
        self.vocab_size, self.codebooks = shape.entries, config.codebooks
        self._fingerprint = ""
        self.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """The facts of a model's config.

        Raises:
            ConfigError: the model is of a kind that cannot be used here.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        """A model for tests, of the published frame rate."""

    @classmethod
    def spread(cls, net: transformers.PreTrainedModel) -> None:  # noqa: B027 (most random entries are spread well enough)
        """Give the entries of a tiny model such places that clips get different codes."""

    @abstractmethod
    def codes(self, samples: Tensor) -> Tensor:
        """Samples [B, 1, T] of whole frames -> codes [B, K, F]."""

    @abstractmethod
    def sound(self, codes: Tensor) -> Tensor:
        """Codes [B, K, F] -> samples [B, T], T about F * hop_samples."""

    @abstractmethod
    def sound_on(self, codes: Tensor, past: Any, last: bool) -> tuple[Tensor, Any]:
        """The next frames of one stream: codes [1, K, F] and what the chunk before left -> samples [T] that are settled, and what is left."""

    @classmethod
    def hub_config(cls, config: NeuralCodecConfig) -> transformers.PretrainedConfig:
        """The model's config, without its weights."""
        return cls.tiny(config.codebooks) if config.weights == RANDOM else shape_of(config.weights.removeprefix(UNTRAINED))

    @classmethod
    def expected_word_count(cls, config: NeuralCodecConfig) -> int:
        return cls.shape(cls.hub_config(config)).entries

    @classmethod
    def expected_codebooks(cls, config: NeuralCodecConfig) -> int:
        return config.codebooks

    @classmethod
    def missing(cls, config: NeuralCodecConfig) -> list[str]:
        return missing_weights(config.weights)

    @classmethod
    def _hub_class(cls) -> type[transformers.PreTrainedModel]:
        return getattr(transformers, cls.hub_name)

    @classmethod
    def _load(cls, config: NeuralCodecConfig) -> transformers.PreTrainedModel:
        if config.weights == RANDOM or config.weights.startswith(UNTRAINED):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = _with_codebooks(cls._hub_class()(cls.hub_config(config))).eval()
                if config.weights == RANDOM:
                    cls.spread(net)
                return net
        folder = asset_folder(config.weights)
        with loading(f"a {cls.hub_name}", folder):
            found = transformers.AutoConfig.from_pretrained(folder).model_type
            if found != cls._hub_class().config_class.model_type:
                raise ValueError(f"it is of type {found}")
            net, about = cls._hub_class().from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            # The library makes weights up that it does not find; what is left untrained on purpose is used in training alone.
            if missing := sorted(name for name in about["missing_keys"] if not name.endswith("masked_spec_embed")):
                raise ValueError(f"{', '.join(missing[:3])} are missing")
            return net

    def train(self, mode: bool = True) -> NeuralCodec:
        return super().train(False)  # frozen

    @torch.no_grad()
    def encode(self, wave: Waveform) -> Units:
        """Samples [B, T] -> codes [B, K, F], or [B, F] where one codebook is used; F = ceil(T / hop_samples).

        Raises:
            SignalError: the sample rate is not the codec's.
        """
        if wave.rate_hz != self.rate_hz:
            raise SignalError(f"this codec takes audio at {self.rate_hz} Hz, got {wave.rate_hz} Hz; resample it first")
        frames = -(-wave.lengths // self.hop_samples)
        longest = int(frames.max()) if len(frames) else 0
        real = wave.samples.masked_fill(~valid_mask(wave.lengths, wave.samples.shape[1]), 0.0)
        samples = torch.nn.functional.pad(real, (0, longest * self.hop_samples - real.shape[1]))
        ids = torch.zeros(len(frames), self.codebooks, longest, dtype=torch.int64, device=samples.device)
        for rows, size in self._together(frames.tolist()):
            with _exactly(samples.device):
                ids[rows, :, :size] = self.codes(samples[rows, None, : size * self.hop_samples].float())
        return Units(ids if self.codebooks > 1 else ids[:, 0], frames, self.unit_rate_hz)

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Codes [B, K, F], or [B, F], -> samples [B, F * hop_samples]; an empty row has length 0.

        Raises:
            SignalError: there are more or fewer codebooks than this codec's, or a code is none of its entries.
        """
        codes = self._checked(units)
        lengths = units.lengths * self.hop_samples
        samples = torch.zeros(len(lengths), int(lengths.max()) if len(lengths) else 0, device=codes.device)
        for rows, size in self._together(units.lengths.tolist()):
            with _exactly(codes.device):
                made = self.sound(codes[rows, :, :size]).float().clamp(-1, 1)[:, : size * self.hop_samples]
            samples[rows, : made.shape[1]] = made
        return Waveform(samples.masked_fill(~valid_mask(lengths, samples.shape[1]), 0.0), lengths, self.rate_hz)

    @torch.no_grad()
    def decode_chunk(self, units: Units, state: RowStates | None = None, *, last: bool) -> tuple[Waveform, RowStates]:
        codes = self._checked(units)
        pasts = state.rows if state is not None else (None,) * len(codes)
        with _exactly(codes.device):
            made = [self.sound_on(row[None, :, :size], past, last) for row, size, past in zip(codes, units.lengths.tolist(), pasts)]
        lengths = torch.tensor([len(samples) for samples, _ in made], device=codes.device)
        samples = pad_sequence([samples.float().clamp(-1, 1) for samples, _ in made], batch_first=True)
        return Waveform(samples, lengths, self.rate_hz), RowStates(tuple(past for _, past in made))

    def _together(self, frames: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Rows that may share a batch, and its frames: rows of one length, or of any where padding is not heard."""
        groups: dict[int, list[int]] = {}
        for row, size in enumerate(frames):
            joins = self.pads_from is not None and size >= self.pads_from
            groups.setdefault(-1 if joins else size, []).append(row)
        groups.pop(0, None)  # nothing to hear
        for rows in groups.values():
            yield rows, max(frames[row] for row in rows)

    def _checked(self, units: Units) -> Tensor:
        """Codes [B, K, F], zeros past the lengths."""
        codes = units.ids[:, None] if units.ids.dim() == 2 else units.ids
        if codes.shape[1] != self.codebooks:
            raise SignalError(f"units of {codes.shape[1]} codebooks do not fit this codec's {self.codebooks}; set codec.codebooks to theirs")
        codes = codes * valid_mask(units.lengths, codes.shape[2])[:, None]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise SignalError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit the codec's 0..{self.vocab_size - 1}")
        return codes

    def fingerprint(self) -> str:
        if not self._fingerprint:
            digest = hashlib.sha256(json.dumps([self.codebooks, _settings(self.net.config)], sort_keys=True, default=str).encode())
            for name, tensor in sorted(self.net.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _settings(hub: transformers.PretrainedConfig) -> dict[str, Any]:
    """What a model's config sets, apart from notes about files and versions."""
    notes = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    return {name: value for name, value in hub.to_diff_dict().items() if name not in notes}


@torch.no_grad()
def spread_entries(layers: Sequence[Any], latents: Tensor) -> None:
    """Put the entries of a residual quantiser's layers near what they are to code: latents [1, D, F], F at least the entries."""
    for layer in layers:
        entries = layer.codebook.embed_sum if hasattr(layer.codebook, "embed_sum") else layer.codebook.embed
        entries.copy_(0.7 * latents[0].T[: len(entries)])
        latents = latents - layer.decode(layer.encode(latents))


def _with_codebooks(net: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Entries for an untrained model, whose library leaves codebooks that are not parameters at zero."""
    for name, buffer in net.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            buffer.normal_(std=0.3)
    return net


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False):
        yield
