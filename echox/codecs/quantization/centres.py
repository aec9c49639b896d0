"""K-means centres from published files: fairseq's joblib dumps and NumPy arrays.

Nothing in a file is executed: pickles are read as plain data, see `inert_pickle`.
"""

from __future__ import annotations

import bz2
import lzma
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echox.codecs.quantization.inert_pickle import read_inert
from echox.core.errors import CheckpointError

# Bytes of a file, and of its content when decompressed, against decompression bombs. A thousand
# centres of 1024 channels take 4 MB.
MAX_BYTES = 2**30
# First bytes of a file -> the decompressor of joblib's format. Each object decompresses one file.
DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),  # gzip's header
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
}
# A damaged pickle fails in whatever operation its bytes happen to name.
_READ_ERRORS = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    UnicodeDecodeError,
    MemoryError,
    OverflowError,
)
_WAY_OUT = (
    "name a .npy file of [units, channels], or a k-means of scikit-learn as joblib or pickle "
    "wrote it"
)


def read_centres(path: str | Path) -> Tensor:
    """Read k-means centres from a file.

    Args:
        path: a .npy array, or a KMeans or MiniBatchKMeans of scikit-learn (or the bare array)
            dumped by joblib or pickle, compressed or not.

    Returns:
        centres [K, D] float32.

    Raises:
        CheckpointError: the file is missing, holds something else, or asks to run code.
    """
    path = Path(path)
    content = _load(path)
    # Centres are means, so an array of integers holds something else.
    is_matrix = isinstance(content, np.ndarray) and content.ndim == 2
    if not is_matrix or content.dtype.kind != "f" or not content.size:
        raise CheckpointError(f"{path} holds {_description(content)} and no centres; {_WAY_OUT}")
    centres = torch.from_numpy(content.astype(np.float32))
    if not bool(centres.isfinite().all()):
        raise CheckpointError(f"{path} holds centres that are not finite; copy it again")
    return centres


def _load(path: Path) -> Any:
    """The content of a .npy file or of a pickle, errors translated to a sentence with the path."""
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return _read_pickle(_decompressed(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not read: {error}; {_WAY_OUT}") from error
    # An OSError too, so it has to be caught before the others.
    except FileNotFoundError as error:
        raise CheckpointError(f"the file of centres {path} does not exist; {_WAY_OUT}") from error
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{path} holds no centres that can be read ({type(error).__name__}: {error}); "
            f"{_WAY_OUT}"
        ) from error


def _read_pickle(content: bytes) -> Any:
    # The mark of joblib's own container before 0.10, which is not supported.
    if content.startswith(b"ZF"):
        raise CheckpointError("it is packed as joblib did before 0.10")
    return read_inert(content)


def _decompressed(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"it has more than {MAX_BYTES >> 20} MiB")
    content = path.read_bytes()
    decompressor = next(
        (build() for start, build in DECOMPRESSORS.items() if content.startswith(start)), None
    )
    if decompressor is None:
        return content
    decompressed = decompressor.decompress(content, MAX_BYTES)
    # Not at the end: the file is cut off, or the limit stopped a longer content.
    if not decompressor.eof:
        raise CheckpointError(
            f"its packed content is cut off, or has more than {MAX_BYTES >> 20} MiB"
        )
    return decompressed


def _description(content: Any) -> str:
    if isinstance(content, np.ndarray):
        return f"an array of shape {list(content.shape)} and {content.dtype}"
    return f"a {type(content).__name__}"
