"""Composes typed configs from YAML files and `a.b=value` overrides, and says in one sentence what is wrong with them.

Hydra reads the YAML (its defaults lists and presets) and the grammar of overrides. The overrides are then applied one after
the other to the typed tree, so that each fault belongs to one override, and swapping a part is always possible: `encoder=mel`
replaces whatever stands at `encoder` by the preset or plugin of that name, at any depth (`s2t.task=mine`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import types
import typing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from echox.config import near
from echox.errors import ConfigError, EchoxError
from echox.plugins import REGISTRIES
from echox.registry import failures

C = TypeVar("C")

_SCHEMA = "echox_schema"
_PRIMARY = "echox_primary"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One override; where a part stands, its value is the name of a preset or plugin."""

    text: str  # as it was typed
    key: str
    parsed: Any
    fault: str = ""  # why Hydra's grammar cannot read the value

    @property
    def value(self) -> Any:
        """The value by Hydra's grammar.

        Raises:
            ConfigError: it cannot be read.
        """
        if self.fault:
            raise ConfigError(f"override {self.text!r}: {self.fault}")
        return self.parsed

    @property
    def literal(self) -> str | None:
        """The value of a field of text: as it was typed, so that `input=a (1), b.wav` needs no quotes."""
        typed = self.text.partition("=")[2]
        quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
        return self.value if quoted or typed == "null" else typed


def parse_overrides(texts: Sequence[str]) -> list[Assignment]:
    """Read `key=value` strings by Hydra's grammar.

    Raises:
        ConfigError: one has no key, or deletes something.
    """
    return [_parse(text) for text in texts]


def _parse(text: str) -> Assignment:
    if text.startswith("~"):
        raise ConfigError(f"override {text!r} deletes a field, which configs do not allow; set it to null instead")
    # `task@s2t.task=mine` is how Hydra's own command line says `s2t.task=mine`.
    key, equals, _ = text.partition("=")
    key = key.lstrip("+").rpartition("@")[2]
    if not (equals and key):
        raise ConfigError(f"{text!r} is not an override; write key=value")
    if not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(f"override {text!r}: {key!r} is not a field name; write key=value or part.key=value")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        return Assignment(text, key, None, f"the value cannot be read ({reason}); quote a text with special characters: {key}='\"...\"'")
    if override.is_sweep_override():
        return Assignment(text, key, None, f"it gives several values; a list is written {key}=[a,b]")
    return Assignment(text, key, override.value())


def compose(schema: type[C], overrides: Sequence[Assignment] = (), yaml_name: str | None = None, folders: Sequence[Path] = ()) -> DictConfig:
    """A typed tree: the defaults of `schema`, then a YAML config, then overrides in order, swaps of parts first.

    Args:
        yaml_name: config file without its suffix, found in `folders`.
        folders: where configs and the presets of each kind lie; the first that has a file wins.
    Raises:
        ConfigError: a field, a value or a part does not exist or does not fit.
    """
    return _applied(_compose_yaml(schema, yaml_name, folders), overrides, folders)


def amended(config: C, overrides: Sequence[str], folders: Sequence[Path] = ()) -> C:
    """A finished config with overrides applied, as a command line would have them.

    Raises:
        ConfigError: as `compose` and `finish`.
    """
    return finish(_applied(OmegaConf.structured(config), parse_overrides(overrides), folders))


def _applied(tree: DictConfig, overrides: Sequence[Assignment], folders: Sequence[Path]) -> DictConfig:
    # Outer parts first, so that the order on the command line does not matter.
    for assignment in sorted(overrides, key=lambda assignment: assignment.key.count(".")):
        with _explained(tree, f"override {assignment.text!r}: ", folders):
            _apply(tree, assignment, folders)
    return tree


def finish(tree: DictConfig) -> Any:
    """The tree as its dataclass; interpolations are resolved, and every `__post_init__` has looked at its values.

    Raises:
        ConfigError: a value is missing, or does not pass its config's own check.
    """
    with _explained(tree, ""):
        try:
            return OmegaConf.to_object(tree)
        except OmegaConfBaseException:
            raise
        except (EchoxError, ValueError, TypeError) as error:
            where = _place_of_fault(tree)
            raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _place_of_fault(tree: DictConfig) -> str:
    """The dotted key of the innermost config that refuses its own values."""
    for key in tree:
        node = tree._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            try:
                OmegaConf.to_object(node)
            except (EchoxError, ValueError, TypeError):
                return ".".join(filter(None, (str(key), _place_of_fault(node))))
    return ""


