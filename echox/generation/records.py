"""The record of a generation run: one line of JSON per row, kept through interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from echox.data.writing import appearing
from echox.errors import ConfigError

ANSWERS, ORIGIN = "answers.jsonl", "generation.json"


class Records:
    """`answers.jsonl` in a folder, and beside it `generation.json`, which says what the answers come from."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, overwrite: bool) -> None:
        """
        Raises:
            ConfigError: the folder holds answers of another origin, and `overwrite` is False.
        """
        self.folder = folder
        self.path = folder / ANSWERS
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            self._refuse_changed(origin)
        self.kept = {record["id"]: record for record in self._read() if self._is_whole(record)}
        with appearing(folder / ORIGIN) as unfinished:
            unfinished.write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
        # Errors and half a line are forgotten before anything is added: those rows are tried again.
        self.rewrite(self.kept.values())

    def _refuse_changed(self, origin: Mapping[str, Any]) -> None:
        try:
            before = json.loads((self.folder / ORIGIN).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            before = {}
        changed = [name for name in origin if before.get(name) != origin[name]]
        if changed:
            raise ConfigError(f"{self.path} was made with another {' and '.join(changed)}; choose another out_dir, or set overwrite=true to make it anew")

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text("utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        audio = record["audio"]
        return record["error"] is None and (audio is None or (self.folder / audio).is_file())

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append lines and wait until they are on the disk."""
        with self.path.open("a", encoding="utf-8") as out:
            for record in records:
                out.write(_line(record))
            out.flush()
            os.fsync(out.fileno())

    def in_order(self, row_ids: Iterable[str]) -> list[dict[str, Any]]:
        """All records, rewritten in the order of the manifest."""
        place = {row_id: number for number, row_id in enumerate(row_ids)}
        records = sorted(self._read(), key=lambda record: place.get(record["id"], len(place)))
        self.rewrite(records)
        return records

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Put these lines in the place of those there are."""
        with appearing(self.path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            out.writelines(_line(record) for record in records)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
