"""`echox-info`: what is installed, registered and known, and from where."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.info())

import torch
import yaml

from echox.assets import CATALOGUE
from echox.assets.sources import VARIABLE as ASSET_SOURCE
from echox.core.config import near, to_plain
from echox.core.environment import OTHER_VARIABLES, OWN_VARIABLES
from echox.core.errors import ConfigError
from echox.core.number_format import VARIABLE, measured, name_of, number_format
from echox.pipeline.compose import finish, parse_overrides, part
from echox.pipeline.config_tree import options
from echox.pipeline.plugins import REGISTRIES, Discovery, discover
from echox.pipeline.recipe import DEFAULT_RECIPE, StagePlan, compose_recipe, load_recipe, to_dict
from echox.pipeline.recipe_files import (
    find_recipe,
    list_recipes,
    plugin_dirs_of,
    recipe_doc,
    recipe_folders,
)
from echox_cli.arguments import split
from echox_cli.command import answered_at_once
from echox_cli.completion import Offers
from echox_cli.explanation import explanation
from echox_cli.fields import doc_lines, entry_lines, field_lines, summary
from echox_cli.guard import guarded
from echox_cli.texts import INFO, TOPICS, info_help

# Packages whose versions the overview lists: those whose releases change what echox does.
PACKAGES = (
    "echox",
    "torch",
    "torchaudio",
    "transformers",
    "hydra-core",
    "omegaconf",
    "sentencepiece",
    "peft",
    "triton",
)


# Where the choice of a source is explained: it is no field of an asset.
SOURCES_LINE = (
    "fetched from the hub, or from pinned packages where the hub cannot be reached; "
    f"assets.packages=true in a recipe or {ASSET_SOURCE}=packages takes the packages alone, "
    f"{ASSET_SOURCE}=hub the hub alone"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-info` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    return guarded(INFO, lambda: _info(list(sys.argv[1:] if argv is None else argv)))


def _info(argv: list[str]) -> None:
    arguments = split(_separated(argv), takes_recipe=False)
    if answered_at_once(INFO, arguments):
        return
    # Checked before the help is printed, so that a wrong word is an error there too.
    plugin_dirs = _plugin_dirs(arguments.overrides)
    if "--help" in arguments.options:
        print(info_help())
    else:
        print("\n".join(_answer(arguments.words, plugin_dirs)))


def _separated(argv: list[str]) -> list[str]:
    # `kind=name` means the same as `kind name`: it is what the other commands take.
    return [
        term
        for word in argv
        for term in (word.split("=", 1) if word.partition("=")[0] in TOPICS else [word])
    ]


def _plugin_dirs(overrides: Sequence[str]) -> list[str]:
    plugin_dirs: list[str] = []
    for assignment in parse_overrides(overrides):
        if assignment.key != "plugin_dirs" or not isinstance(assignment.value, list):
            raise ConfigError(
                f"cannot explain {assignment.text!r}; "
                f"write {INFO} [KIND [NAME]] [plugin_dirs=[a,b]]"
            )
        plugin_dirs = assignment.value
    return plugin_dirs


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-info`.

    Args:
        before: the finished words after the program's name.
    """
    if not before:
        return Offers([*TOPICS, "--help", "--version", "--completion"])
    discover()
    return Offers(_names(before[0]) if len(before) == 1 else [])


def _names(topic: str) -> list[str]:
    if topic in REGISTRIES:
        return options(topic, recipe_folders())
    # Any other word has no names: `list` makes an empty list.
    names: dict[str, Callable[[], Iterable[str]]] = {
        "recipe": list_recipes,
        "asset": CATALOGUE.keys,
    }
    return list(names.get(topic, list)())


def _answer(words: list[str], plugin_dirs: list[str]) -> Iterator[str]:
    if words and words[0] not in TOPICS:
        yield from _field(words, plugin_dirs)
        return
    if len(words) > 2:
        raise ConfigError(f"cannot explain {' '.join(words)!r}; write {INFO} [KIND [NAME]]")
    # Before any topic, because plugins add parts, and their failures explain missing ones.
    discovery = discover(plugin_dirs)
    if not words:
        yield from _overview(discovery)
    elif words[0] in ("device", "variables"):
        yield from _whole_topic(words)
    elif words[0] == "recipe":
        yield from _recipe(words[1]) if len(words) == 2 else _recipes()
    elif words[0] == "asset":
        yield from _asset(words[1]) if len(words) == 2 else _assets()
    else:
        yield from _entry(words[0], words[1]) if len(words) == 2 else _registry(words[0])


def _field(words: list[str], plugin_dirs: list[str]) -> Iterator[str]:
    """Explain the field of a recipe that the first word names."""
    # `recipe=NAME` was separated into two words.
    match words:
        case [key]:
            name = DEFAULT_RECIPE
        case [key, "recipe", name]:
            pass
        case _:
            raise ConfigError(
                f"cannot explain {' '.join(words)!r}; write {INFO} FIELD [recipe=NAME]"
            )
    discover([*plugin_dirs, *plugin_dirs_of(name)])
    tree = compose_recipe(name)
    first = key.partition(".")[0]
    fields = {*tree, *tree.stages, *StagePlan.__dataclass_fields__}
    if first not in fields:
        raise ConfigError(
            f"no topic or field {first!r}{near(first, (*TOPICS, *fields))}; topics are "
            f"{', '.join(TOPICS)}, and the fields of a recipe"
        )
    yield from explanation(tree, key)
    yield from ("", f"Values are those of recipe {name}; recipe=NAME names another.")


