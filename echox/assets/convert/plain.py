"""Files that are already in their final form."""

import shutil
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Copy every file of `source` to `target` under the same name."""
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
