"""Which source a path is."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from echox.data.sources.base import Source, SourceConfig
from echox.data.sources.folder import FolderSource
from echox.data.sources.parquet import ParquetSource
from echox.data.sources.rows import RowsSource
from echox.data.sources.table import TableSource
from echox.data.sources.tar import TarSource
from echox.errors import ConfigError
from echox.packages import OptionalPackage

SOURCES: dict[str, type[Source]] = {
    ".tsv": TableSource,
    ".csv": TableSource,
    ".jsonl": RowsSource,
    ".json": RowsSource,
    ".parquet": ParquetSource,
    ".arrow": ParquetSource,
    ".tar": TarSource,
}
PACKED = (".tar.gz", ".tgz")
# Ending of a folder that clips were copied to.
COPIES = ".shards"
# Files of which a folder is a data set, rather than a folder of clips: themselves, or one folder down.
_SHARDS = ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow", "*.tar", "*/*.tar", "*.tar.gz", "*/*.tar.gz", "*.tgz", "*/*.tgz")


def paths_of(named: Sequence[str]) -> list[Path]:
    """The files and folders that sources name, absolute: patterns with * filled in, a folder of shards as its shards.

    Raises:
        ConfigError: there is no such path, or none is named.
    """
    found = [path for text in named for path in _matching(text)]
    if not found:
        raise ConfigError("no source was named; give a folder, or files that end in " + ", ".join([*SOURCES, *PACKED]))
    paths = list(dict.fromkeys(path for each in found for path in _shards_in(each)))
    for path in paths:
        if not path.is_dir() and not _is_packed(path) and path.suffix not in SOURCES:
            raise ConfigError(f"{path} is no known kind of source; give a folder, or files that end in " + ", ".join([*SOURCES, *PACKED]))
    return paths


def _matching(text: str) -> Iterator[Path]:
    names = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
    if not names:
        raise ConfigError(f"the source {text} does not exist")
    yield from (Path(os.path.abspath(name)) for name in names)


def _shards_in(path: Path) -> list[Path]:
    found = (shard for pattern in _SHARDS for shard in path.glob(pattern)) if path.is_dir() else ()
    # Those that an earlier manifest's clips were copied to hold what its sources hold.
    shards = sorted(shard for shard in found if shard.parent.suffix != COPIES)
    return shards or [path]


def _is_packed(path: Path) -> bool:
    return path.name.endswith(PACKED)


def packed(path: Path) -> bool:
    """Whether a path is a compressed archive, into which nothing can point."""
    return path.is_file() and _is_packed(path)


def open_source(path: Path, prefix: str, config: SourceConfig) -> Source:
    """The source that a path of `paths_of` is."""
    return _kind_of(path)(path, prefix, config)


def packages_of(paths: Sequence[Path]) -> list[OptionalPackage]:
    """What reading the paths of `paths_of` needs beside echox."""
    return [package for path in paths if not _is_packed(path) for package in _kind_of(path).packages]


def _kind_of(path: Path) -> type[Source]:
    return FolderSource if path.is_dir() else SOURCES[path.suffix]


def prefixes_of(paths: Sequence[Path]) -> list[str]:
    """What tells the rows of each source from the others': its path below the folder they have in common, without an ending that tells none apart."""
    if len(paths) == 1:
        return ["" if paths[0].is_dir() else _bare(paths[0].name)]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common).as_posix() for path in paths]
    bare = [_bare(name) if path.is_file() else name for path, name in zip(paths, names)]
    # train.tsv and train.csv keep their endings, or one's rows would have the other's ids.
    return [name if bare.count(short) > 1 else short for name, short in zip(names, bare)]


def _bare(name: str) -> str:
    for ending in (*PACKED, *SOURCES):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name
