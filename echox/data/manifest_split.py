"""`echox-prepare split`: a manifest in three parts that share neither a speaker nor a text.

Rows that share a speaker or a text, directly or through other rows, form a group. Groups are drawn,
in an order that seed and name decide, first for the test, then for validation; the rest are for
training. Where nearly all rows are one group, because many speakers read the same texts, speakers
are drawn instead: a text that is then in several parts stays in the most held out of them, and the
rows with it in the other parts are left out and counted. So the held-out parts keep their size, and
training loses what would give them away.
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

import numpy as np

from echox.core.durations import duration_text
from echox.core.errors import ConfigError, ManifestError
from echox.core.files import atomic_write
from echox.core.progress import Bar
from echox.data.lines import map_in_order, open_manifest
from echox.data.row_batches import Records, line_of, read_batches, record_of
from echox.data.row_measures import speaker_of
from echox.data.row_reader import BrokenRow, Headers, ReadRow, RowReader
from echox.data.rows import Row, spoken_pairs
from echox.data.text import words_of

PARTS = ("train", "valid", "test")  # from the least to the most held out
_TRAIN, _VALID, _TEST = range(len(PARTS))
_LEFT_OUT = 255
# A group larger than what is left of a part's rows may exceed them by half.
_LARGEST_EXCESS = 1.5


class By(Enum):
    """What may not be in two parts."""

    speaker = "speaker"
    text = "text"


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Split a manifest for training, validation and test by speaker and text.

    Writes NAME.train.jsonl, NAME.valid.jsonl and NAME.test.jsonl.
    """

    path: str = ""
    """The manifest to split."""
    valid: float = 0.01
    """Share of the rows for validation, about."""
    test: float = 0.01
    """Share of the rows for the test, about."""
    by: list[By] = field(default_factory=lambda: [By.speaker, By.text])
    """What may not be in two parts: speaker, text, or both. Rows without a speaker are drawn by
    their text."""
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
            raise ConfigError(
                f"valid is {self.valid} and test {self.test}; "
                "both must be above 0, and together below 1"
            )
        if not self.by:
            raise ConfigError("by is empty; give [speaker], [text] or [speaker,text]")


@dataclass(frozen=True, slots=True)
class Split:
    """Paths and counts of the parts; mappings are by the parts' names."""

    paths: dict[str, Path]
    rows: dict[str, int]
    seconds: dict[str, float]
    speakers: dict[str, int]
    texts: dict[str, int]
    left_out: int  # rows whose text is in a part more held out
    broken: int
    shared: dict[str, int]  # speakers and texts that two parts share: none, or the split is wrong

    def lines(self) -> list[str]:
        """Return the counts as lines of text for a terminal."""
        parts = [
            f"{self.paths[part]}: {self.rows[part]:,} rows, {duration_text(self.seconds[part])}, "
            f"{self.speakers[part]:,} speakers, {self.texts[part]:,} texts"
            for part in PARTS
        ]
        checks = ", ".join(f"{count} {name}" for name, count in self.shared.items())
        return [
            *parts,
            f"left out: {self.left_out:,} rows for their text, {self.broken:,} broken",
            f"in two parts: {checks}",
        ]


@dataclass(slots=True)
class _RowKeys:
    """The keys by which N rows with M texts are split, as arrays of a few bytes a row."""

    lines: array = field(default_factory=lambda: array("Q"))
    # Hash of what is drawn: the speaker, or else the first text, or else the id.
    groups: array = field(default_factory=lambda: array("Q"))
    speakers: array = field(default_factory=lambda: array("Q"))  # hashes, 0 without a speaker
    seconds: array = field(default_factory=lambda: array("f"))
    texts: array = field(default_factory=lambda: array("Q"))  # hashes [M]
    text_rows: array = field(default_factory=lambda: array("Q"))  # the row of each text [M]
    broken: int = 0

    def add(self, line: int, group: int, speaker: int, seconds: float, texts: list[int]) -> None:
        self.texts.extend(texts)
        self.text_rows.extend([len(self.lines)] * len(texts))
        self.lines.append(line)
        self.groups.append(group)
        self.speakers.append(speaker)
        self.seconds.append(seconds)


