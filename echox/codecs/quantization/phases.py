"""The phases of a fit: what each found is kept until the whole is done, so that an interrupted fit goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from echox.data.writing import appearing
from echox.progress import say, skip
from echox.step_costs import duration

WORK_FOLDER = ".fitting"
KEY_FILE = "key.json"


class Phases:
    """A work folder inside the codec's; emptied if it belongs to another fit."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """
        Args:
            key: everything the results depend on, JSON-ready.
        """
        self.folder = folder / WORK_FOLDER
        self.seconds: dict[str, float] = {}
        written, path = json.dumps(key, sort_keys=True), self.folder / KEY_FILE
        if not path.is_file() or path.read_text("utf-8") != written:
            shutil.rmtree(self.folder, ignore_errors=True)
            with appearing(path) as unfinished:
                unfinished.write_text(written, "utf-8")

    def tensors(self, phase: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A phase's tensors, from an earlier run if it left them."""
        path = self.folder / f"{phase}.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as file:
                self.seconds[phase] = float(file.metadata()["seconds"])
            skip()
            self.tell(f"{phase} kept from an earlier run")
            return load_file(path)
        made = {name: tensor.detach().cpu().contiguous() for name, tensor in self.timed(phase, make).items()}
        with appearing(path) as unfinished:
            save_file(made, unfinished, metadata={"seconds": str(self.seconds[phase])})
        self.tell(f"{phase} took {duration(self.seconds[phase])}")
        return made

    def content(self, name: str, phase: str, make: Callable[[], bytes]) -> bytes:
        """A phase's file, from an earlier run if it left it."""
        path = self.folder / name
        if not path.is_file():
            content = self.timed(phase, make)
            with appearing(path) as unfinished:
                unfinished.write_bytes(content)
        return path.read_bytes()

    def timed(self, phase: str, make: Callable[[], Any]) -> Any:
        """What `make` returns; its seconds are kept under the phase's name."""
        began_s = time.monotonic()
        made = make()
        self.seconds[phase] = round(time.monotonic() - began_s, 1)
        return made

    def tell(self, text: str) -> None:
        say(f"codec: {text}")

    def done(self) -> None:
        shutil.rmtree(self.folder)


def digest_of(clips: Sequence[Tensor]) -> str:
    """A short hash of recordings."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(len(clip).to_bytes(8, "little") + clip.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
