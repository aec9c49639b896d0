"""k-means centres from files that others published: fairseq's joblib dumps and NumPy arrays, read without running their code."""

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
from echox.errors import CheckpointError

MOST_BYTES = 2**30  # of a file of centres, unpacked; a thousand centres of 1024 channels are 4 MB
# First bytes -> how joblib packed the rest.
PACKINGS: dict[bytes, Callable[[], Any]] = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
}
_WAY_OUT = "name a .npy file of [units, channels], or a k-means of scikit-learn as joblib or pickle wrote it"


def read_centres(path: str | Path) -> Tensor:
    """Centres of a file.

    Args:
        path: a .npy array, or a KMeans or MiniBatchKMeans of scikit-learn (or the bare array) dumped by joblib or pickle, packed or not.
    Returns:
        centres [K, D] float32.
    Raises:
        CheckpointError: there is no such file, it holds something else, or it asks for code to be run.
    """
    path = Path(path)
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _found(_unpacked(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not read: {error}; {_WAY_OUT}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"the file of centres {path} does not exist; {_WAY_OUT}") from error
    # A damaged pickle fails in whatever step its bytes happen to name.
    except (OSError, EOFError, pickle.UnpicklingError, struct.error, zlib.error, lzma.LZMAError, *_DAMAGES) as error:
        raise CheckpointError(f"{path} holds no centres that can be read ({type(error).__name__}: {error}); {_WAY_OUT}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or not found.size:
        raise CheckpointError(f"{path} holds {_named(found)} and no centres; {_WAY_OUT}")
    centres = torch.from_numpy(found.astype(np.float32))
    if not bool(centres.isfinite().all()):
        raise CheckpointError(f"{path} holds centres that are not finite; copy it again")
    return centres


_DAMAGES = (ValueError, TypeError, KeyError, IndexError, AttributeError, UnicodeDecodeError, MemoryError, OverflowError)


def _found(content: bytes) -> Any:
    if content.startswith(b"ZF"):
        raise CheckpointError("it is packed as joblib did before 0.10")
    return read_inert(content)


def _unpacked(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"it has more than {MOST_BYTES >> 20} MiB")
    content = path.read_bytes()
    unpacker = next((make() for start, make in PACKINGS.items() if content.startswith(start)), None)
    if unpacker is None:
        return content
    unpacked = unpacker.decompress(content, MOST_BYTES)
    if not unpacker.eof:
        raise CheckpointError(f"its packed content is cut off, or has more than {MOST_BYTES >> 20} MiB")
    return unpacked


def _named(found: Any) -> str:
    return f"an array of shape {list(found.shape)} and {found.dtype}" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