# Line, group, speaker, seconds and texts of one row, in the order of `_RowKeys.add`.
_Keys = tuple[int, int, int, float, list[int]]


def split_manifest(config: SplitConfig) -> None:
    """Split a manifest, and print the counts of its parts.

    Raises:
        ConfigError: no manifest is named, or parts are there already.
        ManifestError: the manifest is missing or unreadable, cannot be split like that, or the
            parts cannot be written.
    """
    print("\n".join(split_rows(config).lines()))


def split_rows(config: SplitConfig, *, progress: bool = True) -> Split:
    """Split a manifest; the parts appear only when all are complete.

    NAME.split.json beside them holds the counts.

    Raises:
        ConfigError: no manifest is named, or parts are there already.
        ManifestError: the manifest is missing or unreadable, cannot be split like that, or the
            parts cannot be written.
    """
    if not config.path:
        raise ConfigError("no manifest was named; give path=FILE.jsonl")
    path = Path(config.path)
    paths = _part_paths(path, config.overwrite)
    keys = _read_keys(path, config, progress)
    parts = _draw_parts(_groups(keys, config), config, path)
    if By.text in config.by:
        parts = _drop_shared_texts(parts, keys)
    split = _count(paths, parts, keys, config)
    # Shares that are too small, or texts that all speakers share, may leave a part empty.
    empty = [part for part in PARTS if not split.rows[part]]
    if empty:
        raise ManifestError(
            f"no row of {path} is left for {' and '.join(empty)}: "
            f"{split.left_out} rows say a text of a part more held out; "
            "set by=[speaker] or by=[text], or smaller shares for valid and test"
        )
    _write_parts(path, keys.lines, parts, split)
    return split


def _part_paths(path: Path, overwrite: bool) -> dict[str, Path]:
    stem = path.name.removesuffix(path.suffix)
    paths = {part: path.with_name(f"{stem}.{part}.jsonl") for part in PARTS}
    existing = [str(target) for target in paths.values() if target.exists()]
    if existing and not overwrite:
        raise ConfigError(
            f"{', '.join(existing)} {'is' if len(existing) == 1 else 'are'} there already; "
            "set overwrite=true to write anew"
        )
    return paths


def _read_keys(path: Path, config: SplitConfig, progress: bool) -> _RowKeys:
    keys = _RowKeys()
    # Opened for its errors, which name the manifest.
    with open_manifest(path):
        size = path.stat().st_size
    by_speaker = By.speaker in config.by
    read = functools.partial(_batch_keys, path, config.allow_outside, by_speaker)
    with Bar(f"reading {path.name}", size, unit="B", in_bytes=True, shows=progress) as bar:
        batches = map_in_order(read, read_batches(path), config.processes)
        for rows, broken, read_bytes in batches:
            for row in rows:
                keys.add(*row)
            keys.broken += broken
            bar.update(read_bytes)
    return keys


def _batch_keys(
    path: Path, allow_outside: bool, by_speaker: bool, batch: tuple[Records, int]
) -> tuple[list[_Keys], int, int]:
    """Keys of a batch's rows, the number of broken ones, and the batch's bytes.

    A function of the module, which other processes can import.
    """
    records, read_bytes = batch
    reader = RowReader(path, allow_outside, Headers.UNSTATED)
    keys, broken = [], 0
    for line, raw in records:
        try:
            keys.append((line, *_row_keys(reader.read(line, record_of(raw)), by_speaker)))
        except BrokenRow:
            broken += 1
    return keys, broken, read_bytes


def _row_keys(read: ReadRow, by_speaker: bool) -> tuple[int, int, float, list[int]]:
    texts, speaker = texts_of(read.row), speaker_of(read.row)
    # The kind is part of the name: a speaker may be called as a text is.
    if speaker is not None and by_speaker:
        group = f"speaker {speaker}"
    elif texts:
        group = f"text {texts[0]}"
    else:
        group = f"id {read.row.id}"
    # NaN where nobody stated the seconds of a clip.
    seconds = math.fsum(clip_s for clip_s in read.seconds if not math.isnan(clip_s))
    speaker_hash = 0 if speaker is None else _hash(speaker)
    return _hash(group), speaker_hash, seconds, [_hash(text) for text in texts]


