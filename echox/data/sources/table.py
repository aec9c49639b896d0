"""Tables: TSV and CSV with a header, and fairseq's TSV whose first line is a folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from echox.core.errors import ManifestError
from echox.data.row_reader import ROW_BYTES
from echox.data.sources.base import Columns, Source, SourceFault, SourceRow

# fairseq keeps the words of a TSV's lines in files of as many lines beside it: words, or letters
# with | between words.
_WORDS, _LETTERS, _UNITS = ".wrd", ".ltr", ".km"
# The character that bytes become which are not UTF-8.
_REPLACEMENT = "\ufffd"


class TableSource(Source):
    """Rows of a TSV or CSV file."""

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        # Bad bytes spoil their own row alone: they become characters that no row keeps.
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline(ROW_BYTES)
            file.seek(0)
            yield from self._fairseq(file) if self._is_fairseq(first) else self._with_header(file)

    def _is_fairseq(self, first: str) -> bool:
        is_one_field = "\t" not in first.rstrip("\n")
        return self.path.suffix == ".tsv" and is_one_field and Path(first.strip()).is_absolute()

    def _with_header(self, file: TextIO) -> Iterator[SourceRow | SourceFault]:
        is_tsv = self.path.suffix == ".tsv"
        reader = csv.DictReader(
            self._lines(file),
            delimiter="\t" if is_tsv else ",",
            # In a TSV a quotation mark is text: it has no way to quote.
            quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        )
        columns = self.columns_of(self._names_of(reader))
        for number, row in enumerate(self._rows_of(reader), start=1):
            name = f"{self.prefix}-{number}"
            # DictReader files surplus fields under None, and gives missing ones the value None.
            if None in row or None in row.values():
                surplus = "more" if None in row else "fewer"
                reason = f"line {reader.line_num} has {surplus} fields than the header"
                yield SourceFault(name, reason)
            elif any(_REPLACEMENT in value for value in row.values()):
                yield SourceFault(name, f"line {reader.line_num} is not UTF-8 text")
            else:
                yield self._row(name, row, columns)

    def _names_of(self, reader: csv.DictReader) -> list[str]:
        with self._named_faults(reader):
            return list(reader.fieldnames or [])

    def _rows_of(self, reader: csv.DictReader) -> Iterator[dict[str, str]]:
        with self._named_faults(reader):
            yield from reader

    @contextmanager
    def _named_faults(self, reader: csv.DictReader) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise ManifestError(
                f"{self.path}, line {reader.reader.line_num}: {error}; "
                "a quotation mark that nothing closes takes in all that follows"
            ) from error

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(ROW_BYTES):
            if len(line) == ROW_BYTES:
                raise ManifestError(
                    f"{self.path} has a line of more than {ROW_BYTES >> 20} MiB, which is no row "
                    "of a table; copy it again"
                )
            yield line

    def _row(self, name: str, row: dict[str, str], columns: Columns) -> SourceRow | SourceFault:
        audio = columns.get(row, "audio")
        if not audio:
            return SourceFault(name, "names no audio")
        stated = columns.get(row, "seconds")
        try:
            seconds = float(stated or 0)
        except ValueError:
            reason = f"{columns.names['seconds']} is {stated!r}; it must be seconds"
            return SourceFault(name, reason)
        return self.clip_row(
            columns.get(row, "id") or name,
            str(self.root / audio),
            columns.get(row, "text") or "",
            seconds=seconds,
            units=columns.get(row, "units"),
            extra={"speaker": columns.get(row, "speaker")},
        )

    def _fairseq(self, file: TextIO) -> Iterator[SourceRow | SourceFault]:
        # The first line is no clip, whichever folder it names.
        folder = file.readline(ROW_BYTES).strip()
        root = self.root if self.config.audio_root else Path(folder)
        beside = [self._lines_beside(ending) for ending in (_WORDS, _LETTERS, _UNITS)]
        # One line too many of any of the files would shift all words after it, and is named where
        # it shows: at the end.
        for number, (line, *labels) in enumerate(zip_longest(self._lines(file), *beside), start=1):
            name = f"{self.prefix}-{number}"
            if line is None:
                reason = (
                    "has words or units, but no clip; "
                    "the files beside the table have more lines than it"
                )
                yield SourceFault(name, reason)
                return
            yield self._fairseq_row(name, root, line, labels)

    def _fairseq_row(
        self, name: str, root: Path, line: str, labels: list[str | None]
    ) -> SourceRow | SourceFault:
        words, letters, units = labels
        clip, _, samples = line.rstrip("\r\n").partition("\t")
        text = words or (letters or "").replace(" ", "").replace("|", " ")
        if _REPLACEMENT in f"{clip}{text}{units}":
            return SourceFault(name, "is not UTF-8 text, or its words or units are not")
        if not samples:
            return SourceFault(name, "has no clip and its samples")
        return self.clip_row(name, str(root / clip), text, units=(units or "").strip())

    def _lines_beside(self, ending: str) -> Iterator[str]:
        path = self.path.with_suffix(ending)
        if path.is_file():
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                yield from self._lines(file)
