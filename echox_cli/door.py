"""What every door does: read the command line, load plugins, compose the config, run, and say in one line what went wrong."""

from __future__ import annotations

import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from echox.compose import Assignment, compose, finish, parse_overrides
from echox.config import to_plain
from echox.errors import ConfigError
from echox.plugins import Discovery, discover
from echox.recipe import DEFAULT_RECIPE, Recipe, freeze, list_recipes, load_recipe, plugin_dirs_of, recipe_doc, recipe_folders
from echox_cli import texts
from echox_cli.arguments import OPTIONS, RECIPE_OPTIONS, Arguments, split
from echox_cli.fields import WIDTH, field_lines, summary
from echox_cli.guard import guarded

C = TypeVar("C")


def run_recipe_door(program: str, function: Callable[[Recipe], object], argv: Sequence[str] | None, doc: str) -> int:
    """A door that takes a recipe: `program recipe=NAME a.b=value ...`."""
    return guarded(program, lambda: _recipe_door(program, function, sys.argv[1:] if argv is None else argv, doc))


def _recipe_door(program: str, function: Callable[[Recipe], object], argv: Sequence[str], doc: str) -> object:
    arguments = split(argv, takes_recipe=True)
    if answered_at_once(program, arguments):
        return 0
    if "--help" in arguments.options:
        print("\n".join(_recipe_help(program, doc, _recipe_dirs(arguments))))
        return 0
    if arguments.words:
        raise ConfigError(f"{arguments.words[0]!r} is not key=value; did you mean recipe={arguments.words[0]}?")
    name, overrides = chosen_recipe(arguments)
    folders = _recipe_dirs(arguments)
    announce(discover(plugin_dirs_of(name, overrides, folders)))
    recipe = load_recipe(name, overrides, folders)
    if "--cfg" in arguments.options:
        print(yaml.safe_dump(freeze(recipe), sort_keys=False, allow_unicode=True), end="")
        return 0
    return function(recipe)


def chosen_recipe(arguments: Arguments) -> tuple[str, list[str]]:
    """The recipe's name or path, and the overrides without it.

    Raises:
        ConfigError: two different recipes were asked for.
    """
    names = [arguments.options[flag] for flag in ("--config-name", "--config") if flag in arguments.options]
    names += [text.partition("=")[2] for text in arguments.overrides if text.startswith("recipe=")]
    if len(set(names)) > 1:
        raise ConfigError(f"the command line names several recipes: {', '.join(names)}; name one")
    name = names[0] if names else DEFAULT_RECIPE
    return name, [text for text in arguments.overrides if not text.startswith("recipe=")]


def _recipe_dirs(arguments: Arguments) -> list[str]:
    return [arguments.options["--config-path"]] if "--config-path" in arguments.options else []


def run_door(
    program: str,
    config_type: type[C],
    function: Callable[[C], object],
    argv: Sequence[str] | None = None,
    positional: str | None = None,
) -> int:
    """A door whose config is one dataclass: `program field=value ...`; its docstring and field docs are the help.

    Args:
        function: does the work; an integer it returns is the exit code.
        positional: the field that words without `=` belong to; a list field takes several.
    """
    return guarded(program, lambda: _config_door(program, config_type, function, sys.argv[1:] if argv is None else argv, positional))


def _config_door(
    program: str,
    config_type: type[C],
    function: Callable[[C], object],
    argv: Sequence[str],
    positional: str | None,
) -> object:
    arguments = split(argv, takes_recipe=False)
    if answered_at_once(program, arguments):
        return 0
    if "--help" in arguments.options:
        print("\n".join(_config_help(program, config_type, positional)))
        return 0
    assignments = [*_positional(config_type, positional, arguments.words), *parse_overrides(arguments.overrides)]
    announce(discover([folder for assignment in assignments if assignment.key == "plugin_dirs" for folder in assignment.value]))
    config = finish(compose(config_type, assignments, folders=recipe_folders()))
    if "--cfg" in arguments.options:
        print(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    return function(config)


def _positional(config_type: type, field: str | None, words: Sequence[str]) -> list[Assignment]:
    """Words without `=` as the value of one field."""
    if not words:
        return []
    if field is None:
        raise ConfigError(f"{words[0]!r} is not key=value")
    if typing.get_origin(typing.get_type_hints(config_type)[field]) is list:
        return [Assignment(" ".join(words), field, list(words))]
    if len(words) > 1:
        raise ConfigError(f"one {field} is taken, not {len(words)}: {' '.join(words)}")
    return [Assignment(f"{field}={words[0]}", field, words[0])]


def answered_at_once(program: str, arguments: Arguments) -> bool:
    """The questions any door answers without a config."""
    if "--version" in arguments.options:
        print(texts.version(program))
    elif "--completion" in arguments.options:
        print(texts.script(program, arguments.options["--completion"]))
    else:
        return False
    return True


def announce(found: Discovery) -> None:
    """Say whose code was run: a plugin folder is code."""
    if found.files:
        print(f"plugins run: {', '.join(map(str, found.files))}", file=sys.stderr)


def _recipe_help(program: str, doc: str, recipe_dirs: Sequence[str | Path]) -> Iterator[str]:
    yield from (doc, "", f"usage: {program} [recipe=NAME] [field=value ...]", "", "recipes (recipe=..., or the path of a YAML file):")
    for name, path in sorted(list_recipes(recipe_dirs).items()):
        default = " (default)" if name == DEFAULT_RECIPE else ""
        yield from textwrap.wrap(f"{name}{default}  {recipe_doc(path)}", WIDTH, initial_indent="  ", subsequent_indent="      ")
    yield from ("", "fields:", *field_lines(Recipe))
    yield from (
        "",
        "A part is swapped by name (encoder=mel) and set by its fields (encoder.bins=40); `echox-info` lists the parts, `echox-info",
        "encoder mel` explains one. A stage is set in the same way: s2t.task=NAME, s2t.train.steps=400.",
    )
    yield from _option_lines({**OPTIONS, **RECIPE_OPTIONS})


def _config_help(program: str, config_type: type, positional: str | None) -> Iterator[str]:
    words = f" [{positional.upper()}]" if positional else ""
    yield from (summary(config_type.__doc__), "", f"usage: {program}{words} [field=value ...]", "", "fields:", *field_lines(config_type))
    yield from _option_lines(OPTIONS)


def _option_lines(options: dict[str, str]) -> Iterator[str]:
    yield from ("", "options:")
    for option, doc in options.items():
        yield f"  {option:<14} {doc}"
