"""The phases of a fit: each result stays on the disk until the fit is done, so that it resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from echox.core.files import atomic_write
from echox.core.indexable import Indexable
from echox.core.progress import print_message, skip
from echox.core.step_costs import duration

T = TypeVar("T")

WORK_FOLDER = ".fitting"
KEY_FILE = "key.json"


class Phases:
    """Results of a fit's phases in a work folder inside the codec's folder.

    The work folder is emptied where it belongs to another fit.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Open the work folder.

        Args:
            folder: the codec's folder.
            key: everything that the results depend on, JSON-ready.
        """
        self.folder = folder / WORK_FOLDER
        self.seconds: dict[str, float] = {}  # by phase, of this run or of the one that made it
        content, path = json.dumps(key, sort_keys=True), self.folder / KEY_FILE
        # Results of other recordings or settings must not be mixed into this fit.
        if not path.is_file() or path.read_text("utf-8") != content:
            shutil.rmtree(self.folder, ignore_errors=True)
            with atomic_write(path) as unfinished:
                unfinished.write_text(content, "utf-8")

    def tensors(self, phase: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return a phase's tensors: from an earlier run, or computed and written now."""
        path = self.folder / f"{phase}.safetensors"
        if (kept := self._kept(phase, path)) is not None:
            # The cost of this run is not recorded as the step's, for a part was not computed.
            skip()
            self.report(f"{phase} kept from an earlier run")
            return kept
        # safetensors stores contiguous tensors alone.
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.timed(phase, compute).items()
        }
        with atomic_write(path) as unfinished:
            save_file(tensors, unfinished, metadata={"seconds": str(self.seconds[phase])})
        self.report(f"{phase} took {duration(self.seconds[phase])}")
        return tensors

    def _kept(self, phase: str, path: Path) -> dict[str, Tensor] | None:
        """The tensors of an earlier run; None where there are none, or damaged ones."""
        try:
            tensors = load_file(path)
            # The time of the earlier run is in the file, so that metrics cover the whole fit.
            with safe_open(path, "pt") as file:
                self.seconds[phase] = float(file.metadata()["seconds"])
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            self.report(f"{path} is damaged ({error}); it is made again")
            return None
        return tensors

    def content(self, name: str, phase: str, compute: Callable[[], bytes]) -> bytes:
        """Return the bytes of a phase's file: from an earlier run, or computed and written now."""
        path = self.folder / name
        if not path.is_file():
            content = self.timed(phase, compute)
            with atomic_write(path) as unfinished:
                unfinished.write_bytes(content)
        return path.read_bytes()

    def timed(self, phase: str, compute: Callable[[], T]) -> T:
        """Return the result of `compute` and record its seconds under the phase's name."""
        began_s = time.monotonic()
        result = compute()
        self.seconds[phase] = round(time.monotonic() - began_s, 1)
        return result

    def report(self, text: str) -> None:
        """Print a line about the fit to stderr."""
        print_message(f"codec: {text}")

    def remove(self) -> None:
        """Delete the work folder, after the codec has been written."""
        shutil.rmtree(self.folder)


def digest_of(clips: Indexable[Tensor]) -> str:
    """Return a hash of 16 hexadecimal digits of recordings, samples [T] each."""
    digest = hashlib.sha256()
    for clip in clips:
        # The length first, so that samples cannot move from one recording to the next unnoticed.
        digest.update(len(clip).to_bytes(8, "little") + clip.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
