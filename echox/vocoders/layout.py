"""The published layout of a unit vocoder: `vocoder_config.json` beside `g_00500000`.

The weights are a torch file of plain tensors.

Source: fairseq's release (CodeHiFiGANVocoder) and speech-resynthesis, whose names of settings and
weights are kept.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.core.errors import CheckpointError
from echox.core.files import atomic_write
from echox.vocoders.hifigan import HifiGan
from echox.vocoders.unit_generator import DurationPredictor, UnitGenerator

# As in EchoX's folders; other trainings end at another number of steps.
WEIGHTS, CONFIG = "g_00500000", "vocoder_config.json"
SPEAKERS = 200  # where a config of several speakers names no number
KERNEL = 3  # of the duration predictor: fairseq pads its second convolution for no other
RATE_HZ = 16_000  # where a config does not say
# A damaged file of weights fails in any of these ways, and so does one of other content.
_READ_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
)
# Settings of vocoders that need an input beside units -> that input.
UNSUPPORTED = {
    "f0": "pitch",
    "embedder_params": "speaker vectors",
    "f0_vq_params": "a pitch codebook",
    "code_vq_params": "a codebook of its own",
}
# A vocoder_config.json of the smallest size, with the unit count and hop of the release.
TINY: dict[str, Any] = {
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
    "dur_predictor_params": {
        "encoder_embed_dim": 4,
        "var_pred_hidden_dim": 4,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


def weights_path(folder: Path) -> Path:
    """Return the weights file in a folder: `g_00500000`, else the one with the highest number.

    Without any such file, the path of `g_00500000` is returned, for an error to name.
    """
    numbered = sorted(path for path in folder.glob("g_*") if re.fullmatch(r"g_\d{8}", path.name))
    return numbered[-1] if numbered and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings in a `vocoder_config.json`.

    Raises:
        CheckpointError: the file is missing, unreadable, or describes a vocoder that needs more
            input than units and speakers.
    """
    settings = _read_json(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings of a vocoder; copy it again")
    if inputs := [name for key, name in UNSUPPORTED.items() if settings.get(key)]:
        raise CheckpointError(
            f"{path} describes a vocoder with {' and '.join(inputs)} as input, which units alone "
            "do not give; take one of units and speakers"
        )
    return settings


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the vocoder's {path} does not exist; copy {WEIGHTS} and {CONFIG} from the published "
            "folder"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error


def rate_hz(settings: Mapping[str, Any]) -> int:
    """Return the sample rate in Hz."""
    return settings.get("sampling_rate", RATE_HZ)


def hop_samples(settings: Mapping[str, Any]) -> int:
    """Return the samples per frame of units."""
    return math.prod(settings["upsample_rates"])


def generator_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings to a config of `HifiGan`.

    Paddings and slopes are fairseq's constants.

    Raises:
        KeyError: a size is missing.
        ValueError: there are more or fewer kernels than rates.
    """
    rates, kernels = settings["upsample_rates"], settings["upsample_kernel_sizes"]
    # So that a stage makes exactly `rate` samples of each input.
    paddings = [(kernel - rate) // 2 for kernel, rate in zip(kernels, rates, strict=True)]
    return {
        "model_in_dim": _input_channels(settings),
        **settings,
        "leaky_relu_slope": 0.1,
        "final_leaky_relu_slope": 0.01,
        "upsample_output_paddings": [0] * len(rates),
        "upsample_paddings": paddings,
    }


def _input_channels(settings: Mapping[str, Any]) -> int:
    """Channels of a unit's embedding, together with a speaker's where there are several."""
    width = settings["embedding_dim"]
    return 2 * width if settings.get("multispkr") else width


def build_generator(settings: Mapping[str, Any], path: Path) -> UnitGenerator:
    """Build an untrained generator.

    Args:
        settings: as in a `vocoder_config.json`.
        path: where they are from, for error messages.

    Raises:
        CheckpointError: a setting is missing, of the wrong kind, or does not fit another.
    """
    try:
        net = _build(settings)
        faults = list(_faults(settings))
    # PyTorch raises any of these for sizes that it cannot build.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no vocoder config of fairseq: {type(error).__name__} {error}; copy it again"
        ) from error
    if faults:
        raise CheckpointError(
            f"{path} describes a vocoder that cannot be built: {'; '.join(faults)}"
        )
    return net


def _build(settings: Mapping[str, Any]) -> UnitGenerator:
    # Predictor, HiFi-GAN, then embeddings: the order decides the random weights of each.
    return UnitGenerator(
        settings["num_embeddings"],
        settings["embedding_dim"],
        settings.get("num_speakers", SPEAKERS) if settings.get("multispkr") else None,
        _build_predictor(settings),
        HifiGan(generator_sizes(settings)),
    )


def _build_predictor(settings: Mapping[str, Any]) -> DurationPredictor | None:
    sizes = settings.get("dur_predictor_params")
    if not sizes:
        return None
    return DurationPredictor(
        sizes["encoder_embed_dim"],
        sizes["var_pred_hidden_dim"],
        sizes["var_pred_kernel_size"],
        sizes.get("var_pred_dropout", 0.5),
    )


def _faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """A clause for each setting that contradicts another or fairseq's code."""
    width, channels = settings["embedding_dim"], _input_channels(settings)
    if settings.get("model_in_dim", channels) != channels:
        beside = " beside a speaker's of as many" if settings.get("multispkr") else ""
        yield (
            f"model_in_dim is {settings['model_in_dim']}, but units of {width} channels{beside} "
            f"make {channels}"
        )
    hop = hop_samples(settings)
    stated = settings.get("code_hop_size", hop)
    if stated != hop:
        yield f"upsample_rates make {hop} samples of a unit, code_hop_size says {stated}"
    rates, kernels = settings["upsample_rates"], settings["upsample_kernel_sizes"]
    for rate, kernel in zip(rates, kernels, strict=True):
        # Otherwise no padding makes exactly `rate` samples of each input.
        if kernel < rate or (kernel - rate) % 2:
            yield f"an upsampling by {rate} needs a kernel larger by an even number, not {kernel}"
    yield from _predictor_faults(settings.get("dur_predictor_params") or {}, width)


def _predictor_faults(sizes: Mapping[str, Any], width: int) -> Iterator[str]:
    if not sizes:
        return
    if sizes["encoder_embed_dim"] != width:
        yield (
            f"the duration predictor reads {sizes['encoder_embed_dim']} channels, units have "
            f"{width}"
        )
    if sizes["var_pred_kernel_size"] != KERNEL:
        yield (
            f"the duration predictor's kernel is {sizes['var_pred_kernel_size']}, fairseq pads for "
            f"{KERNEL} alone"
        )


def tiny_generator() -> UnitGenerator:
    """Build the generator of `TINY`, untrained, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_generator(TINY, Path(CONFIG)).requires_grad_(False).eval()


# fairseq's prefixes and those of `UnitGenerator`. The empty one matches every name, so it is last:
# all other tensors are the HiFi-GAN's.
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
    """Load published weights into a generator without weight norm, in place.

    Args:
        net: as `build_generator` returns it.
        path: the published weights, with or without weight norm.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another shape than the config says.
    """
    tensors = {
        _our_name(name): tensor for name, tensor in _without_weight_norm(_read(path)).items()
    }
    expected = net.state_dict()
    _check_tensors(tensors, expected, path)
    # A file may hold more tensors than the config asks for; those are not used.
    net.load_state_dict({name: tensors[name] for name in expected})
    return net


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(
            f"the vocoder {path} lacks {len(missing)} tensors that {CONFIG} asks for, such as "
            f"{missing[0]}; copy both again"
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"tensor {name} of the vocoder {path} has shape {list(tensors[name].shape)}, "
                f"but {CONFIG} asks for {list(tensor.shape)}; copy both again"
            )


def _our_name(name: str) -> str:
    """`UnitGenerator`'s name of a tensor that fairseq calls `name`."""
    theirs, ours = next((theirs, ours) for theirs, ours in PREFIXES if name.startswith(theirs))
    return ours + name.removeprefix(theirs)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a published file by fairseq's names, float32 on the CPU."""
    try:
        # `weights_only`, because a pickle could run code.
        tensors = torch.load(path, map_location="cpu", weights_only=True)["generator"]
        return {name: tensor.float() for name, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the vocoder's weights {path} do not exist; copy {WEIGHTS} and {CONFIG} from the "
            "published folder"
        ) from error
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{path} holds no vocoder weights that can be read without running code "
            f"({type(error).__name__}); copy it again"
        ) from error


