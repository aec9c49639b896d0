"""Subjects of commands, `echox-prepare SUBJECT` and `echox-evaluate SUBJECT`, installed ones too.

A package adds one by an entry point in the group `echox.subjects`. Its name is the command and the
subject, its value a `Subject`:

    [project.entry-points."echox.subjects"]
    "prepare.frequencies" = "my_lab.frequencies:subject"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Container
from dataclasses import dataclass, is_dataclass
from typing import Any

from echox.core.errors import PluginError
from echox.core.registry import SUBJECT_ENTRY_POINTS, add_failure
from echox.pipeline.plugins import reason_of


@dataclass(frozen=True, slots=True)
class Subject:
    """What a command does for one of its subjects."""

    config_type: type
    """Dataclass of the settings; its docstring and its fields' are the help."""
    function: Callable[[Any], object]
    """Does the work, given the config; an integer that it returns is the exit code."""
    positional: str | None = None
    """Field that words without `=` belong to."""


def installed_subjects(command: str, taken: Container[str]) -> dict[str, Subject]:
    """Return the subjects that installed packages add to a command.

    One that fails to load is recorded in `registry.FAILURES` and left out.

    Args:
        command: "prepare" or "evaluate".
        taken: names of the command's own subjects, which no package can replace.
    """
    subjects: dict[str, Subject] = {}
    # Sorted, so that of two subjects of one name the same one is refused on every machine.
    for point in sorted(importlib.metadata.entry_points(group=SUBJECT_ENTRY_POINTS)):
        owner, _, name = point.name.partition(".")
        if owner != command:
            continue
        try:
            subjects[name] = _loaded(point, name in taken or name in subjects)
        # A package may fail in any way, and must not end other commands.
        except (Exception, SystemExit) as error:
            add_failure(f"entry point {point.name} = {point.value}", reason_of(error))
    return subjects


def _loaded(point: importlib.metadata.EntryPoint, is_taken: bool) -> Subject:
    if is_taken:
        raise PluginError(f"{point.name} is there already; choose another name")
    subject = point.load()
    if not isinstance(subject, Subject) or not is_dataclass(subject.config_type):
        raise PluginError(
            f"{point.value} must be a Subject whose config_type is a dataclass, not {subject!r}"
        )
    return subject
