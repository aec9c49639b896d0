"""Reading pretrained weights, with a sentence where a folder holds something else."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from echox.errors import AssetError


@contextmanager
def loading(what: str, folder: str | Path) -> Iterator[None]:
    """Around the library's own reading of `folder`.

    Args:
        what: what it should hold, with its article ("a Whisper model").
    Raises:
        AssetError: it holds no such thing, or damaged files.
    """
    try:
        yield
    # The library says with any of these that a file is missing, unreadable or of another model.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        way_out = "name another folder, a hub id, or an asset of `echox-info asset`"
        raise AssetError(f"{folder} does not hold {what} that can be read ({reason}); {way_out}") from error
