"""The course of every command: read the command line, load plugins, compose the config, run."""

from __future__ import annotations

import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from echox.core.config import to_plain
from echox.core.errors import ConfigError
from echox.pipeline.compose import Assignment, compose, finish, parse_overrides
from echox.pipeline.plugins import Discovery, discover
from echox.pipeline.recipe import (
    DEFAULT_RECIPE,
    Recipe,
    compose_recipe,
    load_recipe,
)
from echox.pipeline.recipe_files import (
    list_recipes,
    plugin_dirs_of,
    plugin_folders,
    recipe_doc,
    recipe_folders,
)
from echox.pipeline.recipe_text import recipe_text
from echox_cli import texts
from echox_cli.arguments import OPTIONS, RECIPE_OPTIONS, Arguments, split
from echox_cli.explanation import explanation
from echox_cli.fields import WIDTH, doc_lines, field_lines, summary
from echox_cli.guard import guarded

C = TypeVar("C")


def run_recipe_command(
    program: str, function: Callable[[Recipe], object], argv: Sequence[str] | None, doc: str
) -> int:
    """Run a command that takes a recipe: `program recipe=NAME a.b=value ...`.

    Args:
        program: the command's name, in its help and errors.
        function: does the work; an integer that it returns is the exit code.
        argv: the words after the program's name; None takes those of the process.
        doc: the first line of the help.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    return guarded(program, lambda: _recipe_command(program, function, words, doc))


def _recipe_command(
    program: str, function: Callable[[Recipe], object], argv: Sequence[str], doc: str
) -> object:
    arguments = split(argv, takes_recipe=True)
    if answered_at_once(program, arguments):
        return 0
    # Before plugins are loaded: the help lists the fields of the dataclass alone.
    if "--help" in arguments.options and not arguments.words:
        print("\n".join(_recipe_help(program, doc, _recipe_dirs(arguments))))
        return 0
    if "--help" in arguments.options:
        print("\n".join(recipe_explanation(arguments)))
        return 0
    if arguments.words:
        raise ConfigError(
            f"{arguments.words[0]!r} is not key=value; did you mean recipe={arguments.words[0]}?"
        )
    name, overrides = chosen_recipe(arguments)
    folders = _recipe_dirs(arguments)
    # Plugins before the recipe, which may name their parts.
    _print_plugins_run(discover(plugin_dirs_of(name, overrides, folders)))
    recipe = load_recipe(name, overrides, folders)
    if "--cfg" in arguments.options:
        print(recipe_text(recipe), end="")
        return 0
    return function(recipe)


def recipe_explanation(arguments: Arguments) -> Iterator[str]:
    """Yield lines that explain the fields that words of a command line name, in its recipe.

    Args:
        arguments: its words are dotted keys; recipe and overrides decide parts and values.

    Raises:
        ConfigError: the recipe or an override is wrong, or there is no such field.
    """
    name, overrides = chosen_recipe(arguments)
    folders = _recipe_dirs(arguments)
    discover(plugin_dirs_of(name, overrides, folders))
    tree = compose_recipe(name, overrides, folders)
    for number, key in enumerate(arguments.words):
        yield from ([""] if number else [])
        yield from explanation(tree, key)
    yield from ("", f"Values are those of recipe {name}; recipe=NAME names another.")


def chosen_recipe(arguments: Arguments) -> tuple[str, list[str]]:
    """Return the recipe's name or path, and the overrides without it.

    Raises:
        ConfigError: the command line names two different recipes.
    """
    names = [
        arguments.options[flag]
        for flag in ("--config-name", "--config")
        if flag in arguments.options
    ]
    names += [text.partition("=")[2] for text in arguments.overrides if text.startswith("recipe=")]
    # The same recipe twice is harmless, for instance where a script adds words to a line.
    if len(set(names)) > 1:
        raise ConfigError(f"the command line names several recipes: {', '.join(names)}; name one")
    name = names[0] if names else DEFAULT_RECIPE
    return name, [text for text in arguments.overrides if not text.startswith("recipe=")]


def _recipe_dirs(arguments: Arguments) -> list[str]:
    return [arguments.options["--config-path"]] if "--config-path" in arguments.options else []


def _print_yaml(plain: Any) -> None:
    # In the order of the fields, and in the user's own script rather than escapes.
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")


def run_command(
    program: str,
    config_type: type[C],
    function: Callable[[C], object],
    argv: Sequence[str] | None = None,
    positional: str | None = None,
) -> int:
    """Run a command whose config is one dataclass: `program field=value ...`.

    Args:
        program: the command's name, in its help and errors.
        config_type: the dataclass; its docstring and field sentences are the help.
        function: does the work; an integer that it returns is the exit code.
        argv: the words after the program's name; None takes those of the process.
        positional: the field that words without `=` belong to; a list field takes several.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    return guarded(
        program, lambda: _config_command(program, config_type, function, words, positional)
    )


