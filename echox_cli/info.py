"""`echox-info`: what is installed, registered and known, and from where."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.info())

import torch
import yaml

from echox.assets import CATALOGUE
from echox.compose import finish, options, parse_overrides, part
from echox.config import near, to_plain
from echox.errors import ConfigError
from echox.number_format import VARIABLE, measured, name_of, number_format
from echox.plugins import REGISTRIES, Discovery, discover
from echox.recipe import find_recipe, freeze, list_recipes, load_recipe, plugin_dirs_of, recipe_doc, recipe_folders
from echox_cli.arguments import split
from echox_cli.completion import Offers
from echox_cli.door import answered_at_once
from echox_cli.fields import WIDTH, field_lines, summary
from echox_cli.guard import guarded
from echox_cli.texts import INFO, TOPICS, info_help

PACKAGES = ("echox", "torch", "torchaudio", "transformers", "hydra-core", "omegaconf", "sentencepiece", "peft", "triton")


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(INFO, lambda: _info(list(sys.argv[1:] if argv is None else argv)))


def _info(argv: list[str]) -> None:
    # `kind=name` says the same as `kind name`: it is what the other doors take.
    topics = [part for word in argv for part in (word.split("=", 1) if word.partition("=")[0] in TOPICS else [word])]
    arguments = split(topics, takes_recipe=False)
    if answered_at_once(INFO, arguments):
        return
    plugin_dirs: list[str] = []
    for assignment in parse_overrides(arguments.overrides):
        if assignment.key != "plugin_dirs" or not isinstance(assignment.value, list):
            raise ConfigError(f"cannot explain {assignment.text!r}; write {INFO} [KIND [NAME]] [plugin_dirs=[a,b]]")
        plugin_dirs = assignment.value
    print(info_help() if "--help" in arguments.options else "\n".join(_answer(arguments.words, plugin_dirs)))


def offers(before: Sequence[str]) -> Offers:
    if not before:
        return Offers([*TOPICS, "--help", "--version", "--completion"])
    discover()
    return Offers(_names(before[0]) if len(before) == 1 else [])


def _names(topic: str) -> list[str]:
    if topic in REGISTRIES:
        return options(topic, recipe_folders())
    return list({"recipe": list_recipes, "asset": CATALOGUE.copy}.get(topic, list)())


def _answer(words: list[str], plugin_dirs: list[str]) -> Iterator[str]:
    if len(words) > 2:
        raise ConfigError(f"cannot explain {' '.join(words)!r}; write {INFO} [KIND [NAME]]")
    if words and words[0] not in TOPICS:
        raise ConfigError(f"no topic {words[0]!r}{near(words[0], TOPICS)}; topics are {', '.join(TOPICS)}")
    found = discover(plugin_dirs)
    if not words:
        yield from _overview(found)
    elif words[0] == "recipe":
        yield from _recipe(words[1]) if len(words) == 2 else _recipes()
    elif words == ["device"]:
        yield from _devices()
        yield from _number_format()
    elif words[0] == "device":
        raise ConfigError(f"devices are explained together, and {words[1]!r} is one too many; write {INFO} device")
    elif words[0] == "asset":
        yield from _asset(words[1]) if len(words) == 2 else _assets()
    else:
        yield from _entry(words[0], words[1]) if len(words) == 2 else _registry(words[0])


def _overview(found: Discovery) -> Iterator[str]:
    yield from _section("versions", [f"python {platform.python_version()} on {platform.system()} {platform.machine()}", *_versions()])
    yield from _section("devices", _devices())
    for kind in REGISTRIES:
        yield from _section(f"{kind}s" if kind != "criterion" else "criteria", _registry(kind))
    yield from _section("plugins run from folders", map(str, found.files))
    yield from _section("plugins that failed to load", (f"{failure.origin}: {failure.reason}" for failure in found.failures))
    yield from _section("recipes", _recipes())
    yield from _section("assets", _assets())


def _section(title: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    yield f"{title}:"
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
    """What a CPU multiplies in, which takes a moment to measure."""
    chosen = number_format()
    found = chosen if chosen.rates else measured()
    yield from (f"{name:<10} {rate} of {found.cpu}" for name, rate in found.rates.items())
    yield f"chosen for new runs on the cpu: {name_of(chosen.bf16)}, by {chosen.chosen_by}; {VARIABLE}=fp32 or bf16 decides instead"


def _registry(kind: str) -> Iterator[str]:
    registry = REGISTRIES[kind]
    for name in sorted(registry):
        entry = registry[name]
        yield f"{name:<18} {summary(entry.implementation.__doc__ or entry.config_type.__doc__)}  [{entry.origin}]"
        if second := registry.contested(name):
            yield f"{'':<18} registered a second time by {second}: rename one"
    presets = [option for option in options(kind, recipe_folders()) if option not in registry]
    if presets:
        yield f"presets: {', '.join(presets)}"


def _entry(kind: str, name: str) -> Iterator[str]:
    folders = recipe_folders()
    config = part(kind, name, folders)
    if name not in REGISTRIES[kind]:
        yield from _preset(kind, name, folders, finish(config))
        return
    entry = REGISTRIES[kind][name]
    implementation = entry.implementation
    yield f"{kind} {name}: {implementation.__module__}.{implementation.__qualname__}, from {entry.origin}"
    if implementation.__doc__:
        yield from ("", textwrap.indent(textwrap.dedent(f"    {implementation.__doc__.strip()}"), "  "))
    yield from ("", f"fields of {entry.config_type.__name__}: {summary(entry.config_type.__doc__)}")
    yield from list(field_lines(entry.config_type)) or ["  none"]


def _preset(kind: str, name: str, folders: Sequence[Path], config: object) -> Iterator[str]:
    path = next(file for folder in folders if (file := folder / kind / f"{name}.yaml").is_file())
    yield f"{kind} {name}: a preset of {kind} {REGISTRIES[kind].name_of(config)}, {path}"
    yield from ("", yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True).rstrip())


def _recipes() -> Iterator[str]:
    for name, path in sorted(list_recipes().items()):
        yield from textwrap.wrap(f"{name:<18} {recipe_doc(path)}  [{path.parent}]", WIDTH, subsequent_indent=" " * 19)


def _recipe(name: str) -> Iterator[str]:
    path = find_recipe(name)
    discover(plugin_dirs_of(name))
    yield f"recipe {name}: {path}"
    yield from ("", yaml.safe_dump(freeze(load_recipe(name)), sort_keys=False, allow_unicode=True).rstrip())


def _assets() -> Iterator[str]:
    for asset in CATALOGUE.values():
        yield f"{asset.name:<22} {asset.doc}"


def _asset(name: str) -> Iterator[str]:
    if name not in CATALOGUE:
        raise ConfigError(f"no asset named {name!r}{near(name, CATALOGUE)}; known: {', '.join(CATALOGUE)}")
    asset = CATALOGUE[name]
    yield f"asset {name}: {asset.doc}"
    yield from ("", f"  hub id   {asset.hub_id or 'none'}", f"  licence  {asset.licence}", f"  files    {', '.join(asset.contents)}")
    yield from (f"  wheel    {wheel.package}=={wheel.version}, {wheel.size_bytes / 1e6:.0f} MB" for wheel in asset.wheels)