def texts_of(row: Row) -> list[str]:
    """Return the texts of a row that no other part may have, each once.

    They are the words of its clips and the texts of its turns, answers without audio included; in
    lower case, without punctuation.
    """
    texts = [text for _, text in spoken_pairs(row)]
    texts += [item.text for item in row.turns if item.text]
    plain = [" ".join(words_of(text)) for text in texts]
    return list(dict.fromkeys(text for text in plain if text))


def _hash(text: str, seed: int | str = "") -> int:
    """64 bits of a text's hash; not `hash`, which differs between processes."""
    encoded = f"{seed} {text}".encode("utf-8", "surrogatepass")
    # 0 means none.
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little") or 1


def _groups(keys: _RowKeys, config: SplitConfig) -> np.ndarray:
    """Name, a hash, of the group of each row [N] that is to stay together."""
    drawn = np.array(keys.groups)
    if By.text not in config.by:
        return drawn
    joined = _joined_groups(drawn, np.array(keys.texts), _text_rows(keys))
    if By.speaker not in config.by:
        return joined
    # The largest is left for training; held-out parts need the others to fill them.
    _, sizes = np.unique(joined, return_counts=True)
    outside = len(joined) - sizes.max(initial=0)
    return joined if outside >= (config.valid + config.test) * len(joined) else drawn


