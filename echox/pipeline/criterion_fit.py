"""Whether a criterion can read what a task returns, told by the types that both are annotated with.

Nothing is built, so that a run can be refused before any data is prepared.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from echox.criteria.base import CRITERIA


def criterion_misfit_reason(task_type: type, criterion_type: type) -> str | None:
    """Return why a criterion cannot read a task's outputs, as a sentence; None where it can.

    A criterion fits if what `Task.forward` returns has every field of the type that
    `Criterion.forward` reads. Of a part without these annotations nothing is known, and it passes.

    Args:
        task_type: class of a registered task.
        criterion_type: class of a registered criterion.
    """
    lacking = _lacking_fields(task_type, criterion_type)
    if not lacking:
        return None
    fitting = [
        name
        for name, entry in sorted(CRITERIA.items())
        if not _lacking_fields(task_type, entry.implementation)
    ]
    return (
        f"{criterion_type.__name__} reads {', '.join(lacking)}, which {task_type.__name__} does "
        f"not return; criteria that fit it are {', '.join(fitting) or 'none'}"
    )


def _lacking_fields(task_type: type, criterion_type: type) -> list[str]:
    """List the fields that a criterion reads and a task's outputs do not have."""
    returned = _options(task_type, "return")
    read = _options(criterion_type, "outputs")
    # A criterion of several types fits if one of them does, for each type that may be returned.
    lacking = [min((_lacking(each, type_) for type_ in read), key=len) for each in returned if read]
    return max(lacking, key=len, default=[])


def _options(part: type, name: str) -> list[type]:
    """Return the dataclasses that an annotation of `forward` allows; none where any is unknown."""
    try:
        hint = typing.get_type_hints(getattr(part, "forward", None)).get(name)
    # Any exception: an annotation is code of a plugin, and may name what only type checkers import.
    except Exception:
        return []
    constraints = hint.__constraints__ if isinstance(hint, typing.TypeVar) else ()
    options: tuple[Any, ...] = constraints or typing.get_args(hint) or (hint,)
    return list(options) if all(map(_is_dataclass_type, options)) else []


def _is_dataclass_type(option: Any) -> bool:
    return isinstance(option, type) and dataclasses.is_dataclass(option)


def _lacking(returned: type, read: Any) -> list[str]:
    if issubclass(returned, read):
        return []
    # Fields and properties alike, which a criterion cannot tell apart.
    offered = {*(field.name for field in dataclasses.fields(typing.cast(Any, returned)))}
    offered.update(dir(returned))
    return [field.name for field in dataclasses.fields(read) if field.name not in offered]
