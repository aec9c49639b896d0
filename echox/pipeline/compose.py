"""Composition of typed configs from YAML files and `a.b=value` overrides, with one-sentence errors.

Hydra reads the YAML (its defaults lists and presets) and the grammar of overrides. The overrides
are then applied to the typed tree one by one, so that each error belongs to one override, and a
part can always be swapped: `encoder=mel` replaces the config at `encoder` by the preset or plugin
of that name, at any depth (`s2t.task=mine`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
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

from echox.core.config import near
from echox.core.errors import ConfigError, EchoxError
from echox.core.registry import failures
from echox.pipeline.plugins import REGISTRIES

C = TypeVar("C")
InFull = Callable[[DictConfig, str, Sequence[str]], str]
"""Takes a tree, the key of one override and the keys of all; returns that override's full key."""

# Names of two configs in Hydra's store, which a host program may share.
_SCHEMA = "echox_schema"
_PRIMARY = "echox_primary"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One override; for a part, its value is the name of a preset or plugin."""

    text: str  # as it was typed
    key: str
    parsed: Any
    fault: str = ""  # why Hydra's grammar cannot read the value

    @property
    def value(self) -> Any:
        """Value by Hydra's grammar.

        Raises:
            ConfigError: it cannot be read.
        """
        # Raised here and not while parsing: for a text field `literal` is enough.
        if self.fault:
            raise ConfigError(f"override {self.text!r}: {self.fault}")
        return self.parsed

    @property
    def literal(self) -> str | None:
        """Value for a text field: as it was typed, so that `input=a (1), b.wav` needs no quotes.

        Raises:
            ConfigError: it is quoted, and cannot be read.
        """
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
        raise ConfigError(
            f"override {text!r} deletes a field, which configs do not allow; set it to null instead"
        )
    # `task@s2t.task=mine` is how Hydra's own command line says `s2t.task=mine`.
    key, equals, _ = text.partition("=")
    key = key.lstrip("+").rpartition("@")[2]
    if not (equals and key):
        raise ConfigError(f"{text!r} is not an override; write key=value")
    # Hydra's grammar takes more keys than a dataclass can have fields.
    if not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(
            f"override {text!r}: {key!r} is not a field name; write key=value or part.key=value"
        )
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        advice = f"quote a text with special characters: {key}='\"...\"'"
        return Assignment(text, key, None, f"the value cannot be read ({reason}); {advice}")
    # `a=1,2` would start several runs under Hydra, and there is no such command here.
    if override.is_sweep_override():
        fault = f"it gives several values; a list is written {key}=[a,b]"
        return Assignment(text, key, None, fault)
    return Assignment(text, key, override.value())


def compose(
    schema: type[C],
    overrides: Sequence[Assignment] = (),
    yaml_name: str | None = None,
    folders: Sequence[Path] = (),
    *,
    in_full: InFull | None = None,
) -> DictConfig:
    """Compose a typed tree: the defaults of `schema`, then a YAML config, then overrides.

    Overrides are applied in order, those of outer fields first.

    Args:
        schema: the dataclass of the config.
        overrides: as `parse_overrides` returns them.
        yaml_name: config file without its suffix, found in `folders`.
        folders: of configs and of the presets of each kind; the first that has a file wins.
        in_full: completes the keys of overrides that are written in a short form.

    Raises:
        ConfigError: a field, a value or a part does not exist or does not fit.
    """
    tree = _compose_yaml(schema, yaml_name, folders)
    return _apply_all(tree, overrides, folders, in_full)


def amended(
    config: C,
    overrides: Sequence[str],
    folders: Sequence[Path] = (),
    *,
    in_full: InFull | None = None,
) -> C:
    """Return a copy of a finished config with overrides applied, as on a command line.

    Args:
        config: the config, which stays as it is.
        overrides: `a.b=value` strings.
        folders: of the presets of each kind.
        in_full: completes the keys of overrides that are written in a short form.

    Raises:
        ConfigError: a field, a value or a part does not exist or does not fit.
    """
    tree = OmegaConf.structured(config)
    return finish(_apply_all(tree, parse_overrides(overrides), folders, in_full))


def _apply_all(
    tree: DictConfig,
    overrides: Sequence[Assignment],
    folders: Sequence[Path],
    in_full: InFull | None,
) -> DictConfig:
    if in_full is not None:
        overrides = list(_complete_keys(tree, overrides, in_full, folders))
    # Outer parts first, so that swapping a part does not undo an override of its field.
    for assignment in sorted(overrides, key=lambda assignment: assignment.key.count(".")):
        with _explained(tree, f"override {assignment.text!r}: ", folders):
            _apply(tree, assignment, folders)
    return tree


def _complete_keys(
    tree: DictConfig, overrides: Sequence[Assignment], in_full: InFull, folders: Sequence[Path]
) -> Iterator[Assignment]:
    keys = [assignment.key for assignment in overrides]
    for assignment in overrides:
        with _explained(tree, f"override {assignment.text!r}: ", folders):
            yield dataclasses.replace(assignment, key=in_full(tree, assignment.key, keys))


def finish(tree: DictConfig) -> Any:
    """Return the tree as its dataclass, interpolations resolved and every value checked.

    Raises:
        ConfigError: a value is missing, or fails the check of its config's `__post_init__`.
    """
    with _explained(tree, ""):
        try:
            return OmegaConf.to_object(tree)
        # First, because some of OmegaConf's errors are ValueErrors too, and name their field.
        except OmegaConfBaseException:
            raise
        except (EchoxError, ValueError, TypeError) as error:
            path = _path_of_fault(tree)
            raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _path_of_fault(tree: DictConfig) -> str:
    """Return the dotted key of the innermost config that refuses its own values."""
    # An error of `__post_init__` does not say where it was raised, so each node is tried again.
    for key, node in _nodes(tree):
        try:
            OmegaConf.to_object(node)
        except (EchoxError, ValueError, TypeError):
            return ".".join(filter(None, (key, _path_of_fault(node))))
    return ""


def _nodes(tree: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the key and the node of every config in a tree that is neither null nor missing."""
    for key in tree:
        # Reading by `tree[key]` would raise for a missing value.
        node = tree._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield str(key), node