def _without_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with each pair `weight_g`, `weight_v` multiplied to one `weight`."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_v"):
            # Without a `weight_g` the weight is the direction itself, so its own norm is the scale.
            norm = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            scale = tensors.get(name.removesuffix("_v") + "_g", norm)
            # PyTorch's own product, so that the weights equal those under weight norm to the bit.
            plain[name.removesuffix("_v")] = torch._weight_norm(tensor, scale, 0)
        elif not name.endswith(".weight_g"):
            plain[name] = tensor
    return plain


def normed(net: UnitGenerator) -> UnitGenerator:
    """Give the HiFi-GAN's convolutions weight norm, in place, as for training and publishing."""
    # A list, because the parametrisation adds modules during the iteration.
    for module in list(net.vocoder.modules()):
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.utils.parametrizations.weight_norm(module)
    return net


def write_vocoder(folder: Path, net: UnitGenerator, settings: Mapping[str, Any], step: int) -> Path:
    """Write a vocoder in the published layout.

    Args:
        folder: created where it does not exist; weights of other steps in it are deleted.
        net: a generator with weight norm, as `normed` makes it.
        settings: content of `vocoder_config.json`.
        step: training steps, in eight digits of the file's name.

    Returns:
        the path of the weights.

    Raises:
        DiskError: the disk is full or cannot be written; weights of other steps are kept then.
    """
    path = folder / f"g_{step:08d}"
    # In memory first, because torch calls any fault of the disk a RuntimeError.
    content = io.BytesIO()
    torch.save({"generator": published_tensors(net)}, content)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())
    with atomic_write(folder / CONFIG) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for other in folder.glob("g_*"):
        if other != path:
            other.unlink()
    return path


def published_tensors(net: UnitGenerator) -> dict[str, Tensor]:
    """Return the generator's tensors under fairseq's names, weight norm as g and v."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        theirs, ours = next((theirs, ours) for theirs, ours in PREFIXES if name.startswith(ours))
        name = theirs + name.removeprefix(ours)
        # PyTorch's parametrisation numbers them; the release has the names of its older function.
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        tensors[name] = tensor.detach().cpu().clone()
    return tensors
