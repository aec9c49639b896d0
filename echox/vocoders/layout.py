"""The published layout of a unit vocoder: `vocoder_config.json` beside `g_00500000`, a torch file of plain tensors.

Source: fairseq's release (CodeHiFiGANVocoder) and speech-resynthesis, whose names of settings and weights are kept.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.disk import room_for
from echox.errors import CheckpointError
from echox.vocoders.hifigan import HifiGan
from echox.vocoders.unit_generator import DurationPredictor, UnitGenerator

WEIGHTS, CONFIG = "g_00500000", "vocoder_config.json"  # as EchoX's folders name them; other trainings stop at another number
SPEAKERS = 200  # where a config of several speakers names no number
KERNEL = 3  # of the duration predictor: fairseq pads its second convolution for no other
RATE_HZ = 16_000  # where a config does not say
# What is built by the config alone, for all others would need an input that units do not give.
UNSUPPORTED = {
    "f0": "pitch",
    "embedder_params": "speaker vectors",
    "f0_vq_params": "a pitch codebook",
    "code_vq_params": "a codebook of its own",
}
TINY = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "num_embeddings": 1000,
    "embedding_dim": 4,
    "model_in_dim": 4,
    "sampling_rate": RATE_HZ,
    "code_hop_size": 320,
    "dur_predictor_params": {"encoder_embed_dim": 4, "var_pred_hidden_dim": 4, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5},
}  # a vocoder_config.json of the smallest size


def weights_path(folder: Path) -> Path:
    """The generator's file in a folder: `g_00500000`, or else the one with the highest number; where there is none, the first is named."""
    found = sorted(path for path in folder.glob("g_*") if re.fullmatch(r"g_\d{8}", path.name))
    return found[-1] if found and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a `vocoder_config.json`.

    Raises:
        CheckpointError: it is missing, unreadable, or describes a vocoder that units alone cannot feed.
    """
    try:
        settings = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"the vocoder's {path} does not exist; copy {WEIGHTS} and {CONFIG} from the published folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings of a vocoder; copy it again")
    if inputs := [said for name, said in UNSUPPORTED.items() if settings.get(name)]:
        raise CheckpointError(
            f"{path} describes a vocoder with {' and '.join(inputs)} as input, which units alone do not give; "
            "take one of units and speakers"
        )
    return settings


def rate_hz(settings: Mapping[str, Any]) -> int:
    """Samples per second."""
    return settings.get("sampling_rate", RATE_HZ)


def hop_samples(settings: Mapping[str, Any]) -> int:
    """Samples per frame of units."""
    return math.prod(settings["upsample_rates"])


def generator_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `HifiGan` is built by; paddings and slopes are fairseq's constants."""
    rates, kernels = settings["upsample_rates"], settings["upsample_kernel_sizes"]
    width = settings["embedding_dim"]
    return {
        "model_in_dim": 2 * width if settings.get("multispkr") else width,
        **settings,
        "leaky_relu_slope": 0.1,
        "final_leaky_relu_slope": 0.01,
        "upsample_output_paddings": [0] * len(rates),
        "upsample_paddings": [(kernel - rate) // 2 for kernel, rate in zip(kernels, rates, strict=True)],
    }


def build_generator(settings: Mapping[str, Any], path: Path) -> UnitGenerator:
    """An untrained generator of the sizes that the settings at `path` say.

    Raises:
        CheckpointError: a setting is missing, of the wrong kind, or does not fit another.
    """
    try:
        net = _build(settings)
        faults = list(_faults(settings))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no vocoder config of fairseq: {type(error).__name__} {error}; copy it again") from error
    if faults:
        raise CheckpointError(f"{path} describes a vocoder that cannot be: {'; '.join(faults)}")
    return net


def _build(settings: Mapping[str, Any]) -> UnitGenerator:
    predictor = settings.get("dur_predictor_params")
    return UnitGenerator(
        settings["num_embeddings"],
        settings["embedding_dim"],
        settings.get("num_speakers", SPEAKERS) if settings.get("multispkr") else None,
        DurationPredictor(
            predictor["encoder_embed_dim"],
            predictor["var_pred_hidden_dim"],
            predictor["var_pred_kernel_size"],
            predictor.get("var_pred_dropout", 0.5),
        )
        if predictor
        else None,
        HifiGan(generator_sizes(settings)),
    )


def _faults(settings: Mapping[str, Any]) -> Iterator[str]:
    width = settings["embedding_dim"]
    joined = 2 * width if settings.get("multispkr") else width
    if settings.get("model_in_dim", joined) != joined:
        beside = " beside a speaker's of as many" if settings.get("multispkr") else ""
        yield f"model_in_dim is {settings['model_in_dim']}, but units of {width} channels{beside} make {joined}"
    hop = hop_samples(settings)
    if settings.get("code_hop_size", hop) != hop:
        yield f"upsample_rates make {hop} samples of a unit, code_hop_size says {settings['code_hop_size']}"
    for rate, kernel in zip(settings["upsample_rates"], settings["upsample_kernel_sizes"], strict=True):
        if kernel < rate or (kernel - rate) % 2:
            yield f"an upsampling by {rate} needs a kernel larger by an even number, not {kernel}"
    if predictor := settings.get("dur_predictor_params"):
        if predictor["encoder_embed_dim"] != width:
            yield f"the duration predictor reads {predictor['encoder_embed_dim']} channels, units have {width}"
        if predictor["var_pred_kernel_size"] != KERNEL:
            yield f"the duration predictor's kernel is {predictor['var_pred_kernel_size']}, fairseq pads for {KERNEL} alone"


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


def fill(net: UnitGenerator, path: Path) -> UnitGenerator:
    """Read the published weights at `path` into a generator whose convolutions are plain.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another shape than the config says.
    """
    ours = {}
    for name, tensor in _unweighted(_read(path)).items():
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
                f"tensor {name} of the vocoder {path} has shape {list(ours[name].shape)}, "
                f"but {CONFIG} asks for {list(tensor.shape)}; copy both again"
            )
    net.load_state_dict({name: ours[name] for name in wanted})
    return net


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["generator"]
        return {name: tensor.float() for name, tensor in found.items()}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the vocoder's weights {path} do not exist; copy {WEIGHTS} and {CONFIG} from the published folder"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds no vocoder weights that can be read without running code ({type(error).__name__}); copy it again"
        ) from error


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


def normed(net: UnitGenerator) -> UnitGenerator:
    """Give the convolutions of the HiFi-GAN a weight norm, in place, as they are trained and published with."""
    for module in list(net.vocoder.modules()):
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.utils.parametrizations.weight_norm(module)
    return net


def write_vocoder(folder: Path, net: UnitGenerator, settings: Mapping[str, Any], step: int) -> Path:
    """Write a generator that `normed` went over, as it is published: `g_` and the step in eight digits, and the settings.

    Raises:
        TrainingError: the disk is full.
    """
    path = folder / f"g_{step:08d}"
    with room_for(path):
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("g_*"):
            other.unlink()
        torch.save({"generator": published_tensors(net)}, path)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return path


def published_tensors(net: UnitGenerator) -> dict[str, Tensor]:
    """The generator's tensors under fairseq's names, weight norm as g and v."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        theirs, ours = next((theirs, ours) for theirs, ours in PREFIXES if name.startswith(ours))
        name = theirs + name.removeprefix(ours)
        name = name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
        tensors[name] = tensor.detach().cpu().clone()
    return tensors