def options(kind: str, folders: Sequence[Path] = ()) -> list[str]:
    """List everything `kind=` can be set to: registered names and presets.

    Args:
        kind: encoder, backbone, codec, task or criterion.
        folders: of the presets of each kind.
    """
    presets = {path.stem for folder in folders for path in (folder / kind).glob("*.yaml")}
    return sorted({*REGISTRIES[kind], *presets})


def _compose_yaml(schema: type, yaml_name: str | None, folders: Sequence[Path]) -> DictConfig:
    # The schema first, so that its types check what the file sets.
    defaults = [_SCHEMA, *([yaml_name] if yaml_name else []), "_self_"]
    ConfigStore.instance().store(name=_SCHEMA, node=schema)
    ConfigStore.instance().store(name=_PRIMARY, node={"defaults": defaults})
    place = f"{yaml_name}.yaml: " if yaml_name else ""
    with _explained(OmegaConf.structured(schema), place, folders):
        return _hydra_compose(_PRIMARY, [], folders)


def _hydra_compose(
    config_name: str | None, overrides: list[str], folders: Sequence[Path]
) -> DictConfig:
    # Quoted, because a folder's name may hold characters of the grammar.
    search_path = ",".join(f'"file://{folder.resolve()}"' for folder in folders)
    overrides = [f"hydra.searchpath=[{search_path}]", *overrides]
    with (
        _separate_hydra(),
        warnings.catch_warnings(),
        hydra.initialize(version_base="1.3", config_path=None),
    ):
        warnings.simplefilter("ignore")
        try:
            return hydra.compose(config_name, overrides=overrides)
        # First, because some of these are ValueErrors too, and `_explained` knows more of them.
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            raise
        except RecursionError as error:
            raise ConfigError(
                "files name each other in their defaults lists in a circle; break it in one"
            ) from error
        # Hydra checks the shape of defaults lists with plain Python errors.
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            raise ConfigError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _separate_hydra() -> Iterator[None]:
    """Set Hydra's global state aside within a block, since a host program may use Hydra too."""
    host = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = host


