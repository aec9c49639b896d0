"""Rows that are there already, as JSONL or as a JSON list: the published conversations, manifests of echox, and flat rows."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from echox.data.lines import records_of
from echox.data.row_reader import Broken, id_of, json_type
from echox.data.sources.base import Columns, Fault, Found, Source

Resolve = Callable[[str], str | None]


class RowsSource(Source):
    """Conversations are taken as they are; a flat row ({"audio_filepath": ..., "text": ...}, as NeMo writes) is a clip and its words."""

    def entries(self) -> Iterator[Found | Fault]:
        root = Path(self.config.audio_root).absolute() if self.config.audio_root else self.path.parent
        for number, record in records_of(self.path):
            yield row_of(self, f"{self.prefix}-{number}", record, lambda named: os.path.join(root, named))


def row_of(source: Source, name: str, record: Any, resolve: Resolve) -> Found | Fault:
    """A JSON row as an entry.

    Args:
        resolve: a path as the row writes it -> an absolute one; None where there is no such file.
    """
    if isinstance(record, Broken):
        return Fault(name, str(record))
    if not isinstance(record, dict):
        return Fault(name, f"a row is a JSON object, not a {json_type(record)}")
    name = id_of(record) or name
    if "conversations" in record:
        return _conversation(name, record, resolve)
    columns = Columns(record, source.config.columns)
    audio = columns.get(record, "audio")
    if not isinstance(audio, str):
        return Fault(name, "the row has neither 'conversations' nor a column that is known to name audio; set columns.audio=NAME")
    if (path := resolve(audio)) is None:
        return Fault(name, f"audio {audio} is not in the archive")
    seconds, text = columns.get(record, "seconds"), columns.get(record, "text")
    return source.spoken(
        name, path, text if isinstance(text, str) else "", seconds=seconds if isinstance(seconds, (int, float)) else None,
        units=columns.get(record, "units"), speaker=columns.get(record, "speaker"), **columns.others(record),
    )  # fmt: skip


def _conversation(name: str, record: dict[str, Any], resolve: Resolve) -> Found | Fault:
    record = copy.deepcopy(record)
    items = record["conversations"]
    for item in items if isinstance(items, list) else []:
        named = item.get("audio") if isinstance(item, dict) else None
        if isinstance(named, str) and named:
            item["audio"] = resolve(named)
            if item["audio"] is None:
                return Fault(name, f"audio {named} is not in the archive")
    return Found(name, record)


