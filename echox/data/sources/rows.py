"""Rows that exist already, as JSONL or as a JSON list.

They are the published conversations, manifests of echox, and flat rows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

from echox.data.lines import read_records
from echox.data.row_reader import BrokenRow, json_type, stated_id
from echox.data.sources.base import Columns, Source, SourceFault, SourceRow

# A path as a row writes it -> an absolute one; None where there is no such file.
Resolve = Callable[[str], str | None]


class RowsSource(Source):
    """Conversations, which stay as they are, and flat rows, which become a clip and its words.

    A flat row is as NeMo writes it: {"audio_filepath": ..., "text": ...}.
    """

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        root = self.root

        def resolve(path: str) -> str:
            return os.path.join(root, path)

        for number, record in read_records(self.path):
            yield entry_of(self, f"{self.prefix}-{number}", record, resolve)


def entry_of(source: Source, name: str, record: Any, resolve: Resolve) -> SourceRow | SourceFault:
    """Turn a JSON value into an entry.

    Args:
        source: source of the row, whose config names columns.
        name: name of the row, unless it states an id.
        record: JSON value, or the `BrokenRow` that stands for one.
        resolve: a path as the row writes it -> an absolute one; None where there is no such file.
    """
    if isinstance(record, BrokenRow):
        return SourceFault(name, str(record))
    if not isinstance(record, dict):
        return SourceFault(name, f"a row is a JSON object, not a {json_type(record)}")
    # The row's own id, where it has one, names its faults too.
    name = stated_id(record) or name
    if "conversations" in record:
        return _conversation(name, record, resolve)
    columns = Columns(record, source.config.columns)
    audio = columns.get(record, "audio")
    if not isinstance(audio, str):
        reason = (
            "the row has neither 'conversations' nor a column that is known to name audio; "
            "set columns.audio=NAME"
        )
        return SourceFault(name, reason)
    if (path := resolve(audio)) is None:
        return SourceFault(name, f"audio {audio} is not in the archive")
    text = columns.get(record, "text")
    return source.clip_row(
        name,
        path,
        text if isinstance(text, str) else "",
        seconds=columns.get(record, "seconds"),
        units=columns.get(record, "units"),
        extra={**columns.others(record), "speaker": columns.get(record, "speaker")},
    )


def _conversation(name: str, record: dict[str, Any], resolve: Resolve) -> SourceRow | SourceFault:
    # The caller's record stays as it is.
    record = copy.deepcopy(record)
    items = record["conversations"]
    # Rows that are malformed pass through, and the manifest's reader names what is wrong.
    for item in items if isinstance(items, list) else []:
        audio = item.get("audio") if isinstance(item, dict) else None
        if isinstance(audio, str) and audio:
            item["audio"] = resolve(audio)
            if item["audio"] is None:
                return SourceFault(name, f"audio {audio} is not in the archive")
    return SourceRow(name, record)
