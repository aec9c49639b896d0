"""`echox-prepare COMMAND ...`: make what training needs: manifests, units, weights, plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.prepare())

from echox.assets import CATALOGUE, asset_folder
from echox.core.config import near
from echox.core.errors import ConfigError
from echox.corpora.compression import CompressionConfig, report_compression
from echox.corpora.demo_config import DemoCorpusConfig
from echox.data.manifest_index import IndexConfig, index_manifests
from echox.data.manifest_making import MakeManifestConfig, make_manifest
from echox.data.manifest_split import SplitConfig, split_manifest
from echox.data.manifest_stats import StatsConfig, print_stats
from echox.data.windows import WindowsConfig, write_windows
from echox.evaluation.manifest_validation import ValidateConfig, validate
from echox.pipeline.encode_units import EncodeUnitsConfig, encode_units
from echox.pipeline.preparation import (
    BeginConfig,
    ExportConfig,
    FitCodecConfig,
    ImportConfig,
    begin_release,
    export_release,
    fit_codec,
    import_release,
    make_corpus,
    write_labels,
)
from echox.pipeline.recipe import Recipe
from echox.pipeline.run import audit_stages
from echox.pipeline.scaffold import ScaffoldConfig, write_plugin
from echox_cli.arguments import OPTIONS, split
from echox_cli.command import answered_at_once, run_command, run_recipe_command
from echox_cli.completion import Offers
from echox_cli.fields import summary
from echox_cli.guard import guarded
from echox_cli.offers import config_offers, recipe_offers

PROGRAM = "echox-prepare"


@dataclass(kw_only=True, slots=True)
class AssetsConfig:
    """Fetch weights and voices by name, and say where they lie."""

    names: list[str] = field(default_factory=list)
    """Names in the catalogue (`echox-info asset` lists them), hub ids or local folders; none
    means the whole catalogue."""


def fetch_assets(config: AssetsConfig) -> None:
    """Fetch assets that are not there yet, and print the folder of each.

    Raises:
        AssetError: a name is unknown, or its files could not be obtained.
        PackageError: a package that converts the files is not installed.
    """
    for name in config.names or CATALOGUE:
        print(f"{name}: {asset_folder(name)}")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of `echox-prepare` whose config is one dataclass."""

    config_type: type
    function: Callable[[Any], object]
    positional: str | None = None  # the field that words without `=` belong to


@dataclass(frozen=True, slots=True)
class RecipeCommand:
    """A command of `echox-prepare` that takes a recipe."""

    function: Callable[[Recipe], object]


# In the order of the help, which is the order in which people need them.
COMMANDS = {
    "manifest": Command(MakeManifestConfig, make_manifest, "sources"),
    "validate": Command(ValidateConfig, validate, "path"),
    "stats": Command(StatsConfig, print_stats, "manifests"),
    "index": Command(IndexConfig, index_manifests, "manifests"),
    "split": Command(SplitConfig, split_manifest, "path"),
    "corpus": Command(DemoCorpusConfig, make_corpus, "folder"),
    "codec": Command(FitCodecConfig, fit_codec, "manifests"),
    "units": Command(EncodeUnitsConfig, encode_units, "manifests"),
    "compression": Command(CompressionConfig, report_compression, "manifests"),
    "window": Command(WindowsConfig, write_windows, "manifest"),
    "labels": RecipeCommand(write_labels),
    "audit": RecipeCommand(audit_stages),
    "assets": Command(AssetsConfig, fetch_assets, "names"),
    "import": Command(ImportConfig, import_release, "folder"),
    "begin": Command(BeginConfig, begin_release, "language"),
    "export": Command(ExportConfig, export_release, "checkpoint"),
    "plugin": Command(ScaffoldConfig, write_plugin, "name"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-prepare` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return guarded(PROGRAM, lambda: _without_command(words))
    command, program, rest = COMMANDS[words[0]], f"{PROGRAM} {words[0]}", words[1:]
    if isinstance(command, RecipeCommand):
        doc = summary(command.function.__doc__)
        return run_recipe_command(program, command.function, rest, doc)
    return run_command(program, command.config_type, command.function, rest, command.positional)


def _without_command(words: list[str]) -> None:
    """Print the list of commands, whether it was asked for or no command was given."""
    arguments = split(words, takes_recipe=False)
    if answered_at_once(PROGRAM, arguments):
        return
    if faulty := [*arguments.words, *arguments.overrides]:
        raise ConfigError(
            f"no command {faulty[0]!r}{near(faulty[0], COMMANDS)}; "
            f"commands are {', '.join(COMMANDS)}"
        )
    print(
        "Prepare data, weights and plugins.\n\n"
        f"usage: {PROGRAM} COMMAND [field=value ...]\n\n"
        f"commands ({PROGRAM} COMMAND --help explains one):"
    )
    for name, command in COMMANDS.items():
        # A recipe has one docstring for all commands, so theirs is the function's.
        about = command.function if isinstance(command, RecipeCommand) else command.config_type
        print(f"  {name:<11} {summary(about.__doc__)}")


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-prepare`.

    Args:
        before: the finished words after the program's name.
    """
    command = COMMANDS.get(before[0]) if before else None
    if command is None:
        return Offers([*COMMANDS, *OPTIONS])
    if isinstance(command, RecipeCommand):
        return recipe_offers(before[1:])
    return config_offers(command.config_type, before[1:])
