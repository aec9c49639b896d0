"""`echox-prepare manifest`: a manifest made from clips, tables, JSON, HF datasets and tars."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from echox.core.durations import duration_text
from echox.core.errors import ConfigError, ManifestError
from echox.core.files import translate_disk_faults
from echox.core.packages import require
from echox.data.histogram import Tally
from echox.data.manifest_builder import FAULTS, MakeManifestConfig, ManifestBuilder, path_beside
from echox.data.sources.opening import COPIES, required_packages, source_paths, source_prefixes

# Reasons that are printed with their counts.
_LISTED_REASONS = 10
# Names of files and members, quotations and numbers in a reason.
_NAMES = re.compile(r"'[^']*'|\S*(?:[/\\\d]|\.\w)\S*")


def make_manifest(config: MakeManifestConfig) -> Path:
    """Make a manifest, and print what it holds and what was left out.

    Returns:
        path of the manifest.

    Raises:
        ConfigError: no source is named, one does not exist or is of no known kind, the manifest is
            there already, or there is no place to write to.
        ManifestError: a source cannot be read at all, nothing in them is usable, or the disk is
            full.
        PackageError: a package that reads a source is not installed.
    """
    paths = source_paths(config.sources)
    # Before any work, and for all sources at once.
    require(required_packages(paths))
    output = _output_path(config, paths)
    _refuse_output(config, paths, output)
    try:
        with translate_disk_faults(output):
            progress = ManifestBuilder(config, paths, output).build()
    except OSError as error:
        raise ManifestError(
            f"the manifest {output} could not be made: {error.strerror or error}; "
            "mend that and start again to go on"
        ) from error
    faults = path_beside(output, FAULTS)
    print(
        f"{output}: {progress.rows} rows, {duration_text(progress.seconds)}; "
        f"{progress.faults} entries left out"
        + (f", named in {faults}; by reason:" if progress.faults else "")
    )
    if progress.faults:
        print("\n".join(_counted_reasons(faults)))
    return output


def _counted_reasons(faults: Path) -> Iterator[str]:
    """The most frequent reasons of a file of faults, each with its count and as it came first.

    Reasons that differ in names and numbers alone count as one.
    """
    counts = Tally()
    first: dict[str, str] = {}
    with faults.open("rb") as file:
        for line in file:
            reason = json.loads(line)["reason"]
            kind = _NAMES.sub("...", reason)
            counts.add(kind)
            if kind in counts.counts:
                first.setdefault(kind, reason)
    for kind, count in counts.most(_LISTED_REASONS):
        yield f"{count:>9,}  {first[kind]}"
    others = len(counts.counts) - _LISTED_REASONS
    if others > 0:
        yield f"{'':>9}  and {others:,} more reasons"


def _refuse_output(config: MakeManifestConfig, paths: list[Path], output: Path) -> None:
    if output.exists() and not config.overwrite:
        raise ConfigError(
            f"{output} is there already; set overwrite=true to make it anew, or another output"
        )
    copies = path_beside(output, COPIES)
    if any(path.is_relative_to(copies) for path in paths):
        raise ConfigError(
            f"{copies} holds a source, and is where clips are copied to, which replaces it; "
            "set another output"
        )


def _output_path(config: MakeManifestConfig, paths: list[Path]) -> Path:
    if config.output is not None:
        if not config.output.endswith(".jsonl"):
            raise ConfigError(f"output is {config.output}; a manifest's name ends in .jsonl")
        return Path(config.output).absolute()
    if len(config.sources) > 1:
        raise ConfigError("several sources need one place to write to; set output=FILE.jsonl")
    only = Path(config.sources[0]).absolute()
    if only.is_dir():
        return only / "manifest.jsonl"
    # One source with a pattern may stand for several files.
    if len(paths) > 1:
        return Path(os.path.commonpath([path.parent for path in paths])) / "manifest.jsonl"
    name = source_prefixes(paths)[0]
    # A manifest must not replace the .jsonl file that it is made from.
    return only.with_name(f"{name}.jsonl" if only.suffix != ".jsonl" else f"{name}.manifest.jsonl")
