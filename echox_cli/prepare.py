"""`echox-prepare COMMAND ...`: what has to be there before training: manifests, assets, plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.prepare())

from echox.assets import CATALOGUE, asset_folder
from echox.chain import audit_stages
from echox.config import near
from echox.corpora.compression import CompressionConfig, report_compression
from echox.corpora.demo_config import DemoCorpusConfig
from echox.data.manifest_index import IndexConfig, index_manifests
from echox.data.manifest_making import MakeManifestConfig, make_manifest
from echox.data.manifest_split import SplitConfig, split_manifest
from echox.data.manifest_stats import StatsConfig, print_stats
from echox.data.windows import WindowsConfig, write_windows
from echox.errors import ConfigError
from echox.evaluation.manifest_validation import ValidateConfig, validate
from echox.preparation import (
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
from echox.recipe import Recipe
from echox.scaffold import ScaffoldConfig, write_plugin
from echox.unit_encoding import EncodeUnitsConfig, encode_units
from echox_cli.arguments import OPTIONS, split
from echox_cli.completion import Offers
from echox_cli.door import answered_at_once, run_door, run_recipe_door
from echox_cli.fields import summary
from echox_cli.guard import guarded
from echox_cli.offers import config_offers, recipe_offers

PROGRAM = "echox-prepare"


@dataclass(kw_only=True, slots=True)
class AssetsConfig:
    """Fetch weights and voices by name, and say where they lie."""

    names: list[str] = field(default_factory=list)
    """Names in the catalogue (`echox-info asset` lists them), hub ids or local folders; none means the whole catalogue."""


def fetch_assets(config: AssetsConfig) -> None:
    for name in config.names or CATALOGUE:
        print(f"{name}: {asset_folder(name)}")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its config, its work, and the field that words without `=` belong to."""

    config_type: type
    function: Callable[[Any], object]
    positional: str | None = None


@dataclass(frozen=True, slots=True)
class RecipeCommand:
    """One command that takes a whole recipe."""

    function: Callable[[Recipe], object]


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
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        command, program = COMMANDS[words[0]], f"{PROGRAM} {words[0]}"
        if isinstance(command, RecipeCommand):
            return run_recipe_door(program, command.function, words[1:], summary(command.function.__doc__))
        return run_door(program, command.config_type, command.function, words[1:], command.positional)
    return guarded(PROGRAM, lambda: _without_command(words))


def _without_command(words: list[str]) -> None:
    arguments = split(words, takes_recipe=False)
    if answered_at_once(PROGRAM, arguments):
        return
    if faulty := [*arguments.words, *arguments.overrides]:
        raise ConfigError(f"no command {faulty[0]!r}{near(faulty[0], COMMANDS)}; commands are {', '.join(COMMANDS)}")
    print(f"Prepare data, weights and plugins.\n\nusage: {PROGRAM} COMMAND [field=value ...]\n\ncommands ({PROGRAM} COMMAND --help explains one):")
    for name, command in COMMANDS.items():
        about = command.function if isinstance(command, RecipeCommand) else command.config_type
        print(f"  {name:<11} {summary(about.__doc__)}")


def offers(before: Sequence[str]) -> Offers:
    command = COMMANDS.get(before[0]) if before else None
    if command is None:
        return Offers([*COMMANDS, *OPTIONS])
    if isinstance(command, RecipeCommand):
        return recipe_offers(before[1:])
    return config_offers(command.config_type, before[1:])
