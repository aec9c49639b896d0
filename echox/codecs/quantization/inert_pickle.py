"""Reader of joblib and scikit-learn pickles as plain data.

No module that a file names is imported and none of its code is run. The few classes that k-means
centres need have stand-ins here that only hold data; any other name is an error.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any, ClassVar, Literal

import numpy as np

from echox.core.errors import CheckpointError

# Type codes whose bytes are values. An array of objects would hold a pickle in the pickle.
_NUMBERS = re.compile(r"[biuf](1|2|4|8|16)")
# Modules have moved: joblib was part of scikit-learn, and the others have newer private names.
_JOBLIB = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
Order = Literal["C", "F"]
_SKLEARN = ("sklearn.cluster.k_means_", "sklearn.cluster._kmeans")


class Record:
    """Stand-in for an object of a foreign class: its attributes and none of its code."""

    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    def __new__(cls, *arguments: Any) -> Record:
        # Not in `__init__`, because a pickle can create an object without calling it.
        record = super().__new__(cls)
        record.arguments, record.attributes = arguments, {}
        return record

    def set_state(self, state: Any, file: BytesIO) -> None:
        """Store the state that the pickle assigns.

        Args:
            state: attributes of the object, or any other state of its class.
            file: the pickle, positioned after the instruction that assigns the state.
        """
        self.attributes = state if isinstance(state, dict) else {"state": state}

    @property
    def value(self) -> Any:
        """Centres of a k-means model; the record itself for any other object."""
        return _value_of(self.attributes.get("cluster_centers_", self))


class _DType(Record):
    """Stand-in for `numpy.dtype`: a type code such as "f8", and the byte order in its state."""

    def numpy(self) -> np.dtype:
        code = self.arguments[0]
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise CheckpointError(f"it holds an array of {code!r}, which are no numbers")
        # The state is a version, the byte order and more; "|" is the order of one-byte types.
        byte_order: Any = (self.attributes.get("state") or (None, "="))[1]
        if byte_order == "|":
            byte_order = "="
        return np.dtype(code).newbyteorder(byte_order)


class _Array(Record):
    """Stand-in for an array pickled by NumPy itself, whose bytes are part of its state."""

    value = None

    def set_state(self, state: Any, file: BytesIO) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _to_array(raw, dtype, shape, "F" if is_fortran else "C")


class _TrailingArray(Record):
    """Stand-in for joblib's array wrapper: the bytes follow in the file after its state."""

    value = None

    def set_state(self, state: Any, file: BytesIO) -> None:
        # Since joblib 1.2 a byte with the size of a padding and the padding come before the data.
        if state.get("numpy_array_alignment_bytes") is not None:
            file.seek(file.read(1)[0], 1)
        size = state["dtype"].numpy().itemsize * math.prod(state["shape"])
        self.value = _to_array(file.read(size), state["dtype"], state["shape"], state["order"])


def _to_array(raw: bytes | str, dtype: _DType, shape: tuple[int, ...], order: Order) -> np.ndarray:
    # Python 2 wrote bytes as a string, which the unpickler decodes as latin1, without loss.
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)


def _from_buffer(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: Order) -> np.ndarray:
    """Stand-in for the function by which protocol 5 restores an array."""
    return _to_array(raw, dtype, shape, order)


def _scalar(dtype: _DType, raw: bytes | str) -> np.ndarray:
    return _to_array(raw, dtype, (), "C")


def _reconstruct(kind: type[Record], *_: Any) -> Record:
    """Stand-in for the function by which protocols 0 and 1 create an object."""
    return kind()


def _encode(text: str, _: str) -> bytes:
    """Stand-in for the function by which protocol 2 restores bytes."""
    return text.encode("latin1")


# Module and name in the file -> stand-in.
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): Record,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("builtins", "object"): Record,
    ("_codecs", "encode"): _encode,
    # A fitted model also keeps the state of its random number generator.
    ("numpy.random._pickle", "__randomstate_ctor"): Record,
    ("numpy.random._pickle", "__bit_generator_ctor"): Record,
    ("numpy.random._mt19937", "MT19937"): Record,
    ("numpy.random", "__RandomState_ctor"): Record,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    **{(module, "NumpyArrayWrapper"): _TrailingArray for module in _JOBLIB},
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, name): Record for module in _SKLEARN for name in ("KMeans", "MiniBatchKMeans")},
}
PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _InertUnpickler(pickle._Unpickler):
    """Unpickler that creates stand-ins only.

    The base is the unpickler written in Python, as in joblib: the bytes of joblib's arrays lie
    between two instructions of the pickle and have to be read there.
    """

    # What the base sets in `load`, and its type stubs leave out.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    # A copy, so that the instructions below do not replace those of other unpicklers.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        module = PYTHON_2_MODULES.get(module, module)
        if (module, name) not in STAND_INS:
            raise CheckpointError(
                f"it asks for {module}.{name}, which k-means centres do not need; "
                "nothing of it was run"
            )
        return STAND_INS[module, name]

    def get_extension(self, code: int) -> Any:
        # Python's registry caches classes, so an extension could bypass `find_class`.
        raise CheckpointError(
            f"it asks for extension {code} of Python's registry, which k-means centres do not need"
        )

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        # Python's own sets attributes of any object, of the stand-in functions and classes too.
        if not isinstance(target, Record):
            raise CheckpointError(f"it gives a state to a {type(target).__name__}, which has none")
        target.set_state(state, self.file)

    def load_bytearray8(self) -> None:
        # Python's own allocates as much as the file announces before it reads.
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) < size:
            raise EOFError(f"{size} bytes are announced and {len(content)} are there")
        self.append(bytearray(content))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_inert(content: bytes) -> Any:
    """Read the value of a pickle or of a decompressed joblib file.

    Returns:
        the centres of a k-means model, or an array; `Record`s in place of other objects.

    Raises:
        CheckpointError: the file names anything but NumPy's arrays and scikit-learn's k-means.
        Exception: any of many kinds, where the file is damaged; `read_centres` lists them.
    """
    return _value_of(_InertUnpickler(BytesIO(content)).load())


def _value_of(content: Any) -> Any:
    """The value of a stand-in that has one; any other object is returned unchanged."""
    if not isinstance(content, Record):
        return content
    is_array = isinstance(content, (_Array, _TrailingArray))
    has_value = is_array or "cluster_centers_" in content.attributes
    return content.value if has_value else content
