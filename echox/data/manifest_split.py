"""`echox-prepare split`: a manifest in three, so that neither a speaker nor a text of one part is in another.

Speakers are drawn, in an order that seed and name decide, first for the test, then for validation; the rest are for training. A text that
is said in several parts stays in the most held out of them, and the rows that say it elsewhere are left out and counted: so the held-out
parts keep their size, and training loses what would give them away.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from echox.data.lines import in_order, reading
from echox.data.row_measures import Records, batches_of, speaker_of
from echox.data.row_reader import Broken, Headers, RowReader, parsed
from echox.data.rows import Role, Row, spoken_pairs
from echox.data.text import words_of
from echox.data.writing import appearing
from echox.errors import ConfigError, ManifestError
from echox.progress import Bar

PARTS = ("train", "valid", "test")  # from the least to the most held out
_LEFT_OUT = 255


class By(Enum):
    """What may not be in two parts."""

    speaker = "speaker"
    text = "text"


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Split a manifest for training, validation and test by speaker and text; writes NAME.train.jsonl, NAME.valid.jsonl, NAME.test.jsonl."""

    path: str = ""
    """The manifest to split."""
    valid: float = 0.01
    """Share of the rows for validation, about."""
    test: float = 0.01
    """Share of the rows for the test, about."""
    by: list[By] = field(default_factory=lambda: [By.speaker, By.text])
    """What may not be in two parts: speaker, text, or both. Rows without a speaker are drawn by their text."""
    seed: int = 1
    """Decides which speakers and texts go where; the same seed and manifest give the same parts."""
    allow_outside: bool = False
    """Accept audio outside the manifest's folder."""
    processes: int = 1
    """Processes that read rows."""
    overwrite: bool = False
    """Write over parts that are there already."""

    def __post_init__(self) -> None:
        if not (self.valid > 0 and self.test > 0 and self.valid + self.test < 1):
            raise ConfigError(f"valid is {self.valid} and test {self.test}; both must be above 0, and together below 1")
        if not self.by:
            raise ConfigError("by is empty; give [speaker], [text] or [speaker,text]")


@dataclass(frozen=True, slots=True)
class Split:
    """What became of the rows."""

    paths: dict[str, Path]
    rows: dict[str, int]
    seconds: dict[str, float]
    speakers: dict[str, int]
    texts: dict[str, int]
    left_out: int  # rows whose text is in a part more held out
    broken: int
    shared: dict[str, int]  # speakers and texts that two parts share: none, or the split is wrong

    def lines(self) -> list[str]:
        """For people."""
        parts = [
            f"{self.paths[part]}: {self.rows[part]:,} rows, {self.seconds[part] / 3600:.2f} h, {self.speakers[part]:,} speakers, {self.texts[part]:,} texts"
            for part in PARTS
        ]
        checks = ", ".join(f"{count} {name}" for name, count in self.shared.items())
        return [*parts, f"left out: {self.left_out:,} rows for their text, {self.broken:,} broken", f"in two parts: {checks}"]


@dataclass(slots=True)
class _Rows:
    """What decides, a few bytes a row."""

    lines: array = field(default_factory=lambda: array("Q"))
    groups: array = field(default_factory=lambda: array("Q"))  # hash of what is drawn: the speaker, or else the text, or else the id
    speakers: array = field(default_factory=lambda: array("Q"))  # 0 without
    seconds: array = field(default_factory=lambda: array("f"))
    texts: array = field(default_factory=lambda: array("Q"))
    text_rows: array = field(default_factory=lambda: array("Q"))  # the row of each text
    broken: int = 0


def split_manifest(config: SplitConfig) -> None:
    """Split and print what became of the rows.

    Raises:
        ConfigError: no manifest, or parts that are there already. ManifestError: it is missing, unreadable, or cannot be split like that.
    """
    print("\n".join(split_rows(config).lines()))


