"""The k-means codec: units of a pretrained encoder, decoded by an acoustic model and a vocoder."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.assets.shapes import missing_weights
from echox.codecs.base import CODECS, CodecConfig, DecodeState, check_unit_count, state_of
from echox.codecs.kmeans.acoustic_model import AcousticModel, AcousticModelSizes
from echox.codecs.kmeans.fit import fit_codec
from echox.codecs.kmeans.fit_config import CodecFitConfig
from echox.codecs.kmeans.folder import CodecFolder, codec_tensors, read_folder
from echox.codecs.kmeans.streaming import RowStream, StreamDecoder, StreamState
from echox.codecs.kmeans.vocoder import REACH_FRAMES, Vocoder, build_vocoder, frames_ratio
from echox.codecs.quantization.codec import RANDOM, QuantizedCodec
from echox.codecs.quantization.folder import FORMAT
from echox.codecs.quantization.language import UnitLanguage
from echox.core.config import refuse_below
from echox.core.errors import CheckpointError, SignalError
from echox.core.files import json_hash
from echox.core.indexable import Indexable
from echox.core.signals import Units, Waveform, valid_mask
from echox.encoders.base import ENCODERS, Encoder

LENGTH_STEP_FRAMES = 64  # a CPU vocodes mels whose lengths are multiples of this
WINDOW_STEP_FRAMES = 32  # and those of a stream, which are short, of this


@dataclass(kw_only=True, slots=True)
class KMeansCodecConfig(CodecConfig):
    """Units from k-means over encoder features, fitted beforehand and kept in a folder.

    Raises:
        ConfigError: a number is out of range.
    """

    folder: str = "codec"
    """Folder that `echox-prepare codec` wrote; "random" builds a small codec that was never
    fitted, for tests."""
    random_units: int = 32
    """Number of units of the random codec."""
    fit: CodecFitConfig = field(default_factory=CodecFitConfig)
    """How it is fitted where the folder is not there yet; `folder` above decides where."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "random_units")


