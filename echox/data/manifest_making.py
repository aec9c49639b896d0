"""`echox-prepare manifest`: a manifest made from clips, tables, JSON, HF datasets and tars."""

from __future__ import annotations

import os
from pathlib import Path

from echox.core.errors import ConfigError, ManifestError
from echox.core.packages import require
from echox.data.manifest_builder import FAULTS, MakeManifestConfig, ManifestBuilder, path_beside
from echox.data.sources.opening import COPIES, required_packages, source_paths, source_prefixes


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
        progress = ManifestBuilder(config, paths, output).build()
    except OSError as error:
        raise ManifestError(
            f"the manifest {output} could not be made: {error.strerror or error}; "
            "mend that and start again to go on"
        ) from error
    print(
        f"{output}: {progress.rows} rows, {progress.seconds / 3600:.2f} h; "
        f"{progress.faults} entries left out"
        + (f", named in {path_beside(output, FAULTS)}" if progress.faults else "")
    )
    return output


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