def split_rows(config: SplitConfig, *, progress: bool = True) -> Split:
    """Split; the parts appear only when all are complete, and NAME.split.json says how."""
    if not config.path:
        raise ConfigError("no manifest was named; give path=FILE.jsonl")
    path = Path(config.path)
    stem = path.name.removesuffix(path.suffix)
    paths = {part: path.with_name(f"{stem}.{part}.jsonl") for part in PARTS}
    there = [str(target) for target in paths.values() if target.exists()]
    if there and not config.overwrite:
        raise ConfigError(f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already; set overwrite=true to write anew")
    rows = _read(path, config, progress)
    groups, speakers, texts, text_rows = map(np.array, (rows.groups, rows.speakers, rows.texts, rows.text_rows))
    text_rows = text_rows.astype(np.int64)
    parts = _draw(groups, config, path)
    if By.text in config.by:
        parts = _without_shared_texts(parts, texts, text_rows)
    split = _counted(paths, parts, rows, speakers, texts, text_rows, config)
    empty = [part for part in PARTS if not split.rows[part]]
    if empty:
        raise ManifestError(
            f"no row of {path} is left for {' and '.join(empty)}: {split.left_out} rows say a text of a part more held out; "
            "set by=[speaker] or by=[text], or smaller shares for valid and test"
        )
    _write(path, rows.lines, parts, split)
    return split


def _read(path: Path, config: SplitConfig, progress: bool) -> _Rows:
    rows = _Rows()
    with reading(path):
        size = path.stat().st_size
    read = functools.partial(_about_rows, path, config.allow_outside, By.speaker in config.by)
    with Bar(f"reading {path.name}", size, unit="B", in_bytes=True, shows=progress) as bar:
        for found, broken, read_bytes in in_order(read, batches_of(path), config.processes):
            for line, group, speaker, seconds, texts in found:
                rows.texts.extend(texts)
                rows.text_rows.extend([len(rows.lines)] * len(texts))
                for column, value in ((rows.lines, line), (rows.groups, group), (rows.speakers, speaker), (rows.seconds, seconds)):
                    column.append(value)
            rows.broken += broken
            bar.update(read_bytes)
    return rows


def _about_rows(path: Path, allow_outside: bool, by_speaker: bool, batch: tuple[Records, int]) -> tuple[list[tuple[Any, ...]], int, int]:
    """Line, group, speaker, seconds and texts of each row, how many are broken, and bytes read; for a process of its own."""
    reader = RowReader(path, allow_outside, Headers.UNSTATED)
    found, broken = [], 0
    for line, raw in batch[0]:
        try:
            read = reader.read(line, parsed(raw) if isinstance(raw, bytes) else raw)
        except Broken:
            broken += 1
            continue
        said, speaker = texts_of(read.row), speaker_of(read.row)
        group = f"speaker {speaker}" if speaker is not None and by_speaker else f"text {said[0]}" if said else f"id {read.row.id}"
        seconds = math.fsum(length for length in read.seconds if not math.isnan(length))
        found.append((line, _hash(group), 0 if speaker is None else _hash(speaker), seconds, [_hash(text) for text in said]))
    return found, broken, batch[1]


def texts_of(row: Row) -> list[str]:
    """What a row would give away: the words of its clips, or of a row without any, the user's; in lower case, without punctuation."""
    said = [text for _, text in spoken_pairs(row)] or [item.text for item in row.turns if item.role is Role.USER and item.text]
    return list(dict.fromkeys(plain for text in said if (plain := " ".join(words_of(text)))))


def _hash(text: str, seed: int | str = "") -> int:
    # 0 means none.
    return int.from_bytes(hashlib.blake2b(f"{seed} {text}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def _draw(groups: np.ndarray, config: SplitConfig, path: Path) -> np.ndarray:
    """Group of each row [N] -> its part [N], as a number in PARTS."""
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(PARTS):
        raise ManifestError(f"{path} has {len(names)} groups of rows that must stay together; {len(PARTS)} parts need as many: record more speakers, or set by=[text]")
    order = sorted(range(len(names)), key=lambda number: _hash(str(names[number]), config.seed))
    part_of = np.zeros(len(names), dtype=np.uint8)
    for part, share in ((2, config.test), (1, config.valid)):
        _fill(part_of, part, share * len(groups), order, sizes)
    return part_of[numbers]


def _fill(part_of: np.ndarray, part: int, wanted: float, order: list[int], sizes: np.ndarray) -> None:
    """Take groups in their order until there are so many rows; one that would exceed them by half is passed over."""
    taken = 0
    for number in order:
        if part_of[number] == 0 and taken < wanted and taken + sizes[number] <= 1.5 * wanted:
            part_of[number] = part
            taken += int(sizes[number])
    left = [number for number in order if part_of[number] == 0]
    if not taken and left:
        part_of[min(left, key=lambda number: sizes[number])] = part


def _without_shared_texts(parts: np.ndarray, texts: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
    """Rows whose text is in a part more held out leave their own."""
    _, numbers = np.unique(texts, return_inverse=True)
    owner = np.zeros(numbers.max(initial=-1) + 1, dtype=np.uint8)
    np.maximum.at(owner, numbers, parts[text_rows])
    leaving = text_rows[owner[numbers] > parts[text_rows]]
    parts = parts.copy()
    parts[leaving] = _LEFT_OUT
    return parts


def _counted(
    paths: dict[str, Path], parts: np.ndarray, rows: _Rows, speakers: np.ndarray, texts: np.ndarray, text_rows: np.ndarray, config: SplitConfig
) -> Split:
    seconds = np.array(rows.seconds)
    text_parts = parts[text_rows]
    of_part = {part: (np.unique(speakers[(parts == number) & (speakers > 0)]), np.unique(texts[text_parts == number])) for number, part in enumerate(PARTS)}
    shared = {}
    for place, by in enumerate((By.speaker, By.text)):
        # Of a part each is there once, so what is there twice is shared.
        joined = np.concatenate([of_part[part][place] for part in PARTS])
        shared[f"{by.value}s" + ("" if by in config.by else " (not asked for)")] = len(joined) - len(np.unique(joined))
    return Split(
        paths=paths,
        rows={part: int((parts == number).sum()) for number, part in enumerate(PARTS)},
        seconds={part: float(seconds[parts == number].sum(dtype=np.float64)) for number, part in enumerate(PARTS)},
        speakers={part: len(of_part[part][0]) for part in PARTS},
        texts={part: len(of_part[part][1]) for part in PARTS},
        left_out=int((parts == _LEFT_OUT).sum()),
        broken=rows.broken,
        shared=shared,
    )


def _write(path: Path, lines: array, parts: np.ndarray, split: Split) -> None:
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(stack.enter_context(appearing(split.paths[part])).open("wb")) for part in PARTS]
            number = 0
            for batch, _ in batches_of(path):
                for line, raw in batch:
                    if number < len(lines) and lines[number] == line:
                        if parts[number] != _LEFT_OUT:
                            content = raw.rstrip(b"\r\n") if isinstance(raw, bytes) else json.dumps(raw, ensure_ascii=False).encode()
                            files[parts[number]].write(content + b"\n")
                        number += 1
            # Before the first of them appears, for this is where a disk is full.
            for file in files:
                file.flush()
        about = {"manifest": path.name, **{name: getattr(split, name) for name in ("rows", "seconds", "speakers", "texts", "left_out", "broken", "shared")}}
        with appearing(path.with_name(f"{path.name.removesuffix(path.suffix)}.split.json")) as unfinished:
            unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"the parts of {path} could not be written: {error.strerror or error}; free some space or mend the folder") from error
