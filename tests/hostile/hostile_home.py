"""What hostile cases start from: a manifest with its clips, a finished run, and its caches.

All parts are tiny and random, and every stage is trained for a few steps, so that there is a file
of each kind to damage.
"""

from __future__ import annotations

import os
from pathlib import Path

from echo_home import SHAPES, WITHOUT_CORPUS, write_conversations

from echox_cli import train

STAGES = ("align", "s2t", "t2c", "echo")
MANIFEST = "questions.jsonl"
UNITS = "questions.units.jsonl"
PLACES = ("align.task.data", "s2t.task.data", "t2c.task", "echo.task.data")


def training_words(*more: str) -> list[str]:
    """Command-line words that train all stages in the working folder, a few steps each."""
    data = [
        f"{place}.{split}=[{UNITS if place.startswith('t2c') else MANIFEST}]"
        for place in PLACES
        for split in ("train", "valid")
    ]
    brief = [
        f"{stage}.train.{setting}"
        for stage in STAGES
        for setting in ("precision=fp32", "steps=4", "batch_size=2", "save_every=2")
    ]
    own = ["recipe=echo_tiny", "device=cpu", "codec.folder=random", "vocoder=null"]
    folders = ["run_dir=run", "cache_dir=cache", f"units=[{MANIFEST}]"]
    return [*own, *WITHOUT_CORPUS, *folders, *data, *SHAPES, *brief, *more]


def write_questions(folder: Path) -> None:
    """Write the manifest and its clips, which it names from its own folder."""
    write_conversations(folder)
    rows = (folder / MANIFEST).read_text().replace(f"{folder}/", "")
    (folder / MANIFEST).write_text(rows)


def write_home(folder: Path) -> None:
    """Write the manifest, its clips and a finished run with its caches into a folder.

    Raises:
        RuntimeError: the run did not end well.
    """
    write_questions(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        if train.main(training_words()) != 0:
            raise RuntimeError(f"the run in {folder} did not end well")
    finally:
        os.chdir(before)