def _whole_topic(words: list[str]) -> Iterator[str]:
    if len(words) > 1:
        raise ConfigError(
            f"{words[0]} is explained as a whole, and {words[1]!r} is one word too many; "
            f"write {INFO} {words[0]}"
        )
    if words[0] == "variables":
        yield from _variables()
        return
    yield from _devices()
    yield from _number_format()


def _variables() -> Iterator[str]:
    yield "of echox:"
    yield from _variable_lines(OWN_VARIABLES)
    yield from ("", "of other programs, as far as they matter here:")
    yield from _variable_lines(OTHER_VARIABLES)


def _variable_lines(docs: Mapping[str, str]) -> Iterator[str]:
    for name, doc in docs.items():
        # A key must not stand in what people paste into a report of a fault.
        value = " is set" if name.endswith("_KEY") else f"={os.environ.get(name)}"
        yield f"  {name}{value}" if name in os.environ else f"  {name} is unset"
        yield from doc_lines(doc, "      ")


def _overview(discovery: Discovery) -> Iterator[str]:
    python = f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from _section("versions", [python, *_versions()])
    yield from _section("devices", _devices())
    for kind in REGISTRIES:
        yield from _section(f"{kind}s" if kind != "criterion" else "criteria", _registry(kind))
    yield from _section("plugins run from folders", map(str, discovery.files))
    yield from _section(
        "plugins that failed to load",
        (f"{failure.origin}: {failure.reason}" for failure in discovery.failures),
    )
    yield from _section("recipes", _recipes())
    yield from _section("assets", _assets())
    yield from _section("environment variables", _variables())


def _section(title: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    yield f"{title}:"
    # A list first, because an iterator does not tell whether it is empty.
    yield from [f"  {line}" for line in lines] or ["  none"]
    yield ""


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} is not installed"


def _devices() -> Iterator[str]:
    yield f"cpu: {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _number_format() -> Iterator[str]:
    """Yield the rates of a CPU in each number format, which take a moment to measure."""
    chosen = number_format()
    # The user's own choice comes without rates, which are what this topic is asked for.
    rated = chosen if chosen.rates else measured()
    yield from (f"{name:<10} {rate} of {rated.cpu}" for name, rate in rated.rates.items())
    yield (
        f"chosen for new runs on the cpu: {name_of(chosen.bf16)}, by {chosen.chosen_by}; "
        f"{VARIABLE}=fp32 or bf16 decides instead"
    )


def _registry(kind: str) -> Iterator[str]:
    registry = REGISTRIES[kind]
    for name in sorted(registry):
        entry = registry[name]
        # A class without a docstring is described by that of its config.
        doc = summary(entry.implementation.__doc__ or entry.config_type.__doc__)
        yield from entry_lines(name, f"{doc}  [{entry.origin}]")
        if second := registry.contested(name):
            yield f"{'':<18} registered a second time by {second}: rename one"
    presets = [option for option in options(kind, recipe_folders()) if option not in registry]
    if presets:
        yield f"presets: {', '.join(presets)}"


def _entry(kind: str, name: str) -> Iterator[str]:
    folders = recipe_folders()
    # Composed first: an unknown name is an error here, with its near match.
    config = part(kind, name, folders)
    if name not in REGISTRIES[kind]:
        yield from _preset(kind, name, folders, finish(config))
        return
    entry = REGISTRIES[kind][name]
    implementation = entry.implementation
    place = f"{implementation.__module__}.{implementation.__qualname__}"
    yield f"{kind} {name}: {place}, from {entry.origin}"
    if implementation.__doc__:
        # The first line of a docstring lacks the indentation of the others.
        doc = textwrap.dedent(f"    {implementation.__doc__.strip()}")
        yield from ("", textwrap.indent(doc, "  "))
    yield from ("", f"fields of {entry.config_type.__name__}: {summary(entry.config_type.__doc__)}")
    yield from list(field_lines(entry.config_type)) or ["  none"]


def _preset(kind: str, name: str, folders: Sequence[Path], config: object) -> Iterator[str]:
    # The first folder wins, as it does where recipes are composed.
    path = next(file for folder in folders if (file := folder / kind / f"{name}.yaml").is_file())
    yield f"{kind} {name}: a preset of {kind} {REGISTRIES[kind].name_of(config)}, {path}"
    yield from ("", yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True).rstrip())


def _recipes() -> Iterator[str]:
    for name, path in sorted(list_recipes().items()):
        yield from entry_lines(name, f"{recipe_doc(path)}  [{path.parent}]")


def _recipe(name: str) -> Iterator[str]:
    path = find_recipe(name)
    # The recipe's own plugins, without which its parts may be unknown.
    discover(plugin_dirs_of(name))
    yield f"recipe {name}: {path}"
    plain = to_dict(load_recipe(name))
    yield from ("", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())


def _assets() -> Iterator[str]:
    for asset in CATALOGUE.values():
        yield from entry_lines(asset.name, asset.doc, 22)
    yield SOURCES_LINE


def _asset(name: str) -> Iterator[str]:
    if name not in CATALOGUE:
        raise ConfigError(
            f"no asset named {name!r}{near(name, CATALOGUE)}; known: {', '.join(CATALOGUE)}"
        )
    asset = CATALOGUE[name]
    yield f"asset {name}: {asset.doc}"
    revision = f" at {asset.hub_revision}" if asset.hub_revision else ""
    yield from (
        "",
        f"  hub id   {asset.hub_id or 'none'}{revision}",
        f"  licence  {asset.licence}",
        f"  files    {', '.join(asset.contents)}",
    )
    # The pinned packages that hold the asset where there is no hub.
    yield from (
        f"  wheel    {wheel.package}=={wheel.version}, {wheel.size_bytes / 1e6:.0f} MB"
        for wheel in asset.wheels
    )
    yield from ("", SOURCES_LINE)