def options(kind: str, folders: Sequence[Path] = ()) -> list[str]:
    """Everything `kind=` can be set to: registered names and presets."""
    presets = {path.stem for folder in folders for path in (folder / kind).glob("*.yaml")}
    return sorted({*REGISTRIES[kind], *presets})


def _compose_yaml(schema: type, yaml_name: str | None, folders: Sequence[Path]) -> DictConfig:
    defaults = [_SCHEMA, *([yaml_name] if yaml_name else []), "_self_"]
    ConfigStore.instance().store(name=_SCHEMA, node=schema)
    ConfigStore.instance().store(name=_PRIMARY, node={"defaults": defaults})
    with _explained(OmegaConf.structured(schema), f"{yaml_name}.yaml: " if yaml_name else "", folders):
        return _hydra_compose(_PRIMARY, [], folders)


def _hydra_compose(config_name: str | None, overrides: list[str], folders: Sequence[Path]) -> DictConfig:
    search_path = ",".join(f'"file://{folder.resolve()}"' for folder in folders)
    with _own_hydra(), warnings.catch_warnings(), hydra.initialize(version_base="1.3", config_path=None):
        warnings.simplefilter("ignore")
        try:
            return hydra.compose(config_name, overrides=[f"hydra.searchpath=[{search_path}]", *overrides])
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            raise
        # Hydra checks the shape of defaults lists with plain Python errors.
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            raise ConfigError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """A state of Hydra, of which there is one a process, that is not the program's own; that comes back afterwards."""
    host = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = host


def _apply(tree: DictConfig, assignment: Assignment, folders: Sequence[Path]) -> None:
    parent = _begin(tree, assignment.key.rpartition(".")[0])
    hint = type_at(tree, assignment.key)
    value = assignment.literal if _is_text(hint) else assignment.value
    kind = _kind_of(hint)
    if kind and isinstance(value, str):
        _must_know(kind, value, folders)
        OmegaConf.update(tree, assignment.key, _composed_part(kind, value, folders), merge=False)
        return
    if isinstance(value, dict):
        _begin(tree, assignment.key)
    # A mapping takes new keys; a dataclass does not.
    is_mapping = isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is dict
    with open_dict(parent) if is_mapping else contextlib.nullcontext():
        OmegaConf.update(tree, assignment.key, value)


def _is_text(hint: Any) -> bool:
    return any(option in (str, Path) for option in (typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)))


def _begin(tree: DictConfig, path: str) -> Any:
    """The node at a dotted path; a config that is null on the way (a stage that was left out) starts from its defaults."""
    node: Any = tree
    walked = ""
    for key in filter(None, path.split(".")):
        walked = f"{walked}.{key}" if walked else key
        if not isinstance(node, DictConfig):
            return None
        if node.get(key) is None:
            hint = type_at(tree, walked)
            config_type = next((option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)), None)
            if config_type is not None:
                node[key] = OmegaConf.structured(config_type)
        node = node.get(key)
    return node


def kind_at(tree: DictConfig, key: str) -> str | None:
    """The kind of part that stands at a dotted key, or None."""
    return _kind_of(type_at(tree, key))


def _kind_of(hint: Any) -> str | None:
    """The kind of part that a field of this type holds."""
    candidates = (hint, *typing.get_args(hint))
    return next((kind for kind, registry in REGISTRIES.items() if registry.config_base in candidates), None)


def part(kind: str, name: str, folders: Sequence[Path] = ()) -> DictConfig:
    """The typed config of a preset or of a registered name.

    Raises:
        ConfigError: there is none, and the text lists those there are, and the plugins that did not load; or the preset does not fit its part.
    """
    _must_know(kind, name, folders)
    with _explained(OmegaConf.create(), f"{kind} {name!r}: ", folders):
        return _composed_part(kind, name, folders)