def _joined_groups(groups: np.ndarray, texts: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
    """Join groups that share a text, directly or through others.

    Args:
        groups: hash of each row's group [N].
        texts: hashes [M].
        text_rows: the row of each text [M].

    Returns:
        for each row [N] the smallest hash among the groups that are joined with its own.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    words, text_of = np.unique(texts, return_inverse=True)
    text_groups = group_of[text_rows]  # [M]
    root = np.arange(len(names))
    while True:
        lowest = np.full(len(words), len(names))
        np.minimum.at(lowest, text_of, root[text_groups])
        joined = root.copy()
        # By the root too, so that a whole group moves with one of its rows.
        np.minimum.at(joined, root[text_groups], lowest[text_of])
        # A root that was given another root points on to it, which shortens long chains.
        joined = joined[joined[root]]
        if np.array_equal(joined, root):
            return names[root[group_of]]
        root = joined


def _draw_parts(groups: np.ndarray, config: SplitConfig, path: Path) -> np.ndarray:
    """Group of each row [N] -> its part [N], as a number in PARTS."""
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(PARTS):
        raise ManifestError(
            f"{path} has {len(names)} groups of rows that must stay together; "
            f"{len(PARTS)} parts need as many: record more speakers, or set by=[text]"
        )
    # By a hash of seed and name: a random order that is the same on every machine.
    order = sorted(range(len(names)), key=lambda number: _hash(str(names[number]), config.seed))
    part_of = np.full(len(names), _TRAIN, dtype=np.uint8)
    # The test first: of what is left, validation gets its share of all rows.
    for part, share in ((_TEST, config.test), (_VALID, config.valid)):
        _fill(part_of, part, share * len(groups), order, sizes)
    return part_of[numbers]


def _fill(
    part_of: np.ndarray, part: int, target_rows: float, order: list[int], sizes: np.ndarray
) -> None:
    """Move groups from training to a part, in their order, until it has its rows.

    A group that would exceed them by more than half is passed over.
    """
    rows = 0
    for number in order:
        fits = rows < target_rows and rows + sizes[number] <= _LARGEST_EXCESS * target_rows
        if part_of[number] == _TRAIN and fits:
            part_of[number] = part
            rows += int(sizes[number])
    remaining = [number for number in order if part_of[number] == _TRAIN]
    # Where every group is too large the smallest must do, or the part would be empty.
    if not rows and remaining:
        part_of[min(remaining, key=lambda number: sizes[number])] = part


def _drop_shared_texts(parts: np.ndarray, keys: _RowKeys) -> np.ndarray:
    """Take rows [N] out of their part whose text is in a part more held out."""
    text_rows = _text_rows(keys)
    _, numbers = np.unique(np.array(keys.texts), return_inverse=True)
    # PARTS ascend by how much they are held out, so the maximum is the part that keeps a text.
    owner = np.zeros(numbers.max(initial=-1) + 1, dtype=np.uint8)
    np.maximum.at(owner, numbers, parts[text_rows])
    leaving = text_rows[owner[numbers] > parts[text_rows]]
    # A row with several texts leaves if any of them belongs elsewhere.
    parts = parts.copy()
    parts[leaving] = _LEFT_OUT
    return parts


def _text_rows(keys: _RowKeys) -> np.ndarray:
    """Row of each text [M], in the type of NumPy's indices."""
    return np.array(keys.text_rows).astype(np.int64)


def _count(paths: dict[str, Path], parts: np.ndarray, keys: _RowKeys, config: SplitConfig) -> Split:
    seconds = np.array(keys.seconds)
    members = {part: parts == number for number, part in enumerate(PARTS)}  # masks [N]
    speakers, texts = _distinct_speakers(parts, keys), _distinct_texts(parts, keys)
    shared = {}
    for by, distinct in ((By.speaker, speakers), (By.text, texts)):
        label = f"{by.value}s" + ("" if by in config.by else " (not asked for)")
        # Of a part each is there once, so what is there twice is shared.
        joined = np.concatenate([distinct[part] for part in PARTS])
        shared[label] = len(joined) - len(np.unique(joined))
    return Split(
        paths=paths,
        rows={part: int(members[part].sum()) for part in PARTS},
        # In double precision: the sum of millions of clips would lose seconds in single.
        seconds={part: float(seconds[members[part]].sum(dtype=np.float64)) for part in PARTS},
        speakers={part: len(speakers[part]) for part in PARTS},
        texts={part: len(texts[part]) for part in PARTS},
        left_out=int((parts == _LEFT_OUT).sum()),
        broken=keys.broken,
        shared=shared,
    )


def _distinct_speakers(parts: np.ndarray, keys: _RowKeys) -> dict[str, np.ndarray]:
    speakers = np.array(keys.speakers)
    return {
        part: np.unique(speakers[(parts == number) & (speakers > 0)])
        for number, part in enumerate(PARTS)
    }


def _distinct_texts(parts: np.ndarray, keys: _RowKeys) -> dict[str, np.ndarray]:
    texts, text_parts = np.array(keys.texts), parts[_text_rows(keys)]
    return {part: np.unique(texts[text_parts == number]) for number, part in enumerate(PARTS)}


def _write_parts(path: Path, lines: array, parts: np.ndarray, split: Split) -> None:
    try:
        with ExitStack() as stack:
            # All parts are open at once, so that they appear together, after the last is written.
            files = [
                stack.enter_context(stack.enter_context(atomic_write(split.paths[part])).open("wb"))
                for part in PARTS
            ]
            # Line by line from the manifest again, for its rows are not kept in memory.
            number = 0
            for batch, _ in read_batches(path):
                for line, raw in batch:
                    # Broken rows have no keys.
                    if number < len(lines) and lines[number] == line:
                        if parts[number] != _LEFT_OUT:
                            files[parts[number]].write(line_of(raw))
                        number += 1
            # Before the first of them appears, for this is where a disk is full.
            for file in files:
                file.flush()
        _write_counts(path, split)
    except OSError as error:
        raise ManifestError(
            f"the parts of {path} could not be written: {error.strerror or error}; "
            "free some space or mend the folder"
        ) from error


def _write_counts(path: Path, split: Split) -> None:
    names = ("rows", "seconds", "speakers", "texts", "left_out", "broken", "shared")
    counts = {"manifest": path.name, **{name: getattr(split, name) for name in names}}
    target = path.with_name(f"{path.name.removesuffix(path.suffix)}.split.json")
    with atomic_write(target) as unfinished:
        unfinished.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
