"""The base of all neural codecs: weights, codebooks in use, batches without padding, chunks."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of
from echox.codecs.base import Codec, CodecConfig, DecodeState, state_of
from echox.core.errors import ConfigError, SignalError
from echox.core.signals import Units, Waveform, valid_mask

RANDOM = "random"


@dataclass(kw_only=True, slots=True)
class NeuralCodecConfig(CodecConfig):
    """A neural codec of the transformers library.

    Raises:
        ConfigError: `codebooks` is below 1.
    """

    weights: str
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that
    model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones: more give better audio and are more to predict.
    Each takes log2(entries) bits a frame."""

    def __post_init__(self) -> None:
        if self.codebooks < 1:
            raise ConfigError(
                f"codec.codebooks is {self.codebooks}; a codec has one codebook at least"
            )


@dataclass(frozen=True, slots=True)
class Shape:
    """Facts of a model's config about its codes."""

    rate_hz: int
    hop_samples: int  # of a frame
    codebooks: int  # of the model, not those in use
    entries: int  # of each codebook


@dataclass(frozen=True, slots=True)
class RowStates(DecodeState):
    """State of each row's stream, as its model defines it; None before the first frame."""

    rows: tuple[Any, ...]


# By name, for the class is not loaded until a model is built.
Net = TypeVar("Net", bound="transformers.PreTrainedModel")