def _composed_part(kind: str, name: str, folders: Sequence[Path]) -> DictConfig:
    return _hydra_compose(None, [f"+{kind}={name}"], folders)[kind]


def _must_know(kind: str, name: str, folders: Sequence[Path]) -> None:
    if name not in (known := options(kind, folders)):
        raise _unknown_part(kind, name, known)


def _unknown_part(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(f"no {kind} named {name!r}{near(name, known)}; known: {', '.join(known) or 'none'}{failures()}")


@contextlib.contextmanager
def _explained(tree: DictConfig, where: str, folders: Sequence[Path] = ()) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and the YAML reader raise inside into one sentence."""
    try:
        yield
    except EchoxError as error:
        if isinstance(error, ConfigError) and not str(error).startswith(where):
            raise ConfigError(f"{where}{error}") from error
        raise
    except MissingConfigException as error:
        raise ConfigError(f"{where}{_missing_file(error, folders)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}not valid YAML{place}: {error.problem or error.context}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}{_sentence(tree, error)}") from error


def _missing_file(error: MissingConfigException, folders: Sequence[Path]) -> str:
    kind, _, name = (error.missing_cfg_file or "").rpartition("/")
    if kind in REGISTRIES:
        return str(_unknown_part(kind, name, options(kind, folders)))
    known = [path.stem for folder in folders for path in (folder / kind).glob("*.yaml")]
    return f"the defaults list names {error.missing_cfg_file!r}, which is in none of {', '.join(map(str, folders))}{near(name, known)}"


def _sentence(tree: DictConfig, error: Exception) -> str:
    fault = _omegaconf_fault(error)
    if fault is None:
        return " ".join(str(error).split())
    key = str(fault.full_key or fault.key or "")
    reason = str(fault).splitlines()[0]
    if isinstance(fault, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_field(tree, key, fault.object_type)
    if isinstance(fault, MissingMandatoryValue):
        kind = kind_at(tree, key)
        return f"{key} has no value; set {key}={'NAME, one of ' + ', '.join(options(kind)) if kind else '...'}"
    if isinstance(fault, InterpolationKeyError):
        return f"{key} refers to a field that does not exist ({reason})"
    hint = type_at(tree, key)
    return f"{key} takes {type_name(hint)}, not {_shown(fault.value)}" if hint is not None else f"{key}: {reason}"


def _shown(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return "null" if plain is None else repr(plain)


def _omegaconf_fault(error: BaseException | None) -> OmegaConfBaseException | None:
    """The first fault in the chain of causes that says where it happened."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and (error.full_key or error.key):
            return error
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(tree: DictConfig, key: str, owner: Any) -> str:
    path, _, last = key.rpartition(".")
    names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
    place = path or getattr(owner, "__name__", "the config")
    elsewhere = [found for found in field_paths(tree) if found.rpartition(".")[2] == last]
    hint = f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else near(last, names)
    return f"no field {last!r} in {place}{hint or '; its fields are ' + (', '.join(names) or 'none')}"


def field_paths(tree: DictConfig, path: str = "") -> Iterator[str]:
    """Every dotted key that an override can set."""
    for key in tree:
        yield f"{path}{key}"
        node = tree._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from field_paths(node, f"{path}{key}.")


def type_at(tree: DictConfig, key: str) -> Any:
    """The declared type of the field at a dotted key, or None."""
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(tree, path, throw_on_missing=False) if path else tree
    owner = OmegaConf.get_type(parent) if isinstance(parent, DictConfig) else None
    if dataclasses.is_dataclass(owner):
        return typing.get_type_hints(owner).get(last)
    arguments = typing.get_args(type_at(tree, path)) if path else ()
    return arguments[1] if owner is dict and len(arguments) == 2 else None


_TYPE_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def type_name(hint: Any) -> str:
    """A type as a person would say it: `an integer or null`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"a list, each {type_name(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"a mapping, each value {type_name(arguments[1])}"
    if arguments:
        return " or ".join(type_name(argument) for argument in arguments)
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    if kind := _kind_of(hint):
        return f"the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(hint.__members__)
    return getattr(hint, "__name__", str(hint))
