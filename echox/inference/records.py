"""The records of a generation run: one line of JSON per row, kept through interruptions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from echox.core.errors import ConfigError
from echox.core.files import append_text, atomic_write, make_folder
from echox.data.lines import read_records

log = logging.getLogger(__name__)

ANSWERS, ORIGIN = "answers.jsonl", "generation.json"

Record = Mapping[str, Any]


class Records:
    """`answers.jsonl` in a folder, and beside it `generation.json`, which names their origin."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, overwrite: bool) -> None:
        """Open a folder and keep its complete records.

        Args:
            folder: created if needed.
            origin: what the answers depend on, such as the checkpoint and the manifest.
            overwrite: drop the records that there are.

        Raises:
            ConfigError: the folder holds answers of another origin, and `overwrite` is False.
        """
        self.folder = folder
        self.path = folder / ANSWERS
        make_folder(folder)
        if overwrite:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            self._refuse_other_origin(origin)
        self.kept = {record["id"]: record for record in self._read() if self._is_complete(record)}
        with atomic_write(folder / ORIGIN) as unfinished:
            unfinished.write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
        # Errors and half a line are dropped before anything is added: those rows are tried again.
        self.rewrite(self.kept.values())

    def _refuse_other_origin(self, origin: Mapping[str, Any]) -> None:
        try:
            before = json.loads((self.folder / ORIGIN).read_text("utf-8"))
        # Answers without a readable origin may be of anything, so they count as another's.
        except (FileNotFoundError, ValueError, RecursionError):
            before = {}
        before = before if isinstance(before, dict) else {}
        changed = [name for name in origin if before.get(name) != origin[name]]
        if changed:
            raise ConfigError(
                f"{self.path} was made with another {' and '.join(changed)}; choose another "
                "out_dir, or set overwrite=true to make it anew"
            )

    def _read(self) -> list[dict[str, Any]]:
        """The records that are whole; of others, such as half a line, the rows are tried again."""
        if not self.path.exists():
            return []
        lines = [record for _, record in read_records(self.path)]
        records = [record for record in lines if _is_record(record)]
        if damaged := len(lines) - len(records):
            log.warning("damaged lines left out of %s: %d", self.path, damaged)
        return records

    def _is_complete(self, record: Record) -> bool:
        # A lost file is synthesized again.
        audio = record["audio"]
        return record["error"] is None and (audio is None or (self.folder / audio).is_file())

    def add(self, records: Iterable[Record]) -> None:
        """Append records and wait until they are on the disk.

        Raises:
            DiskError: the disk is full or cannot be written; none of them is appended.
        """
        # An answer may have taken minutes: it must survive a crash of the machine.
        append_text(self.path, "".join(map(_line, records)), is_synced=True)

    def in_order(self, row_ids: Iterable[str]) -> list[dict[str, Any]]:
        """All records, after rewriting them in the order of the manifest."""
        place = {row_id: number for number, row_id in enumerate(row_ids)}
        # Records of no row of the manifest go last.
        records = sorted(self._read(), key=lambda record: place.get(record["id"], len(place)))
        self.rewrite(records)
        return records

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace all records, atomically."""
        with atomic_write(self.path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            out.writelines(_line(record) for record in records)


def _is_record(record: Any) -> bool:
    """Whether a line of the file has what every record has."""
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return False
    optional = (record.get(name, ...) for name in ("audio", "error"))
    return all(value is None or isinstance(value, str) for value in optional)


def _line(record: Record) -> str:
    # People read this file, so letters stay letters.
    return json.dumps(record, ensure_ascii=False) + "\n"
