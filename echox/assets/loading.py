"""Reading pretrained weights, with a sentence where a folder holds something else."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm

from echox.errors import AssetError
from echox.progress import waiting


@contextmanager
def loading(what: str, folder: str | Path) -> Iterator[None]:
    """Around the library's own reading of `folder`, which is named if it takes long.

    Args:
        what: what it should hold, with its article ("a Whisper model").
    Raises:
        AssetError: it holds no such thing, or damaged files.
    """
    try:
        with waiting(f"loading {what}"), without_library_bars():
            yield
    # The library says with any of these that a file is missing, unreadable or of another model.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        way_out = "name another folder, a hub id, or an asset of `echox-info asset`"
        raise AssetError(f"{folder} does not hold {what} that can be read ({reason}); {way_out}") from error


@contextmanager
def without_library_bars() -> Iterator[None]:
    """The transformers library draws no bars of its own meanwhile, if it is in use at all."""
    if "transformers" not in sys.modules:
        yield
        return
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    were_shown, gguf_bar = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    # The bar of this module alone is tqdm's own, which the library's switch does not reach.
    gguf.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        if were_shown:
            logging.enable_progress_bar()
