"""Splits a command line into the command's own options and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echox.core.config import near
from echox.core.errors import ConfigError

OPTIONS = {
    "--help": "show this help",
    "--version": "show the version",
    "--cfg": "show the resolved config and stop",
    "--completion": "print a script that completes by tab: --completion bash or zsh",
}
# The names of Hydra's own options, which its users know.
RECIPE_OPTIONS = {
    "--config-name": "the recipe, as recipe=NAME",
    "--config-path": "a folder of recipes and presets to search first",
    "--config": "the recipe as the path of a YAML file",
}
_SHORT = {
    "-h": "--help",
    "-cn": "--config-name",
    "-cp": "--config-path",
    "--config-dir": "--config-path",
}
_WITHOUT_VALUE = ("--help", "--version", "--cfg")
_CFG_KINDS = ("job", "all", "hydra")  # Hydra's `--cfg job`; here there is only one config


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that was split into options, overrides and words."""

    options: dict[str, str]  # "--config-name" -> value, "" for options without one
    overrides: list[str]  # "a.b=value"
    words: list[str]  # all others


def split(argv: Sequence[str], takes_recipe: bool) -> Arguments:
    """Split a command line.

    `--field value` and `--field=value` are read as `field=value`, so both notations work.

    Args:
        argv: the words after the program's name.
        takes_recipe: whether the options that choose a recipe are known.

    Raises:
        ConfigError: an option is unknown or lacks its value.
    """
    options = {**OPTIONS, **(RECIPE_OPTIONS if takes_recipe else {})}
    arguments = Arguments({}, [], [])
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag = _flag_of(word)
        if not word.startswith("-"):
            # `~key` removes a key in Hydra's grammar of overrides.
            is_override = "=" in word or word.startswith("~")
            (arguments.overrides if is_override else arguments.words).append(word)
        elif flag in _WITHOUT_VALUE:
            arguments.options[flag] = word.partition("=")[2]
            if flag == "--cfg" and rest and rest[0] in _CFG_KINDS:
                rest.pop(0)
        elif flag.startswith("--") and len(flag) > 2:
            _take_option(arguments, word, rest, options)
        else:
            # No field has a name of one letter after one dash.
            raise ConfigError(
                f"unknown option {word!r}{near(word, options)}; options are {', '.join(options)}"
            )
    return arguments


def _flag_of(word: str) -> str:
    flag = word.partition("=")[0]
    return _SHORT.get(flag, flag)


def _take_option(arguments: Arguments, word: str, rest: list[str], options: dict[str, str]) -> None:
    """Add an option with its value, which stands in the same word or is the first of `rest`."""
    flag = _flag_of(word)
    _, equals, value = word.partition("=")
    if not equals:
        if not rest:
            raise ConfigError(f"{flag} needs a value{near(flag, options)}")
        value = rest.pop(0)
    if flag in options:
        arguments.options[flag] = value
    else:
        # Any other option names a field: `--batch-size 2` is `batch_size=2`.
        arguments.overrides.append(f"{flag[2:].replace('-', '_')}={value}")