def _apply(tree: DictConfig, assignment: Assignment, folders: Sequence[Path]) -> None:
    parent = _fill_path(tree, assignment.key.rpartition(".")[0])
    hint = type_at(tree, assignment.key)
    # A path or a name may look like a number or hold a comma, so text is not parsed.
    value = assignment.literal if _is_text(hint) else assignment.value
    kind = _kind_of(hint)
    if kind and isinstance(value, str):
        _check_name(kind, value, folders)
        # Replaced and not merged: fields of the former part may not exist in the new one.
        OmegaConf.update(tree, assignment.key, _compose_part(kind, value, folders), merge=False)
        return
    # A dict is merged into the config that is there, which must not be null.
    node = _fill_path(tree, assignment.key) if isinstance(value, dict) else None
    with _open_mapping(parent), _open_mapping(node):
        OmegaConf.update(tree, assignment.key, value)


def _open_mapping(node: Any) -> contextlib.AbstractContextManager[Any]:
    """Let a mapping take new keys within a block; a dataclass never does."""
    is_mapping = isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict
    return open_dict(node) if is_mapping else contextlib.nullcontext()


def _is_text(hint: Any) -> bool:
    """Whether a field of this type holds a string or a path, null or not."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    types_of_field = typing.get_args(hint) if is_union else (hint,)
    return any(option in (str, Path) for option in types_of_field)


def _fill_path(tree: DictConfig, path: str) -> Any:
    """Return the node at a dotted path; a config on the way that is null gets its defaults."""
    node: Any = tree
    walked = ""
    for key in filter(None, path.split(".")):
        walked = f"{walked}.{key}" if walked else key
        if not isinstance(node, DictConfig):
            return None
        # A stage that the recipe left out can so be set by its fields alone.
        if node.get(key) is None and (config_type := _config_type(type_at(tree, walked))):
            with _open_mapping(node):
                node[key] = OmegaConf.structured(config_type)
        node = node.get(key)
    return node


def _config_type(hint: Any) -> type | None:
    """Return the dataclass among the types of a field, or None."""
    candidates = (hint, *typing.get_args(hint))
    return next((option for option in candidates if dataclasses.is_dataclass(option)), None)


def kind_at(tree: DictConfig, key: str) -> str | None:
    """Return the kind of part at a dotted key, such as "encoder", or None."""
    return _kind_of(type_at(tree, key))


def _kind_of(hint: Any) -> str | None:
    """Return the kind of part that a field of this type holds, or None."""
    candidates = (hint, *typing.get_args(hint))
    return next(
        (kind for kind, registry in REGISTRIES.items() if registry.config_base in candidates), None
    )


def part(kind: str, name: str, folders: Sequence[Path] = ()) -> DictConfig:
    """Return the typed config of a preset or of a registered name.

    Args:
        kind: encoder, backbone, codec, task or criterion.
        name: of the preset or the part.
        folders: of the presets of each kind.

    Raises:
        ConfigError: there is none, or the preset does not fit its part; the message lists those
            that exist, and the plugins that failed to load.
    """
    _check_name(kind, name, folders)
    with _explained(OmegaConf.create(), f"{kind} {name!r}: ", folders):
        return _compose_part(kind, name, folders)


def _compose_part(kind: str, name: str, folders: Sequence[Path]) -> DictConfig:
    return _hydra_compose(None, [f"+{kind}={name}"], folders)[kind]


def _check_name(kind: str, name: str, folders: Sequence[Path]) -> None:
    names = options(kind, folders)
    if name not in names:
        raise _unknown_part(kind, name, names)


def _unknown_part(kind: str, name: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"no {kind} named {name!r}{near(name, names)}; "
        f"known: {', '.join(names) or 'none'}{failures()}"
    )


@contextlib.contextmanager
def _explained(tree: DictConfig, where: str, folders: Sequence[Path] = ()) -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and the YAML reader within a block into one sentence.

    Args:
        tree: the config that is composed, for the types and names of its fields.
        where: beginning of the sentence.
        folders: of configs and presets.
    """
    try:
        yield
    except EchoxError as error:
        # A block within another one has named its place already.
        if isinstance(error, ConfigError) and not str(error).startswith(where):
            raise ConfigError(f"{where}{error}") from error
        raise
    except MissingConfigException as error:
        raise ConfigError(f"{where}{_missing_file(error, folders)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context
        raise ConfigError(f"{where}not valid YAML{place}: {problem}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}{_sentence(tree, error)}") from error


def _missing_file(error: MissingConfigException, folders: Sequence[Path]) -> str:
    # The file of `encoder: mel` in a defaults list is "encoder/mel".
    kind, _, name = (error.missing_cfg_file or "").rpartition("/")
    if kind in REGISTRIES:
        return str(_unknown_part(kind, name, options(kind, folders)))
    names = [path.stem for folder in folders for path in (folder / kind).glob("*.yaml")]
    return (
        f"the defaults list names {error.missing_cfg_file!r}, which is in none of "
        f"{', '.join(map(str, folders))}{near(name, names)}"
    )


def _sentence(tree: DictConfig, error: Exception) -> str:
    fault = _omegaconf_fault(error)
    if fault is None:
        return " ".join(str(error).split())
    # `key` alone is relative to its node; some errors have only that.
    key = str(fault.full_key or fault.key or "")
    # The lines after the first repeat the key and the type, in OmegaConf's own terms.
    reason = str(fault).splitlines()[0]
    if isinstance(fault, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_field(tree, key, fault.object_type)
    if isinstance(fault, MissingMandatoryValue):
        kind = kind_at(tree, key)
        value = f"NAME, one of {', '.join(options(kind))}" if kind else "..."
        return f"{key} has no value; set {key}={value}"
    if isinstance(fault, InterpolationKeyError):
        return f"{key} refers to a field that does not exist ({reason})"
    hint = type_at(tree, key)
    if hint is None:
        return f"{key}: {reason}"
    return f"{key} takes {type_name(hint)}, not {_value_text(fault.value)}"


def _value_text(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return "null" if plain is None else repr(plain)


def _omegaconf_fault(error: BaseException | None) -> OmegaConfBaseException | None:
    """Return the first error in the chain of causes that names its field, or None."""
    # Hydra wraps OmegaConf's errors in its own, which do not name the field.
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and (error.full_key or error.key):
            return error
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(tree: DictConfig, key: str, owner: Any) -> str:
    path, _, last = key.rpartition(".")
    names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
    place = path or getattr(owner, "__name__", "the config")
    # The same field in another place is a likelier mistake than a similar name here.
    elsewhere = [other for other in field_paths(tree) if other.rpartition(".")[2] == last]
    hint = f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else near(last, names)
    hint = hint or f"; its fields are {', '.join(names) or 'none'}"
    return f"no field {last!r} in {place}{hint}"


def field_paths(tree: DictConfig, path: str = "") -> Iterator[str]:
    """Yield every dotted key that an override can set.

    Args:
        tree: the config.
        path: beginning of the keys, with its final dot.
    """
    nodes = dict(_nodes(tree))
    for key in tree:
        yield f"{path}{key}"
        if str(key) in nodes:
            yield from field_paths(nodes[str(key)], f"{path}{key}.")


def type_at(tree: DictConfig, key: str) -> Any:
    """Return the declared type of the field at a dotted key, or None if it is unknown."""
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(tree, path, throw_on_missing=False) if path else tree
    owner = OmegaConf.get_type(parent) if isinstance(parent, DictConfig) else None
    if dataclasses.is_dataclass(owner):
        # Hints and not `field.type`, which is a string under postponed annotations.
        return typing.get_type_hints(owner).get(last)
    # A key of a mapping has the type of the mapping's values.
    arguments = typing.get_args(type_at(tree, path)) if path else ()
    return arguments[1] if owner is dict and len(arguments) == 2 else None


_TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def type_name(hint: Any) -> str:
    """Return a type in plain words, such as `an integer or null`.

    Args:
        hint: the annotation of a config's field.
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"a list, each {type_name(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"a mapping, each value {type_name(arguments[1])}"
    # What is left with arguments is a union.
    if arguments:
        return " or ".join(type_name(argument) for argument in arguments)
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    if kind := _kind_of(hint):
        return f"the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(hint.__members__)
    return getattr(hint, "__name__", str(hint))
