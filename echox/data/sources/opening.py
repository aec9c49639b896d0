"""From the paths that a user names to the sources that read them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from echox.core.errors import ConfigError
from echox.core.packages import OptionalPackage
from echox.data.sources.base import Source, SourceConfig
from echox.data.sources.folder import FolderSource
from echox.data.sources.parquet import ParquetSource
from echox.data.sources.rows import RowsSource
from echox.data.sources.table import TableSource
from echox.data.sources.tar import TarSource

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
# Ending of a folder that clips are copied to.
COPIES = ".shards"
# Endings of files of which a folder is a data set, rather than a folder of clips.
_SHARD_ENDINGS = ("parquet", "arrow", "tar", "tar.gz", "tgz")
# The files themselves, or one folder down.
_SHARDS = tuple(f"{folder}*.{ending}" for ending in _SHARD_ENDINGS for folder in ("", "*/"))


def source_paths(named: Sequence[str]) -> list[Path]:
    """Return the absolute paths of the files and folders that sources name, each once.

    A pattern with * stands for what matches it, a folder of shards for its shards.

    Raises:
        ConfigError: no source is named, or one does not exist or is of no known kind.
    """
    matches = [path for text in named for path in _matches(text)]
    endings = ", ".join([*SOURCES, *PACKED])
    if not matches:
        raise ConfigError(f"no source was named; give a folder, or files that end in {endings}")
    # A dictionary keeps the order, which a set would not.
    paths = list(dict.fromkeys(path for match in matches for path in _shards_in(match)))
    for path in paths:
        if not path.is_dir() and not _is_packed(path) and path.suffix not in SOURCES:
            raise ConfigError(
                f"{path} is no known kind of source; give a folder, or files that end in {endings}"
            )
        # Opening a pipe would wait for a process that writes to it, and a device may have no end.
        if not (path.is_dir() or path.is_file()):
            raise ConfigError(f"the source {path} is no regular file; copy what it holds to one")
    return paths


def _matches(text: str) -> Iterator[Path]:
    # A path that exists is no pattern, even with [ in its name.
    names = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
    if not names:
        raise ConfigError(f"the source {text} does not exist")
    # Not `resolve`: rows keep the paths that the user named, links included.
    yield from (Path(os.path.abspath(name)) for name in names)


def _shards_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    candidates = (shard for pattern in _SHARDS for shard in path.glob(pattern))
    # Those that an earlier manifest's clips were copied to hold what its sources hold.
    shards = sorted(shard for shard in candidates if shard.parent.suffix != COPIES)
    return shards or [path]


def _is_packed(path: Path) -> bool:
    return path.name.endswith(PACKED)


def is_packed_file(path: Path) -> bool:
    """Return whether a path is a compressed archive, into which no manifest can point."""
    return path.is_file() and _is_packed(path)


def open_source(path: Path, prefix: str, config: SourceConfig) -> Source:
    """Return the source that reads a path of `source_paths`.

    Args:
        path: file or folder; an archive that is packed must be unpacked first.
        prefix: begins the names of the source's rows.
        config: how the source is read.
    """
    return _source_type(path)(path, prefix, config)


def required_packages(paths: Sequence[Path]) -> list[OptionalPackage]:
    """Return the optional packages that reading the paths of `source_paths` needs."""
    return [
        package for path in paths if not _is_packed(path) for package in _source_type(path).packages
    ]


def _source_type(path: Path) -> type[Source]:
    return FolderSource if path.is_dir() else SOURCES[path.suffix]


def source_prefixes(paths: Sequence[Path]) -> list[str]:
    """Return the prefixes [N] of the sources' rows, which tell those of one from the others'.

    A prefix is the source's path below the folder that all have in common, without its ending
    unless the ending alone tells two sources apart.

    Args:
        paths: sources [N] as `source_paths` returns them; one folder alone needs no prefix.
    """
    if len(paths) == 1:
        return ["" if paths[0].is_dir() else _without_ending(paths[0].name)]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common).as_posix() for path in paths]
    bare = [_without_ending(name) if path.is_file() else name for path, name in zip(paths, names)]
    # train.tsv and train.csv keep their endings, or one's rows would have the other's ids.
    return [name if bare.count(short) > 1 else short for name, short in zip(names, bare)]


def _without_ending(name: str) -> str:
    for ending in (*PACKED, *SOURCES):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name
