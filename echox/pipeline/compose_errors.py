"""Errors of Hydra, OmegaConf and the YAML reader as one sentence each, with near matches."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
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
from echox.pipeline.config_tree import field_paths, kind_at, options, type_at, type_name
from echox.pipeline.plugins import REGISTRIES


@contextlib.contextmanager
def explained(tree: DictConfig, where: str, folders: Sequence[Path] = ()) -> Iterator[None]:
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
    if kind := _kind_of_misplaced_name(reason):
        return (
            f"{key} holds the fields of a {kind}, and its name stands in the defaults list: "
            f"'- {kind}@{key}: NAME'"
        )
    hint = type_at(tree, key)
    if hint is None:
        return f"{key}: {reason}"
    return f"{key} takes {type_name(hint)}, not {_value_text(fault.value)}"


def _kind_of_misplaced_name(reason: str) -> str | None:
    """Return the kind of part whose name a file has where its fields belong, or None."""
    match = re.match(r"Invalid type assigned: str is not a subclass of (\w+)", reason)
    owner = match[1] if match else None
    for kind, registry in REGISTRIES.items():
        if owner in (
            registry.config_base.__name__,
            *(e.config_type.__name__ for e in registry.values()),
        ):
            return kind
    return None


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


def check_part_name(kind: str, name: str, folders: Sequence[Path]) -> None:
    """Check that a preset or a part of this name exists.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    names = options(kind, folders)
    if name not in names:
        raise _unknown_part(kind, name, names)


def _unknown_part(kind: str, name: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"no {kind} named {name!r}{near(name, names)}; "
        f"known: {', '.join(names) or 'none'}{failures()}"
    )
