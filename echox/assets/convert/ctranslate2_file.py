"""Reader of CTranslate2 model files, with numpy alone.

A file is a list of named arrays, so reading it runs no code.

Source: CTranslate2 4.x, `python/ctranslate2/specs/model_spec.py`, which writes the file.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from echox.core.errors import AssetError

BINARY_VERSION = 6
SPEC_NAME = "WhisperSpec"

# CTranslate2's numbers of the element types a Whisper file may contain.
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read all arrays of a CTranslate2 model file.

    Layout, little endian: u32 version; string spec name; u32 spec revision; u32 count, then per
    array a string name, u8 rank, u32 per dimension, u8 element type, u32 bytes, the bytes; u32
    count of aliases, then per alias two strings. A string is a u16 length that counts a closing
    zero byte, then the bytes.

    Args:
        file: `model.bin`, open for reading bytes.

    Returns:
        name -> array; an alias shares the array it stands for.

    Raises:
        AssetError: the file is of another version or model type, or it ends too early.
    """
    _check_header(file)
    (count,) = _unpack(file, "<I")
    arrays = dict(_array(file) for _ in range(count))
    (alias_count,) = _unpack(file, "<I")
    for _ in range(alias_count):
        alias, name = _string(file), _string(file)
        arrays[alias] = arrays[name]
    return arrays


def _check_header(file: BinaryIO) -> None:
    (version,) = _unpack(file, "<I")
    if version != BINARY_VERSION:
        raise AssetError(
            f"the model file is of CTranslate2 version {version}; echox reads version "
            f"{BINARY_VERSION}"
        )
    spec = _string(file)
    if spec != SPEC_NAME:
        raise AssetError(f"the CTranslate2 file holds a {spec!r}; echox reads {SPEC_NAME!r}")
    _unpack(file, "<I")  # the spec's revision, unused


def _array(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    (rank,) = _unpack(file, "<B")
    shape = _unpack(file, f"<{rank}I")
    number, size = _unpack(file, "<BI")
    if number not in _DTYPES:
        raise AssetError(
            f"array {name!r} has CTranslate2 element type {number}; echox reads {sorted(_DTYPES)}"
        )
    return name, np.frombuffer(_exactly(file, size), dtype=_DTYPES[number]).reshape(shape)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return _exactly(file, length)[:-1].decode("utf-8")  # without the closing zero byte


def _unpack(file: BinaryIO, layout: str) -> tuple:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout)))


def _exactly(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes; a shorter file is an AssetError, not an error of numpy or struct."""
    data = file.read(size)
    if len(data) != size:
        raise AssetError(
            f"the CTranslate2 file ends {size - len(data)} bytes too early; it was not copied whole"
        )
    return data
