"""Composition of typed configs from YAML files and `a.b=value` overrides, with one-sentence errors.

Hydra reads the YAML (its defaults lists and presets) and the grammar of overrides. The overrides
are then applied to the typed tree one by one, so that each error belongs to one override, and a
part can always be swapped: `encoder=mel` replaces the config at `encoder` by the preset or plugin
of that name, at any depth (`s2t.task=mine`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    OmegaConfBaseException,
)

from echox.core.errors import ConfigError, EchoxError
from echox.pipeline.compose_errors import check_part_name, explained
from echox.pipeline.config_tree import config_type_of, holds_text, kind_of, nodes, type_at
from echox.pipeline.yaml_files import check_files, without_overridden

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
        with explained(tree, f"override {assignment.text!r}: ", folders):
            _apply(tree, assignment, folders)
    return tree


def _complete_keys(
    tree: DictConfig, overrides: Sequence[Assignment], in_full: InFull, folders: Sequence[Path]
) -> Iterator[Assignment]:
    keys = [assignment.key for assignment in overrides]
    for assignment in overrides:
        with explained(tree, f"override {assignment.text!r}: ", folders):
            yield dataclasses.replace(assignment, key=in_full(tree, assignment.key, keys))


def finish(tree: DictConfig) -> Any:
    """Return the tree as its dataclass, interpolations resolved and every value checked.

    Raises:
        ConfigError: a value is missing, or fails the check of its config's `__post_init__`.
    """
    with explained(tree, ""):
        try:
            config = OmegaConf.to_object(tree)
            _refuse_other_elements(config)
            return config
        # First, because some of OmegaConf's errors are ValueErrors too, and name their field.
        except OmegaConfBaseException:
            raise
        except (EchoxError, ValueError, TypeError) as error:
            path = _path_of_fault(tree)
            raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _refuse_other_elements(config: Any) -> None:
    """Check that lists of texts hold texts, which OmegaConf does not for a list inside a list.

    Raises:
        ConfigError: an element is something else.
    """
    config_type: type = type(config)  # `type[Any]` is not hashable for mypy
    for name, hint in _hints_of(config_type).items():
        value = getattr(config, name)
        if is_dataclass(value):
            _refuse_other_elements(value)
        elif hint == list[str] and (
            others := [each for each in value if not isinstance(each, str)]
        ):
            raise ConfigError(f"{name} takes a list of texts, {name}=[a,b], and has {others[0]!r}")


@functools.cache
def _hints_of(config_type: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; none of what is no dataclass."""
    return typing.get_type_hints(config_type) if is_dataclass(config_type) else {}


def _path_of_fault(tree: DictConfig) -> str:
    """Return the dotted key of the innermost config that refuses its own values."""
    # An error of `__post_init__` does not say where it was raised, so each node is tried again.
    for key, node in nodes(tree):
        try:
            OmegaConf.to_object(node)
        except (EchoxError, ValueError, TypeError):
            return ".".join(filter(None, (key, _path_of_fault(node))))
    return ""


def _compose_yaml(schema: type, yaml_name: str | None, folders: Sequence[Path]) -> DictConfig:
    # The schema first, so that its types check what the file sets.
    defaults = [_SCHEMA, *([yaml_name] if yaml_name else []), "_self_"]
    ConfigStore.instance().store(name=_SCHEMA, node=schema)
    ConfigStore.instance().store(name=_PRIMARY, node={"defaults": defaults})
    place = f"{yaml_name}.yaml: " if yaml_name else ""
    with explained(OmegaConf.structured(schema), place, folders):
        if not yaml_name:
            return _hydra_compose(_PRIMARY, [], folders)
        with _shadows(without_overridden(yaml_name, folders)) as first:
            return _hydra_compose(_PRIMARY, [], [*first, *folders])


@contextlib.contextmanager
def _shadows(texts: Mapping[str, str]) -> Iterator[list[Path]]:
    """Write config files into a folder that is to be searched first; no file, no folder."""
    if not texts:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="echox-recipe-") as folder:
        for name, text in texts.items():
            Path(folder, f"{name}.yaml").write_text(text, "utf-8")
        yield [Path(folder)]


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
        # First, because some of these are ValueErrors too, and `explained` knows more of them.
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            raise
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
    value = assignment.literal if holds_text(hint) else assignment.value
    kind = kind_of(hint)
    if kind and isinstance(value, str):
        check_part_name(kind, value, folders)
        # Replaced and not merged: fields of the former part may not exist in the new one.
        # The part may be an element of a mapping, such as a metric of a task.
        with _open_mapping(parent):
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


def _fill_path(tree: DictConfig, path: str) -> Any:
    """Return the node at a dotted path; a config on the way that is null gets its defaults."""
    node: Any = tree
    walked = ""
    for key in filter(None, path.split(".")):
        walked = f"{walked}.{key}" if walked else key
        if not isinstance(node, DictConfig):
            return None
        # A stage that the recipe left out can so be set by its fields alone.
        if node.get(key) is None and (config_type := config_type_of(type_at(tree, walked))):
            with _open_mapping(node):
                node[key] = OmegaConf.structured(config_type)
        node = node.get(key)
    return node


def part(kind: str, name: str, folders: Sequence[Path] = ()) -> DictConfig:
    """Return the typed config of a preset or of a registered name.

    Args:
        kind: one of `registry.KINDS`.
        name: of the preset or the part.
        folders: of the presets of each kind.

    Raises:
        ConfigError: there is none, or the preset does not fit its part; the message lists those
            that exist, and the plugins that failed to load.
    """
    check_part_name(kind, name, folders)
    with explained(OmegaConf.create(), f"{kind} {name!r}: ", folders):
        return _compose_part(kind, name, folders)


def _compose_part(kind: str, name: str, folders: Sequence[Path]) -> DictConfig:
    check_files(f"{kind}/{name}", folders)
    return _hydra_compose(None, [f"+{kind}={name}"], folders)[kind]