class NeuralCodec(Codec, Generic[Net]):
    """Base of codecs with frames of K codes at a constant rate; a subclass adapts one model.

    Codes are encoded and decoded in float32 always: under bfloat16 the nearest entry of many a
    frame is another one.
    """

    merges = False
    hub_name: ClassVar[str]  # of the class in transformers, whose code is imported when needed
    # Least number of frames with which a row may be padded in a batch, because padding then changes
    # neither codes nor samples; None where it always does.
    min_padded_frames: int | None = None

    def __init__(self, config: NeuralCodecConfig) -> None:
        """Load the model.

        Raises:
            AssetError: the weights are missing, or of another model.
            ConfigError: the model has fewer codebooks than the config uses.
        """
        super().__init__()
        self.config = config
        self.net: Net = self._load(config)
        shape = self.shape(self.net.config)
        if config.codebooks > shape.codebooks:
            raise ConfigError(
                f"codec.codebooks is {config.codebooks}, but {config.weights} has {shape.codebooks}"
            )
        self.rate_hz, self.hop_samples = shape.rate_hz, shape.hop_samples
        self.unit_rate_hz = shape.rate_hz / shape.hop_samples
        self.vocab_size, self.codebooks = shape.entries, config.codebooks
        self._fingerprint = ""  # computed when it is asked for, because it reads all weights
        self.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config.

        Raises:
            ConfigError: the model is of a kind that cannot be used here.
        """

    @classmethod
    @abstractmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""

    @classmethod
    def spread_codebooks(cls, net: Net) -> None:  # noqa: B027
        """Move the entries of a tiny model so that different clips get different codes.

        Random entries are spread well enough for most models, so this default does nothing.
        """

    @abstractmethod
    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, K, F]."""

    @abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, F] to samples [B, T] with T about F * hop_samples."""

    @abstractmethod
    def decode_next(self, codes: Tensor, past: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode the next frames of one stream.

        Args:
            codes: [1, K, F].
            past: state that the last call returned; None for the first chunk.
            last: no more frames follow.

        Returns:
            samples [T] that no later frame changes; the state for the next chunk.
        """

    @classmethod
    def hub_config(cls, config: NeuralCodecConfig) -> transformers.PretrainedConfig:
        """Return the model's config without reading its weights.

        Raises:
            AssetError: neither a folder nor a known model has that name.
        """
        if config.weights == RANDOM:
            return cls.tiny_config(config.codebooks)
        return shape_of(config.weights.removeprefix(UNTRAINED))

    @classmethod
    def expected_unit_vocab_size(cls, config: NeuralCodecConfig) -> int:
        """Return the number of entries of each codebook, from the model's config alone.

        Raises:
            AssetError: neither a folder nor a known model has that name.
            ConfigError: the model is of a kind that cannot be used here.
        """
        return cls.shape(cls.hub_config(config)).entries

    @classmethod
    def expected_codebooks(cls, config: NeuralCodecConfig) -> int:
        """Return the number of codebooks in use."""
        return config.codebooks

    @classmethod
    def missing(cls, config: NeuralCodecConfig) -> list[str]:
        """List the weight files that are absent."""
        return missing_weights(config.weights)

    @classmethod
    def _hub_class(cls) -> type[Net]:
        return getattr(transformers, cls.hub_name)

    @classmethod
    def _load(cls, config: NeuralCodecConfig) -> Net:
        if config.weights == RANDOM or config.weights.startswith(UNTRAINED):
            return cls._build_untrained(config)
        folder = asset_folder(config.weights)
        # `loading` turns each of these errors into an AssetError that names the folder.
        with loading(f"a {cls.hub_name}", folder):
            model_type = transformers.AutoConfig.from_pretrained(folder).model_type
            hub_class = cls._hub_class()
            expected = hub_class.config_class
            if expected is None or model_type != expected.model_type:
                raise ValueError(f"it is of type {model_type}")
            # A pair, which the library's annotation leaves out.
            loaded: Any = hub_class.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            net, about = loaded
            # The library initialises weights that it does not find, and only reports them. The
            # embedding of masked positions may be missing: training alone uses it.
            needed = [key for key in about["missing_keys"] if not key.endswith("masked_spec_embed")]
            if missing := sorted(needed):
                raise ValueError(f"{', '.join(missing[:3])} are missing")
            return net

    @classmethod
    def _build_untrained(cls, config: NeuralCodecConfig) -> Net:
        """A model with random weights, the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = _with_random_codebooks(cls._hub_class()(cls.hub_config(config))).eval()
            # The true shapes are for speed measurements, which do not read the codes.
            if config.weights == RANDOM:
                cls.spread_codebooks(net)
            return net

    def train(self, mode: bool = True) -> NeuralCodec:
        """Stay in evaluation mode, because the codec is frozen."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, wave: Waveform) -> Units:
        """Encode samples [B, T] to codes [B, K, F], or [B, F] where one codebook is in use.

        F = ceil(T / hop_samples).

        Raises:
            SignalError: the sample rate is not the codec's.
        """
        if wave.rate_hz != self.rate_hz:
            raise SignalError(
                f"this codec takes audio at {self.rate_hz} Hz, got {wave.rate_hz} Hz; resample it "
                "first"
            )
        frames = -(-wave.lengths // self.hop_samples)
        F = int(frames.max()) if len(frames) else 0
        # What lies past a length is unspecified; zeros complete the last frame of each row.
        real = wave.samples.masked_fill(~valid_mask(wave.lengths, wave.samples.shape[1]), 0.0)
        # A negative size cuts, where the samples are padded beyond the longest row.
        samples = torch.nn.functional.pad(real, (0, F * self.hop_samples - real.shape[1]))
        ids = torch.zeros(len(frames), self.codebooks, F, dtype=torch.int64, device=samples.device)
        for rows, size in self._batches(frames.tolist()):
            batch = samples[rows, None, : size * self.hop_samples].float()
            with _float32(samples.device):
                ids[rows, :, :size] = self.encode_samples(batch)
        return Units(ids if self.codebooks > 1 else ids[:, 0], frames, self.unit_rate_hz)

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Decode codes [B, K, F], or [B, F], to samples [B, F * hop_samples].

        An empty row has length 0.

        Raises:
            SignalError: the number of codebooks is not this codec's, or a code is no entry.
        """
        codes = self._checked_codes(units)
        lengths = units.lengths * self.hop_samples
        T = int(lengths.max()) if len(lengths) else 0
        samples = torch.zeros(len(lengths), T, device=codes.device)
        for rows, size in self._batches(units.lengths.tolist()):
            with _float32(codes.device):
                decoded = self.decode_codes(codes[rows, :, :size]).float().clamp(-1, 1)
            # A model may return a few samples more or less than its whole frames.
            decoded = decoded[:, : size * self.hop_samples]
            samples[rows, : decoded.shape[1]] = decoded
        samples = samples.masked_fill(~valid_mask(lengths, T), 0.0)
        return Waveform(samples, lengths, self.rate_hz)

    @torch.no_grad()
    def decode_chunk(
        self, units: Units, state: DecodeState | None = None, *, last: bool
    ) -> tuple[Waveform, RowStates]:
        """Decode the next codes [B, K, F], or [B, F], of a stream; see `Codec.decode_chunk`.

        Raises:
            SignalError: the number of codebooks is not this codec's, or a code is no entry.
        """
        codes = self._checked_codes(units)
        before = state_of(state, RowStates)
        pasts = before.rows if before is not None else (None,) * len(codes)
        # Row by row, because rows differ in their lengths and in how far their streams are.
        with _float32(codes.device):
            decoded = [
                self.decode_next(row[None, :, :size], past, last)
                for row, size, past in zip(codes, units.lengths.tolist(), pasts)
            ]
        rows = [samples.float().clamp(-1, 1) for samples, _ in decoded]
        lengths = torch.tensor([len(samples) for samples in rows], device=codes.device)
        wave = Waveform(pad_sequence(rows, batch_first=True), lengths, self.rate_hz)
        return wave, RowStates(tuple(past for _, past in decoded))

    def _batches(self, frames: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Rows that may share a batch, and its frames.

        Rows share one if they are equally long, or long enough not to be changed by padding.
        """
        padded = -1  # the group of rows that may be padded
        groups: dict[int, list[int]] = {}
        for row, size in enumerate(frames):
            may_pad = self.min_padded_frames is not None and size >= self.min_padded_frames
            groups.setdefault(padded if may_pad else size, []).append(row)
        groups.pop(0, None)  # empty rows have nothing to encode or decode
        for rows in groups.values():
            yield rows, max(frames[row] for row in rows)

    def _checked_codes(self, units: Units) -> Tensor:
        """Codes [B, K, F], zeros past the lengths."""
        codes = units.ids[:, None] if units.ids.dim() == 2 else units.ids
        if codes.shape[1] != self.codebooks:
            raise SignalError(
                f"units of {codes.shape[1]} codebooks do not fit this codec's {self.codebooks}; "
                "set codec.codebooks to theirs"
            )
        codes = codes * valid_mask(units.lengths, codes.shape[2])[:, None]
        # Checked here, because an index beyond the entries is a fatal error on a GPU.
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise SignalError(
                f"codes from {int(codes.min())} to {int(codes.max())} do not fit the codec's "
                f"0..{self.vocab_size - 1}"
            )
        return codes

    def fingerprint(self) -> str:
        """Return a hash of weights, settings and the number of codebooks in use."""
        if not self._fingerprint:
            settings = [self.codebooks, _settings(self.net.config)]
            plain = json.dumps(settings, sort_keys=True, default=str)
            digest = hashlib.sha256(plain.encode())
            for name, tensor in sorted(self.net.state_dict().items()):
                digest.update(name.encode())
                # As bytes, because NumPy has no type for every dtype of PyTorch.
                raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
                digest.update(raw.numpy().data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _settings(hub: transformers.PretrainedConfig) -> dict[str, Any]:
    """Settings of a model's config, apart from notes about files and versions."""
    notes = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    return {name: value for name, value in hub.to_diff_dict().items() if name not in notes}


@torch.no_grad()
def spread_entries(layers: Iterable[Any], latents: Tensor) -> None:
    """Move the entries of a residual quantiser near the latents that they are to encode.

    Args:
        layers: the quantiser's codebooks, changed in place.
        latents: [1, D, F], F at least the number of entries.
    """
    for layer in layers:
        book = layer.codebook
        entries = book.embed_sum if hasattr(book, "embed_sum") else book.embed  # [V, D]
        # Not the latents themselves, which would leave no residual for the next codebook.
        entries.copy_(0.7 * latents[0].T[: len(entries)])
        latents = latents - layer.decode(layer.encode(latents))


def _with_random_codebooks(net: Net) -> Net:
    """Draw the entries of an untrained model in place.

    The library leaves codebooks that are buffers, not parameters, at zero.
    """
    for name, buffer in net.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            buffer.normal_(std=0.3)
    return net


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Disable autocast; see `NeuralCodec`."""
    with torch.autocast(device.type, enabled=False):
        yield
