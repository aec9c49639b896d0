"""Weights in safetensors files, read and written one tensor at a time, so that a folder may be larger than the memory.

The format: eight bytes with the length of a JSON header, the header (name -> dtype, shape, place), then the tensors end to end.
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

from echox.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT_BYTES = 8


@dataclass(frozen=True, slots=True)
class Spec:
    """What a file says of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for, and again when it is asked for again."""

    specs: Mapping[str, Spec]

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs


class StoredTensors(LazyTensors):
    """The tensors of some files."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """
        Raises:
            CheckpointError: a file is damaged, or holds numbers of an unknown kind.
        """
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, Path] = {}
        for path in paths:
            found = _specs_in(path)
            self.specs |= found
            self._places |= dict.fromkeys(found, path)

    def __getitem__(self, name: str) -> Tensor:
        # Opened anew, for an open file keeps all in memory that was ever read from it.
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)


def _specs_in(path: Path) -> dict[str, Spec]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: Spec(DTYPES[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    except KeyError as error:
        raise CheckpointError(f"{path} holds numbers of the kind {error}, which echox does not read; convert it to float16") from error


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """What there is, without any lazy tensor being made."""
    if isinstance(tensors, LazyTensors):
        return dict(tensors.specs)
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Write the tensors of some names into one file, wide numbers first, so that each begins at a multiple of its width."""
    specs = specs_of(tensors)
    names = sorted(names, key=lambda name: -specs[name].dtype.itemsize)
    with path.open("wb") as out:
        out.write(_header({name: specs[name] for name in names}))
        for name in names:
            out.write(tensors[name].detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)


def _header(specs: Mapping[str, Spec]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size_bytes
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
