"""Pickles of joblib and scikit-learn read as plain data: nothing they name is imported, and nothing of theirs is run."""

from __future__ import annotations

import math
import pickle
import re
import struct
from io import BytesIO
from typing import Any

import numpy as np

from echox.errors import CheckpointError

_NUMBERS = re.compile(r"[biuf](1|2|4|8|16)")  # dtypes whose bytes are values; objects would be a pickle in the pickle
_JOBLIB = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_SKLEARN = ("sklearn.cluster.k_means_", "sklearn.cluster._kmeans")


class Record:
    """An object of a foreign class: its attributes, and none of its code."""

    def __new__(cls, *arguments: Any) -> Record:
        # Not in __init__, which a pickle may leave out.
        record = super().__new__(cls)
        record.arguments, record.attributes = arguments, {}
        return record

    def fill(self, state: Any, file: BytesIO) -> None:
        """Take what the pickle says of it; `file` stands behind."""
        self.attributes = state if isinstance(state, dict) else {"state": state}

    @property
    def value(self) -> Any:
        """What it is read for: a model's centres, an array's numbers."""
        return _plain(self.attributes.get("cluster_centers_", self))


class _DType(Record):
    """A numpy.dtype as it was pickled: a code such as "f8", and a byte order among its state."""

    def numpy(self) -> np.dtype:
        code = self.arguments[0]
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise CheckpointError(f"it holds an array of {code!r}, which are no numbers")
        state = self.attributes.get("state") or (None, "=")
        return np.dtype(code).newbyteorder("=" if state[1] == "|" else state[1])


class _Array(Record):
    """An array of numpy's own pickling, whose state is version, shape, dtype, Fortran order and bytes."""

    value = None

    def fill(self, state: Any, file: BytesIO) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if is_fortran else "C")


class _Follows(Record):
    """joblib's mark for an array whose bytes follow in the file."""

    value = None

    def fill(self, state: Any, file: BytesIO) -> None:
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2: the size of a padding, and the padding
            file.seek(file.read(1)[0], 1)
        size = state["dtype"].numpy().itemsize * math.prod(state["shape"])
        self.value = _array(file.read(size), state["dtype"], state["shape"], state["order"])


def _array(raw: bytes | str, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)


def _buffered(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """How protocol 5 writes an array."""
    return _array(raw, dtype, shape, order)


def _scalar(dtype: _DType, raw: bytes | str) -> np.ndarray:
    return _array(raw, dtype, (), "C")


def _reconstructed(kind: type[Record], *_: Any) -> Record:
    """How protocols 0 and 1 make an object."""
    return kind()


def _encoded(text: str, _: str) -> bytes:
    """How protocol 2 writes bytes."""
    return text.encode("latin1")


# Module and name in the file -> what stands for it here.
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): Record,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("builtins", "object"): Record,
    ("_codecs", "encode"): _encoded,
    # A model keeps the state of its random numbers.
    ("numpy.random._pickle", "__randomstate_ctor"): Record,
    ("numpy.random._pickle", "__bit_generator_ctor"): Record,
    ("numpy.random._mt19937", "MT19937"): Record,
    ("numpy.random", "__RandomState_ctor"): Record,
    ("numpy.core.numeric", "_frombuffer"): _buffered,
    ("numpy._core.numeric", "_frombuffer"): _buffered,
    **{(module, "NumpyArrayWrapper"): _Follows for module in _JOBLIB},
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, name): Record for module in _SKLEARN for name in ("KMeans", "MiniBatchKMeans")},
}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Reader(pickle._Unpickler):
    """Python's unpickler written in Python: joblib's arrays have to be read between its steps, as joblib does."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        module = PYTHON_2.get(module, module)
        if (module, name) not in STAND_INS:
            raise CheckpointError(f"it asks for {module}.{name}, which k-means centres do not need; nothing of it was run")
        return STAND_INS[module, name]

    def get_extension(self, code: int) -> Any:
        raise CheckpointError(f"it asks for extension {code} of Python's registry, which k-means centres do not need")

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise CheckpointError(f"it gives a state to a {type(self.stack[-1]).__name__}, which has none")
        self.stack[-1].fill(state, self.file)

    def load_bytearray8(self) -> None:
        # Python's own makes room for as much as the file says before it reads.
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) < size:
            raise EOFError(f"{size} bytes are announced and {len(content)} are there")
        self.append(bytearray(content))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_inert(content: bytes) -> Any:
    """What a pickle or an unpacked joblib file is read for: the centres of a k-means, or an array; `Record`s for other objects.

    Raises:
        CheckpointError: it names anything but NumPy's arrays and scikit-learn's k-means. Many others: it is damaged.
    """
    return _plain(_Reader(BytesIO(content)).load())


def _plain(held: Any) -> Any:
    is_value = not isinstance(held, Record) or not (isinstance(held, (_Array, _Follows)) or "cluster_centers_" in held.attributes)
    return held if is_value else held.value
