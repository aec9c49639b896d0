"""Splits a command line into the door's own options and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echox.config import near
from echox.errors import ConfigError

OPTIONS = {
    "--help": "show this help",
    "--version": "show the version",
    "--cfg": "show the resolved config and stop",
    "--completion": "print a script that completes by tab: --completion bash or zsh",
}
RECIPE_OPTIONS = {
    "--config-name": "the recipe, as recipe=NAME",
    "--config-path": "a folder of recipes and presets to search first",
    "--config": "the recipe as the path of a YAML file",
}
_SHORT = {"-h": "--help", "-cn": "--config-name", "-cp": "--config-path", "--config-dir": "--config-path"}
_WITHOUT_VALUE = ("--help", "--version", "--cfg")
_CFG_KINDS = ("job", "all", "hydra")  # Hydra's `--cfg job`; here there is only one config


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line, split."""

    options: dict[str, str]  # "--config-name" -> value, "" for options without one
    overrides: list[str]  # "a.b=value"
    words: list[str]  # all others


def split(argv: Sequence[str], takes_recipe: bool) -> Arguments:
    """Split a command line.

    `--field value` and `--field=value` are read as `field=value`, so both ways of calling work.

    Raises:
        ConfigError: an option is unknown or lacks its value.
    """
    known = {**OPTIONS, **(RECIPE_OPTIONS if takes_recipe else {})}
    options: dict[str, str] = {}
    overrides: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        flag = _SHORT.get(flag, flag)
        if not word.startswith("-"):
            (overrides if "=" in word or word.startswith("~") else words).append(word)
        elif flag in _WITHOUT_VALUE:
            options[flag] = value
            if flag == "--cfg" and rest and rest[0] in _CFG_KINDS:
                rest.pop(0)
        elif flag.startswith("--") and len(flag) > 2:
            if not equals:
                if not rest:
                    raise ConfigError(f"{flag} needs a value{near(flag, known)}")
                value = rest.pop(0)
            if flag in known:
                options[flag] = value
            else:
                overrides.append(f"{flag[2:].replace('-', '_')}={value}")
        else:
            raise ConfigError(f"unknown option {word!r}{near(word, known)}; options are {', '.join(known)}")
    return Arguments(options, overrides, words)
