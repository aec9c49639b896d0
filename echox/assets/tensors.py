"""Weights in safetensors files, read and written one tensor at a time.

A folder of weights may thus be larger than the memory. The format: eight bytes with the length of
a JSON header, the header (name -> dtype, shape, offsets), then the tensors end to end.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from echox.core.errors import CheckpointError

# The types checkpoints have; the format knows more.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT_BYTES = 8  # of the first tensor: the widest element


@dataclass(frozen=True, slots=True)
class Spec:
    """Type and shape of a tensor, known before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the tensor's elements in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each computed at every access and never kept."""

    specs: Mapping[str, Spec]  # by name; iteration follows its order

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    # Mapping's own version would compute the tensor.
    def __contains__(self, name: object) -> bool:
        return name in self.specs


class StoredTensors(LazyTensors):
    """The tensors of some safetensors files, read from the disk at every access."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the headers of the files.

        Raises:
            CheckpointError: a file is damaged, or has elements of an unknown type.
        """
        self.specs: dict[str, Spec] = {}
        self._files: dict[str, Path] = {}
        for path in paths:
            specs = _specs_in(path)
            self.specs |= specs
            self._files |= dict.fromkeys(specs, path)

    def __getitem__(self, name: str) -> Tensor:
        # Opened anew, because an open file keeps all in memory that was ever read from it.
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


def _specs_in(path: Path) -> dict[str, Spec]:
    try:
        with safe_open(path, framework="pt") as file:
            # In the order of the data, so that reading all tensors reads the file from its start.
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {
                name: Spec(DTYPES[part.get_dtype()], tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds numbers of the kind {error}, which echox does not read; convert it to "
            "float16"
        ) from error


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Return type and shape of each tensor, without computing lazy ones."""
    if isinstance(tensors, LazyTensors):
        return dict(tensors.specs)
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Write some tensors into one safetensors file, holding one at a time in memory.

    Args:
        path: the file, which is overwritten.
        tensors: name -> tensor on any device, lazy or not.
        names: the names to write.
    """
    specs = specs_of(tensors)
    # Wide elements first, so that each tensor begins at a multiple of its element's size.
    names = sorted(names, key=lambda name: -specs[name].dtype.itemsize)
    with path.open("wb") as out:
        out.write(_header({name: specs[name] for name in names}))
        for name in names:
            # Without a name of its own, which would keep a tensor while the next one is computed.
            out.write(_bytes_of(tensors[name]))


def _bytes_of(tensor: Tensor) -> memoryview:
    values = tensor.detach().to("cpu").contiguous()
    # numpy has no bfloat16, so every type is passed on as bytes.
    return values.flatten().view(torch.uint8).numpy().data


def _header(specs: Mapping[str, Spec]) -> bytes:
    """Return the length and the JSON header of a file that holds tensors in this order."""
    # transformers refuses files without this entry.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces after the JSON are part of the format, and align the first tensor.
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
