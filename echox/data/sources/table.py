"""Tables: TSV and CSV with a header, and fairseq's TSV whose first line is a folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from echox.data.sources.base import Columns, Fault, Found, Source
from echox.errors import ManifestError

# fairseq keeps the words of a TSV's lines in files of as many lines beside it: words, or letters with | between words.
_WORDS, _LETTERS, _UNITS = ".wrd", ".ltr", ".km"


class TableSource(Source):
    """Rows of a table."""

    def entries(self) -> Iterator[Found | Fault]:
        # Bad bytes spoil their own row alone: they become characters that no row keeps.
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline()
            file.seek(0)
            yield from self._fairseq(file) if self._is_fairseq(first) else self._with_header(file)

    def _is_fairseq(self, first: str) -> bool:
        return self.path.suffix == ".tsv" and "\t" not in first.rstrip("\n") and Path(first.strip()).is_absolute()

    def _with_header(self, file) -> Iterator[Found | Fault]:
        tabs = self.path.suffix == ".tsv"
        reader = csv.DictReader(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        columns = Columns(list(reader.fieldnames or []), self.config.columns)
        if columns.names["audio"] is None:
            raise ManifestError(
                f"{self.path} has the columns {', '.join(reader.fieldnames or []) or 'none'}, none of which is known to name audio; set columns.audio=NAME"
            )
        if missing := [f"{name} (columns.{what})" for what, name in self.config.columns.items() if name not in reader.fieldnames]:
            raise ManifestError(f"{self.path} has the columns {', '.join(reader.fieldnames)}, and not {', '.join(missing)}")
        for number, row in enumerate(self._lines_of(reader), start=1):
            name = f"{self.prefix}-{number}"
            if None in row or None in row.values():
                yield Fault(name, f"line {reader.line_num} has {'more' if None in row else 'fewer'} fields than the header")
                continue
            if any("\ufffd" in value for value in row.values()):
                yield Fault(name, f"line {reader.line_num} is not UTF-8 text")
                continue
            yield self._row(name, row, columns)

    def _lines_of(self, reader: csv.DictReader) -> Iterator[dict[str, str]]:
        try:
            yield from reader
        except csv.Error as error:
            raise ManifestError(f"{self.path}, line {reader.line_num}: {error}; a quotation mark that nothing closes takes in all that follows") from error

    def _row(self, name: str, row: dict[str, str], columns: Columns) -> Found | Fault:
        audio = columns.get(row, "audio")
        if not audio:
            return Fault(name, "names no audio")
        try:
            seconds = float(columns.get(row, "seconds") or 0)
        except ValueError:
            return Fault(name, f"{columns.names['seconds']} is {columns.get(row, 'seconds')!r}; it must be seconds")
        return self.spoken(
            columns.get(row, "id") or name, str(self.root / audio), columns.get(row, "text") or "",
            seconds=seconds, units=columns.get(row, "units"), speaker=columns.get(row, "speaker"),
        )  # fmt: skip

    @property
    def root(self) -> Path:
        """The folder that paths are relative to."""
        return Path(self.config.audio_root).absolute() if self.config.audio_root else self.path.parent

    def _fairseq(self, file) -> Iterator[Found | Fault]:
        # The first line is no clip, whichever folder it names.
        named = file.readline().strip()
        root = self.root if self.config.audio_root else Path(named)
        beside = [self._lines(ending) for ending in (_WORDS, _LETTERS, _UNITS)]
        # One line too many of any of the files would shift all words after it, and is named where it shows: at the end.
        for number, (line, words, letters, units) in enumerate(zip_longest(file, *beside), start=1):
            name = f"{self.prefix}-{number}"
            if line is None:
                yield Fault(name, "has words or units, but no clip; the files beside the table have more lines than it")
                return
            clip, _, samples = line.rstrip("\r\n").partition("\t")
            text = words or (letters or "").replace(" ", "").replace("|", " ")
            if "\ufffd" in f"{clip}{text}{units}":
                yield Fault(name, "is not UTF-8 text, or its words or units are not")
                continue
            yield self.spoken(name, str(root / clip), text, units=(units or "").strip()) if samples else Fault(name, "has no clip and its samples")

    def _lines(self, ending: str) -> Iterator[str]:
        path = self.path.with_suffix(ending)
        if path.is_file():
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                yield from file
