"""`echox-prepare COMMAND ...`: make what training needs: manifests, units, weights, plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.prepare())

from echox.assets import CATALOGUE, asset_folder
from echox.assets.fetch import origin_of
from echox.core.config import near
from echox.core.errors import ConfigError
from echox.core.registry import failures
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
from echox.pipeline.subjects import Subject, installed_subjects
from echox_cli.arguments import OPTIONS, split
from echox_cli.command import answered_at_once, run_command, run_recipe_command
from echox_cli.completion import Offers
from echox_cli.fields import entry_lines, summary
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
    """Fetch assets that are not there yet, and print the folder and the source of each.

    Raises:
        AssetError: a name is unknown, or its files could not be obtained.
        PackageError: a package that converts the files is not installed.
    """
    for name in config.names or CATALOGUE:
        folder, origin = asset_folder(name), origin_of(name)
        print(f"{name}: {folder}{f' ({origin})' if origin else ''}")


@dataclass(frozen=True, slots=True)
class RecipeCommand:
    """A command of `echox-prepare` that takes a recipe."""

    function: Callable[[Recipe], object]


# In the order of the help, which is the order in which people need them.
COMMANDS: dict[str, Subject | RecipeCommand] = {
    "manifest": Subject(MakeManifestConfig, make_manifest, "sources"),
    "validate": Subject(ValidateConfig, validate, "path"),
    "stats": Subject(StatsConfig, print_stats, "manifests"),
    "index": Subject(IndexConfig, index_manifests, "manifests"),
    "split": Subject(SplitConfig, split_manifest, "path"),
    "corpus": Subject(DemoCorpusConfig, make_corpus, "folder"),
    "codec": Subject(FitCodecConfig, fit_codec, "manifests"),
    "units": Subject(EncodeUnitsConfig, encode_units, "manifests"),
    "compression": Subject(CompressionConfig, report_compression, "manifests"),
    "window": Subject(WindowsConfig, write_windows, "manifest"),
    "labels": RecipeCommand(write_labels),
    "audit": RecipeCommand(audit_stages),
    "assets": Subject(AssetsConfig, fetch_assets, "names"),
    "import": Subject(ImportConfig, import_release, "folder"),
    "begin": Subject(BeginConfig, begin_release, "language"),
    "export": Subject(ExportConfig, export_release, "checkpoint"),
    "plugin": Subject(ScaffoldConfig, write_plugin, "name"),
}


def _all_commands() -> dict[str, Subject | RecipeCommand]:
    """Return the commands of echox and those that installed packages add."""
    return {**COMMANDS, **installed_subjects("prepare", COMMANDS)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-prepare` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Installed packages are asked only for what echox does not have itself.
    commands = COMMANDS if words and words[0] in COMMANDS else _all_commands()
    if not words or words[0] not in commands:
        return guarded(PROGRAM, lambda: _without_command(words, commands))
    command, program, rest = commands[words[0]], f"{PROGRAM} {words[0]}", words[1:]
    if isinstance(command, RecipeCommand):
        doc = summary(command.function.__doc__)
        return run_recipe_command(program, command.function, rest, doc)
    return run_command(program, command.config_type, command.function, rest, command.positional)


def _without_command(words: list[str], commands: Mapping[str, Subject | RecipeCommand]) -> None:
    """Print the list of commands, whether it was asked for or no command was given."""
    arguments = split(words, takes_recipe=False)
    if answered_at_once(PROGRAM, arguments):
        return
    if faulty := [*arguments.words, *arguments.overrides]:
        raise ConfigError(
            f"no command {faulty[0]!r}{near(faulty[0], commands)}; "
            f"commands are {', '.join(commands)}{failures()}"
        )
    print(
        "Prepare data, weights and plugins.\n\n"
        f"usage: {PROGRAM} COMMAND [field=value ...]\n\n"
        f"commands ({PROGRAM} COMMAND --help explains one):"
    )
    for name, command in commands.items():
        # A recipe has one docstring for all commands, so theirs is the function's.
        about = command.function if isinstance(command, RecipeCommand) else command.config_type
        print("\n".join(entry_lines(f"  {name}", summary(about.__doc__), 13)))


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-prepare`.

    Args:
        before: the finished words after the program's name.
    """
    commands = _all_commands()
    command = commands.get(before[0]) if before else None
    if command is None:
        return Offers([*commands, *OPTIONS])
    if isinstance(command, RecipeCommand):
        return recipe_offers(before[1:])
    return config_offers(command.config_type, before[1:])
