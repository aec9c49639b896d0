"""The unit vocoder of fairseq that EchoX speaks with: reduced HuBERT units -> durations -> waveform."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.codecs.unit_vocoder.vocoder import HifiGan, MelRecipe
from echox.errors import CheckpointError, ConfigError, SignalError
from echox.signals import Units, Waveform

WEIGHTS, CONFIG = "g_00500000", "vocoder_config.json"
SPEAKERS = 200  # where a config of several speakers names no number
TINY = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "num_embeddings": 1000,
    "embedding_dim": 4,
    "model_in_dim": 4,
    "sampling_rate": 16_000,
    "code_hop_size": 320,
    "dur_predictor_params": {"encoder_embed_dim": 4, "var_pred_hidden_dim": 4, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5},
}  # a vocoder_config.json of the smallest size


@dataclass(kw_only=True, slots=True)
class UnitHifiGanConfig(CodecConfig):
    """A unit HiFi-GAN of fairseq in a folder with g_00500000 and vocoder_config.json."""

    folder: str = ""
    """Folder of the two files, as a published EchoX folder has them; "random" builds a tiny untrained one for tests."""
    speaker: int = 1
    """Voice of a vocoder of several speakers; 1 in the EchoX release."""


@CODECS.register("unit_hifigan", UnitHifiGanConfig)
class UnitHifiGan(Codec):
    """Units without repeats become as many frames as their predicted durations, then 16 kHz samples. It only decodes.

    Source: Lee et al. 2022, arXiv:2107.05604 (duration prediction); Kong et al. 2020, arXiv:2010.05646; weights as in fairseq's release.
    """

    encodes = False

    def __init__(self, config: UnitHifiGanConfig) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or the two do not fit each other.
            ConfigError: the speaker is unknown.
        """
        super().__init__()
        self.config = config
        self.folder = Path(config.folder)
        self.is_random = config.folder == "random"
        settings = TINY if self.is_random else _settings(self.folder / CONFIG)
        self.net = tiny_generator() if self.is_random else _filled(build_generator(settings, self.folder / CONFIG), self.folder / WEIGHTS)
        self.rate_hz = settings["sampling_rate"]
        self.samples_per_frame = settings["code_hop_size"]
        self.unit_rate_hz = self.rate_hz / self.samples_per_frame
        self.vocab_size = settings["num_embeddings"]
        speakers = self.net.speakers.num_embeddings if self.net.speakers is not None else None
        if speakers is not None and not 0 <= config.speaker < speakers:
            raise ConfigError(f"speaker {config.speaker} is asked for, but the vocoder in {self.folder} has speakers 0 to {speakers - 1}")

    @classmethod
    def expected_word_count(cls, config: UnitHifiGanConfig) -> int:
        path = Path(config.folder) / CONFIG
        return (_settings(path) if config.folder != "random" and path.is_file() else TINY)["num_embeddings"]

    @classmethod
    def missing(cls, config: UnitHifiGanConfig) -> list[str]:
        paths = [] if config.folder == "random" else [Path(config.folder) / name for name in (WEIGHTS, CONFIG)]
        return [str(path) for path in paths if not path.is_file()]

    def files(self) -> list[Path]:
        """What it was read from."""
        return [] if self.is_random else [self.folder / name for name in (WEIGHTS, CONFIG)]

    def encode(self, wave: Waveform) -> Units:
        """
        Raises:
            ConfigError: always, for the release has no unit extractor.
        """
        raise ConfigError("unit_hifigan only turns units into speech; encode with the codec that made the units")

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Each row is decoded by itself, for padding would be heard through the convolutions; negative units are left out."""
        rows = [self.sound(row[:length]) for row, length in zip(units.ids, units.lengths.tolist())]
        lengths = torch.tensor([len(row) for row in rows], device=units.ids.device)
        return Waveform(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, self.rate_hz)

    @torch.no_grad()
    def sound(self, units: Tensor, speaker: int | None = None, *, durations: bool = True) -> Tensor:
        """Units [U] -> samples [T] in [-1, 1].

        Args:
            speaker: None takes the config's.
            durations: False gives every unit one frame.
        Raises:
            SignalError: a unit is beyond the vocoder's.
        """
        units = units[units >= 0]
        if len(units) == 0:
            return torch.zeros(0, device=units.device)
        if int(units.max()) >= self.vocab_size:
            raise SignalError(
                f"unit {int(units.max())} is beyond the {self.vocab_size} units of the vocoder in {self.folder}; the units are of another codec"
            )
        frames = self.net.durations(units)[1] if durations else torch.ones_like(units)
        return self.net(units.repeat_interleave(frames), self.config.speaker if speaker is None else speaker)

    def words(self, units: list[int]) -> list[int]:
        return list(units)

    def units_of(self, words: list[int]) -> list[int]:
        return list(words)

    @property
    def word_count(self) -> int:
        return self.vocab_size

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.config.folder if self.is_random else ''}{self.config.speaker}".encode())
        for name in () if self.is_random else (CONFIG, WEIGHTS):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:16]


class UnitGenerator(nn.Module):
    """Unit embeddings, beside a speaker's where there are several, through a HiFi-GAN."""

    def __init__(self, units: int, width: int, speakers: int | None, predictor: DurationPredictor | None, vocoder: HifiGan) -> None:
        super().__init__()
        self.units = nn.Embedding(units, width)
        self.speakers = None if speakers is None else nn.Embedding(speakers, width)
        self.predictor = predictor
        self.vocoder = vocoder

    def durations(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Units [U] -> log(1 + frames) as predicted [U], and frames [U], at least 1."""
        if self.predictor is None:
            return torch.zeros(len(units), device=units.device), torch.ones_like(units)
        logs = self.predictor(self.units(units)[None])[0]
        return logs, (logs.exp() - 1).round().long().clamp(min=1)

    def forward(self, units: Tensor, speaker: int) -> Tensor:
        """A unit per frame [F] -> samples [F * hop]."""
        frames = self.units(units)
        if self.speakers is not None:
            frames = torch.cat([frames, self.speakers.weight[speaker].expand(len(frames), -1)], dim=1)
        return self.vocoder(frames[None])[0]


class DurationPredictor(nn.Module):
    """Two convolutions over unit embeddings, each followed by a layer norm."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, hidden, kernel, padding=(kernel - 1) // 2)
        self.norm1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Conv1d(hidden, hidden, kernel, padding=1)
        self.norm2 = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        """[B, U, C] -> log(1 + frames) [B, U]."""
        states = self.norm1(F.relu(self.conv1(states.transpose(1, 2))).transpose(1, 2))
        states = self.norm2(F.relu(self.conv2(states.transpose(1, 2))).transpose(1, 2))
        return self.out(states)[..., 0]


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"the vocoder's {path} does not exist; copy {WEIGHTS} and {CONFIG} from the published folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
    if settings.get("f0") or settings.get("embedder_params"):
        raise CheckpointError(
            f"{path} describes a vocoder with pitch or speaker vectors as input, which EchoX has not; take EchoX's own vocoder"
        )
    return settings


def build_generator(settings: Mapping[str, Any], path: Path) -> UnitGenerator:
    """
    Raises:
        CheckpointError: a setting is missing or of the wrong kind.
    """
    try:
        rates, kernels = settings["upsample_rates"], settings["upsample_kernel_sizes"]
        fixed = {"leaky_relu_slope": 0.1, "final_leaky_relu_slope": 0.01, "upsample_output_paddings": [0] * len(rates)}
        paddings = [(kernel - rate) // 2 for kernel, rate in zip(kernels, rates, strict=True)]
        width = settings["embedding_dim"]
        several = settings.get("multispkr")
        predictor = settings.get("dur_predictor_params")
        # The mel recipe is not used: units come in place of mels.
        vocoder = HifiGan(
            {"model_in_dim": 2 * width if several else width, **settings, **fixed, "upsample_paddings": paddings}, MelRecipe()
        )
        return UnitGenerator(
            settings["num_embeddings"],
            width,
            settings.get("num_speakers", SPEAKERS) if several else None,
            None
            if not predictor
            else DurationPredictor(predictor["encoder_embed_dim"], predictor["var_pred_hidden_dim"], predictor["var_pred_kernel_size"]),
            vocoder,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no vocoder config of fairseq: {type(error).__name__} {error}; copy it again") from error


def tiny_generator() -> UnitGenerator:
    """The generator of `TINY`, untrained, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_generator(TINY, Path(CONFIG)).requires_grad_(False).eval()


# fairseq's prefixes and ours; what none of them fits is the HiFi-GAN's.
PREFIXES = (
    ("dict.", "units."),
    ("spkr.", "speakers."),
    ("dur_predictor.conv1.0.", "predictor.conv1."),
    ("dur_predictor.ln1.", "predictor.norm1."),
    ("dur_predictor.conv2.0.", "predictor.conv2."),
    ("dur_predictor.ln2.", "predictor.norm2."),
    ("dur_predictor.proj.", "predictor.out."),
    ("", "vocoder."),
)


def _filled(net: UnitGenerator, path: Path) -> UnitGenerator:
    """
    Raises:
        CheckpointError: the weights are missing, damaged, or of another shape than the config says.
    """
    tensors = _unweighted(_read(path))
    ours = {}
    for name, tensor in tensors.items():
        theirs, prefix = next((theirs, prefix) for theirs, prefix in PREFIXES if name.startswith(theirs))
        ours[prefix + name.removeprefix(theirs)] = tensor
    wanted = net.state_dict()
    if missing := sorted(wanted.keys() - ours.keys()):
        raise CheckpointError(
            f"the vocoder {path} lacks {len(missing)} tensors that {CONFIG} asks for, such as {missing[0]}; copy both again"
        )
    for name, tensor in wanted.items():
        if ours[name].shape != tensor.shape:
            raise CheckpointError(
                f"tensor {name} of the vocoder {path} has shape {list(ours[name].shape)}, but {CONFIG} asks for {list(tensor.shape)}; copy both again"
            )
    net.load_state_dict({name: ours[name] for name in wanted})
    return net.requires_grad_(False).eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)["generator"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the vocoder's weights {path} do not exist; copy {WEIGHTS} and {CONFIG} from the published folder"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds no vocoder weights that can be read without running code ({type(error).__name__}); copy it again"
        ) from error
    return {name: tensor.float() for name, tensor in tensors.items()}


def _unweighted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm multiplied out: every g and v become one weight."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_v"):
            scale = tensors.get(name.removesuffix("_v") + "_g", torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True))
            plain[name.removesuffix("_v")] = torch._weight_norm(tensor, scale, 0)
        elif not name.endswith(".weight_g"):
            plain[name] = tensor
    return plain
