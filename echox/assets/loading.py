"""Context managers around the loading of pretrained weights by transformers."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm

from echox.core.errors import AssetError
from echox.core.memory import is_out_of_memory
from echox.core.progress import waiting


@contextmanager
def loading(what: str, folder: str | Path) -> Iterator[None]:
    """Translate transformers' loading errors, and report progress if loading takes long.

    Args:
        what: the expected content of the folder, with its article ("a Whisper model").
        folder: the folder or name that the error names.

    Raises:
        AssetError: the folder holds another model, or missing or damaged files.
    """
    try:
        with waiting(f"loading {what}"), without_library_bars():
            yield
    # transformers raises any of these for a missing, unreadable or foreign file.
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        # The files may be sound.
        if is_out_of_memory(error):
            raise
        # The first line says what failed, the others give transformers' general advice.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        way_out = "name another folder, a hub id, or an asset of `echox-info asset`"
        raise AssetError(
            f"{folder} does not hold {what} that can be read ({reason}); {way_out}"
        ) from error


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Switch transformers' own progress bars off inside the block."""
    # Not imported for this: it takes seconds, and without it there is nothing to switch off.
    if "transformers" not in sys.modules:
        yield
        return
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    # The user may have switched the bars off before; then they stay off.
    were_shown, gguf_bar = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    # This module draws tqdm's own bar, which the switch of transformers does not reach.
    gguf.tqdm = partial(tqdm, disable=True)  # type: ignore[assignment]  # for this block alone
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        if were_shown:
            logging.enable_progress_bar()