@CODECS.register("kmeans", KMeansCodecConfig)
class KMeansCodec(QuantizedCodec):
    """K-means units with repeats merged, decoded by durations, pitch, mel and vocoder."""

    centroids: Tensor

    def __init__(self, config: KMeansCodecConfig) -> None:
        """Read the fitted folder, the encoder and the vocoder.

        Raises:
            CheckpointError: the folder is missing, incomplete, changed or of another version.
        """
        is_random = config.folder == RANDOM
        content = (
            _random_folder(config.random_units) if is_random else read_folder(Path(config.folder))
        )
        encoder: Encoder = ENCODERS.build(ENCODERS.parse(content.encoder))
        # A random folder is shared by all codecs of its size.
        centroids = content.tensors["centroids"].clone()
        super().__init__(encoder, centroids, content.language, content.fingerprint)
        self.config = config
        self.vocoder: Vocoder = build_vocoder(content.vocoder)
        self.metrics = content.metrics  # measured at the end of the fit
        ratio = frames_ratio(self.encoder, self.vocoder)
        # The attribute's name is part of the keys in model.safetensors.
        self.speaker = AcousticModel(self.vocab_size, content.sizes, ratio, self.vocoder.recipe)
        _load_acoustic_model(self.speaker, content.tensors, config.folder)
        self.streams = self.vocoder.streams
        self.requires_grad_(False).eval()

    @classmethod
    def expected_unit_vocab_size(cls, config: KMeansCodecConfig) -> int:
        """Return the number of words in the folder, or those asked for where it is not fitted.

        Raises:
            CheckpointError: the folder is incomplete, changed or of another version.
        """
        if config.folder == RANDOM:
            return config.random_units  # without a language: a word is a unit
        # The most there can be: a language learns fewer words from few recordings.
        if not cls.is_ready(config):
            return config.fit.language.words or config.fit.units
        content = read_folder(Path(config.folder))
        return UnitLanguage(len(content.tensors["centroids"]), content.language).unit_vocab_size

    @classmethod
    def missing(cls, config: KMeansCodecConfig) -> list[str]:
        """List the absent weights of encoder and vocoder.

        Raises:
            CheckpointError: the folder is incomplete, changed or of another version.
        """
        if config.folder == RANDOM:
            return []
        encoder, vocoder = config.fit.encoder, config.fit.vocoder
        if cls.is_ready(config):
            # A fitted folder names its encoder, which need not be the config's.
            content = read_folder(Path(config.folder))
            encoder, vocoder = ENCODERS.parse(content.encoder), content.vocoder
        needs_no_weights = vocoder in ("griffin_lim", RANDOM)
        return [
            *ENCODERS.entry_of(encoder).implementation.missing(encoder),
            *([] if needs_no_weights else missing_weights(vocoder)),
        ]

    @classmethod
    def check_folder(cls, config: KMeansCodecConfig) -> None:
        """Check that `fit.units` is the folder's, where it is not at its default.

        Raises:
            ConfigError: it is another number.
            CheckpointError: the folder is incomplete, changed or of another version.
        """
        if config.folder != RANDOM:
            fitted = len(read_folder(Path(config.folder)).tensors["centroids"])
            check_unit_count(config.folder, config.fit.units, CodecFitConfig().units, fitted)

    @classmethod
    def fit(cls, config: KMeansCodecConfig, clips: Indexable[Tensor], device: torch.device) -> None:
        """Fit the codec to recordings and write `config.folder`; an interrupted fit resumes.

        Args:
            config: names the folder and the settings of the fit.
            clips: samples [T] each at the encoder's rate, of the speaker to synthesize.
            device: of the encoder, the clustering and the networks.

        Raises:
            SignalError: there are fewer than two recordings, or all are too short.
            ConfigError: settings do not fit together.
        """
        fit_codec(dataclasses.replace(config.fit, folder=config.folder), clips, str(device))

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Decode merged units [B, U] to samples [B, T]; an empty row has length 0.

        T is a whole number of encoder frames. An autocast context applies: bfloat16 halves the
        time on a CPU that multiplies it.

        Raises:
            SignalError: a unit is not one of the codec's.
        """
        self._check(units)
        if not units.lengths.any():
            silence = torch.zeros(len(units.lengths), 0, device=units.ids.device)
            return Waveform(silence, torch.zeros_like(units.lengths), self.rate_hz)
        mel, frames = self.speaker(units)  # [B, F, M], [B]
        mel = self._pad_with_silence(mel, frames)
        hop = self.vocoder.recipe.hop_length
        samples = self._vocode(mel, frames + REACH_FRAMES)[:, : int(frames.max()) * hop]
        lengths = frames * hop
        return Waveform(samples * valid_mask(lengths, samples.shape[1]), lengths, self.rate_hz)

    @torch.no_grad()
    def decode_chunk(
        self, units: Units, state: DecodeState | None = None, *, last: bool
    ) -> tuple[Waveform, DecodeState]:
        """Decode the next merged units [B, U] of a stream; see `Codec.decode_chunk`.

        Raises:
            SignalError: a unit is not one of the codec's.
        """
        self._check(units)
        if not self.streams:
            return super().decode_chunk(units, state, last=last)
        rows = [ids[:length] for ids, length in zip(units.ids, units.lengths.tolist())]
        before = state_of(state, StreamState)
        streams = [RowStream(ids[:0], frames=ids[:0]) for ids in rows]
        hop = self.vocoder.recipe.hop_length
        decoder = StreamDecoder(self.speaker, self._vocode_window, REACH_FRAMES, hop)
        samples, after = decoder.decode(streams if before is None else before.rows, rows, last=last)
        wave = pad_sequence(samples, batch_first=True)
        lengths = torch.tensor([len(row) for row in samples], device=wave.device)
        return Waveform(wave, lengths, self.rate_hz), StreamState(tuple(after))

    def _pad_with_silence(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Log mel [B, F, M] -> [B, F + REACH_FRAMES, M] with silence past the lengths [B]."""
        # As far as the vocoder's receptive field, so that the samples of a row do not depend on
        # the padding, which other rows decide.
        mel = F.pad(mel, (0, 0, 0, REACH_FRAMES))
        return torch.where(valid_mask(lengths, mel.shape[1])[:, :, None], mel, self._silence)

    def _vocode(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Mel [B, F, M], lengths [B] frames -> samples [B, F * hop]."""
        if mel.device.type != "cpu":
            return self.vocoder(mel).float()
        # A CPU gains nothing from a batch here, and would work on its padding too.
        rows = [
            self._vocode_row(row[:length])
            for row, length in zip(mel, lengths.tolist(), strict=True)
        ]
        return pad_sequence(rows, batch_first=True)

    def _vocode_row(self, mel: Tensor, step: int = LENGTH_STEP_FRAMES) -> Tensor:
        """Mel [F, M] -> samples [F * hop]."""
        frames = len(mel)
        # Setting up the convolutions for a new length costs a CPU more than running them, so
        # only few lengths are used.
        mel = F.pad(mel, (0, 0, 0, -frames % step), value=self._silence)
        return self.vocoder(mel[None])[0, : frames * self.vocoder.recipe.hop_length].float()

    def _vocode_window(self, mel: Tensor, is_end: bool) -> Tensor:
        """Mel [F, M] of a stream's window -> samples, F * hop of them or more."""
        # As `decode` pads the end of a row; elsewhere what is behind the window does not matter.
        frames = len(mel) + (REACH_FRAMES if is_end else 0)
        mel = F.pad(mel, (0, 0, 0, frames - len(mel)), value=self._silence)
        return self._vocode_row(mel, WINDOW_STEP_FRAMES)

    @property
    def _silence(self) -> float:
        """Value of a mel bin in silence."""
        return math.log(self.vocoder.recipe.clamp_min)

    def _check(self, units: Units) -> None:
        # What lies past a length is unspecified, so it is not checked.
        real = units.ids[valid_mask(units.lengths, units.ids.shape[1])]
        if len(real) and not 0 <= int(real.min()) <= int(real.max()) < self.vocab_size:
            raise SignalError(
                f"units from {int(real.min())} to {int(real.max())} do not fit the codec's "
                f"0..{self.vocab_size - 1}"
            )


def _load_acoustic_model(model: AcousticModel, tensors: Mapping[str, Tensor], folder: str) -> None:
    """Load the weights under the prefix "speaker." of a fitted folder."""
    weights = {
        name.removeprefix("speaker."): tensor
        for name, tensor in tensors.items()
        if name.startswith("speaker.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the codec in {folder} holds nets of another shape than this version builds; fit it "
            "again"
        ) from error


@functools.cache  # every stage of a trial builds its codec anew
def _random_folder(V: int) -> CodecFolder:
    """A codec of V units with random weights, the same in every process.

    The centroids are frames of noise under a random encoder, so that other noise falls to many
    different units.
    """
    described = {"name": "whisper", "weights": "random"}
    encoder, vocoder = ENCODERS.build(ENCODERS.parse(described)), build_vocoder(RANDOM)
    sizes = AcousticModelSizes(
        prosody_channels=16, prosody_depth=1, mel_channels=16, coarse_depth=1, fine_depth=1
    )
    # Noise and weights are drawn from one seeded generator, in this order.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples = 0.1 * torch.randn(1, encoder.rate_hz * V // int(encoder.frame_rate_hz))
        lengths = torch.tensor([samples.shape[1]])
        frames = encoder(Waveform(samples, lengths, encoder.rate_hz)).values[0]  # [F, D]
        model = AcousticModel(V, sizes, frames_ratio(encoder, vocoder), vocoder.recipe)
    tensors = codec_tensors(frames[:V].clone(), model)
    fingerprint = json_hash({"random": V, "format": FORMAT})
    return CodecFolder(described, RANDOM, sizes, tensors, b"", {}, fingerprint)
