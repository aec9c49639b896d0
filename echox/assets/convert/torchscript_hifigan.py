"""A HiFi-GAN generator traced to TorchScript -> `model.safetensors` and `config.json`.

No code of the file is run: the archive is a zip, its pickle is read by an unpickler that knows four
names and turns every module into a plain object, and its tensors are raw float32 blocks.

Source: Kong et al. 2020, arXiv:2010.05646 (HiFi-GAN V1); PyTorch's TorchScript archive layout
(`data.pkl`, `data/<key>`).
"""

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from echox.core.errors import AssetError

# The generator's shape and the mel it was trained on. The mel settings are not in the file; they
# were found by searching for the settings whose copy-synthesis comes closest to original speech.
CONFIG: dict[str, Any] = {
    "architecture": "hifigan_v1",
    "model_in_dim": 80,
    "upsample_initial_channel": 512,
    "upsample_rates": [8, 5, 2, 2],
    "upsample_kernel_sizes": [16, 10, 4, 4],
    # Per stage, for a rate r: padding r // 2 + r % 2 and output padding r % 2, so that each stage
    # yields r times its input.
    "upsample_paddings": [4, 3, 1, 1],
    "upsample_output_paddings": [0, 1, 0, 0],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "leaky_relu_slope": 0.1,
    # Before the last convolution the original code uses PyTorch's default slope.
    "final_leaky_relu_slope": 0.01,
    "mel": {
        "sampling_rate": 16_000,
        "n_fft": 640,
        "win_length": 640,
        "window": "hann",
        "hop_length": 160,
        "num_mels": 80,
        "fmin": 0.0,
        "fmax": 8_000.0,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "power": 1.0,
        "log": "natural",
        "clamp_min": 1e-5,
        "center": False,
        "pad_mode": "reflect",
        "padding_samples": 240,
    },
}


def convert(source: Path, target: Path) -> None:
    """Write the generator's plain weights (weight norm folded in) and all its settings.

    Args:
        source: folder with exactly one `.ts` file.
        target: an existing empty folder.

    Raises:
        AssetError: `source` has no single `.ts` file, or it is not the HiFi-GAN of `CONFIG`.
    """
    files = sorted(source.glob("*.ts"))
    if len(files) != 1:
        raise AssetError(f"expected one .ts file in {source}, found {len(files)}")
    weights = fold_weight_norm(read_torchscript(files[0]))
    _check_complete(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", "utf-8")


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a TorchScript archive as data.

    Args:
        path: the archive.

    Returns:
        dotted parameter name -> float32 tensor.

    Raises:
        AssetError: the archive names anything but modules and float tensors.
    """
    with zipfile.ZipFile(path) as archive:
        # All entries lie below one folder, named after the file that was saved.
        root = archive.namelist()[0].split("/")[0]
        with archive.open(f"{root}/data.pkl") as file:
            module = _DataUnpickler(file, archive, root).load()
    return dict(_parameters(module, ""))


def fold_weight_norm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fold weight norm: each pair `weight_g`, `weight_v` becomes `weight` = g * v / |v|.

    Args:
        weights: name -> tensor; `weight_g` [C, 1, 1], `weight_v` [C, ...]. The norm is over all
            axes but the first.

    Returns:
        name -> contiguous tensor, sorted by name.
    """
    folded = {}
    for name, tensor in weights.items():
        stem, _, last = name.rpartition(".")
        if last == "weight_v":
            folded[f"{stem}.weight"] = torch._weight_norm(tensor, weights[f"{stem}.weight_g"], 0)
        elif last != "weight_g":
            folded[name] = tensor
    return {name: tensor.contiguous() for name, tensor in sorted(folded.items())}


class _Module:
    """Placeholder of any module class of the archive; pickle fills its `__dict__`."""


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that can build modules and float tensors, and nothing else."""

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str):
        """Return the class of a pickled name, or raise an AssetError: none may run code."""
        if module.startswith("__torch__."):
            return _Module
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): np.float32,  # the generator holds no other type
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in allowed:
            raise AssetError(
                f"the TorchScript file asks for {module}.{name}, which is neither a module nor a "
                "float tensor; it is not read"
            )
        return allowed[module, name]

    def persistent_load(self, pid):
        """Return the flat array of a storage: ("storage", dtype, key, location, numel)."""
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype=dtype)


def _tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_
) -> torch.Tensor:
    # A copy, because arrays over an archive's bytes are read-only.
    return torch.as_strided(torch.from_numpy(storage.copy()), size, stride, offset)


def _parameters(module: _Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Walk over the tensors of a module and its children, under their dotted names."""
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _parameters(value, f"{prefix}{name}.")


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return the parameter shapes of `CONFIG`'s generator."""
    # Convolutions are [out, in, kernel], transposed ones (`ups`) [in, out, kernel].
    C = CONFIG["upsample_initial_channel"]
    shapes: dict[str, tuple[int, ...]] = {
        "conv_pre.weight": (C, CONFIG["model_in_dim"], 7),
        "conv_pre.bias": (C,),
    }
    block = 0
    for stage, kernel in enumerate(CONFIG["upsample_kernel_sizes"]):
        shapes |= {f"ups.{stage}.weight": (C, C // 2, kernel), f"ups.{stage}.bias": (C // 2,)}
        C //= 2  # each stage halves the channels
        for width, dilations in zip(
            CONFIG["resblock_kernel_sizes"], CONFIG["resblock_dilation_sizes"], strict=True
        ):
            for group in ("convs1", "convs2"):
                for index in range(len(dilations)):
                    name = f"resblocks.{block}.{group}.{index}"
                    shapes |= {f"{name}.weight": (C, C, width), f"{name}.bias": (C,)}
            block += 1
    return shapes | {"conv_post.weight": (1, C, 7), "conv_post.bias": (1,)}


def _check_complete(weights: dict[str, torch.Tensor]) -> None:
    """Raise an AssetError unless `weights` have the names and shapes of `CONFIG`'s generator."""
    expected = _expected_shapes()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    names = sorted(expected.keys() | shapes.keys())
    wrong = [name for name in names if expected.get(name) != shapes.get(name)]
    if wrong:
        raise AssetError(
            f"the TorchScript file is not the expected HiFi-GAN: {len(wrong)} tensors differ, "
            f"first {wrong[0]!r}"
        )