def _config_command(
    program: str,
    config_type: type[C],
    function: Callable[[C], object],
    argv: Sequence[str],
    positional: str | None,
) -> object:
    arguments = split(argv, takes_recipe=False)
    if answered_at_once(program, arguments):
        return 0
    # Before plugins are loaded: the help lists the fields of the dataclass alone.
    if "--help" in arguments.options:
        print("\n".join(_config_help(program, config_type, positional, arguments.words)))
        return 0
    assignments = [
        *_positional(config_type, positional, arguments.words),
        *parse_overrides(arguments.overrides),
    ]
    # Plugins before the config, which may name their parts.
    _print_plugins_run(discover(_plugin_dirs(assignments)))
    config = finish(compose(config_type, assignments, folders=recipe_folders()))
    if "--cfg" in arguments.options:
        _print_yaml(to_plain(config))
        return 0
    return function(config)


def _plugin_dirs(assignments: Sequence[Assignment]) -> list[str]:
    dirs = [assignment for assignment in assignments if assignment.key == "plugin_dirs"]
    return [folder for assignment in dirs for folder in plugin_folders(assignment.value)]


def _positional(config_type: type, field: str | None, words: Sequence[str]) -> list[Assignment]:
    """Return words without `=` as the value of one field."""
    if not words:
        return []
    if field is None:
        raise ConfigError(f"{words[0]!r} is not key=value")
    # Assigned as they are: a path may hold characters of Hydra's grammar.
    if typing.get_origin(typing.get_type_hints(config_type)[field]) is list:
        return [Assignment(" ".join(words), field, list(words))]
    if len(words) > 1:
        raise ConfigError(f"one {field} is taken, not {len(words)}: {' '.join(words)}")
    return [Assignment(f"{field}={words[0]}", field, words[0])]


def answered_at_once(program: str, arguments: Arguments) -> bool:
    """Print the answer to an option that needs no config, and return whether there was one.

    Args:
        program: the command's name.
        arguments: may hold `--version` or `--completion`.

    Raises:
        ConfigError: there is no completion for the shell.
    """
    if "--version" in arguments.options:
        print(texts.version(program))
    elif "--completion" in arguments.options:
        print(texts.script(program, arguments.options["--completion"]))
    else:
        return False
    return True


def _print_plugins_run(discovery: Discovery) -> None:
    # A plugin may run any code, so the user sees whose code was run.
    if discovery.files:
        print(f"plugins run: {', '.join(map(str, discovery.files))}", file=sys.stderr)


def _recipe_help(program: str, doc: str, recipe_dirs: Sequence[str | Path]) -> Iterator[str]:
    yield from (
        doc,
        "",
        f"usage: {program} [recipe=NAME] [field=value ...]",
        "",
        "recipes (recipe=..., or the path of a YAML file):",
    )
    yield from _recipe_lines(recipe_dirs)
    yield from ("", "fields:", *field_lines(Recipe))
    yield from (
        "",
        "A part is swapped by name (encoder=mel) and set by its fields (encoder.bins=40); "
        "`echox-info` lists the parts, `echox-info",
        "encoder mel` explains one. A stage is set in the same way: "
        "s2t.task=NAME, s2t.train.steps=400.",
        f"`{program} --help s2t.train` explains the fields of a part or a stage, as the recipe has "
        "them.",
    )
    yield from _option_lines({**OPTIONS, **RECIPE_OPTIONS})


def _recipe_lines(recipe_dirs: Sequence[str | Path]) -> Iterator[str]:
    for name, path in sorted(list_recipes(recipe_dirs).items()):
        default = " (default)" if name == DEFAULT_RECIPE else ""
        yield from textwrap.wrap(
            f"{name}{default}  {recipe_doc(path)}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
        )


def _config_help(
    program: str, config_type: type, positional: str | None, asked: Sequence[str]
) -> Iterator[str]:
    """Yield the help of a command, or of the fields that are asked for.

    Other words are those of the command itself, to which somebody added `--help`.
    """
    tree = OmegaConf.structured(config_type)
    if keys := [key for key in asked if key.partition(".")[0] in tree]:
        for key in keys:
            yield from explanation(tree, key)
        return
    words = f" [{positional.upper()}]" if positional else ""
    yield from (
        *doc_lines(summary(config_type.__doc__), ""),
        "",
        f"usage: {program}{words} [field=value ...]",
        "",
        "fields:",
        *field_lines(config_type),
    )
    yield from _option_lines(OPTIONS)


def _option_lines(options: dict[str, str]) -> Iterator[str]:
    yield from ("", "options:")
    for option, doc in options.items():
        yield f"  {option:<14} {doc}"
