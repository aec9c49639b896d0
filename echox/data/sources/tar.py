"""Tar shards, read as streams: clips are referenced in the tar, as `a.tar:OFFSET:LENGTH`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from echox.core.errors import ManifestError
from echox.data.lines import list_items_in
from echox.data.row_reader import parse_line
from echox.data.sources.base import AUDIO_ENDINGS, LABEL_BYTES, Source, SourceFault, SourceRow
from echox.data.sources.folder import WORDS_BESIDE
from echox.data.sources.rows import entry_of

# The list of conversations in the published archives.
CONVERSATIONS = "data.json"
# Bytes of a header at most: a name, or the records of a pax header. A damaged one may state any.
_HEADER_BYTES = 1 << 20
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z")
# A damaged header fails in whatever field tarfile reads next; names that nest, in its recursion.
_READ_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError, RecursionError)
# Endings of files that say something of the clip beside them.
_LABELS = (*WORDS_BESIDE, ".json")
_IS_THERE_TWICE = "is in the archive twice; the last one is read, as tar itself does"
# Keys of a label file that name audio, for which the clip beside it stands in.
_AUDIO_KEYS = ("audio", "audio_filepath", "audio_path")


@dataclass(slots=True)
class _Listing:
    """What a tar holds: the references of its clips by name, and what cannot be read."""

    conversations: tarfile.TarInfo | None = None
    clips: dict[str, str] = field(default_factory=dict)
    faults: list[SourceFault] = field(default_factory=list)


class TarSource(Source):
    """A tar in the layout of webdataset, or of the published data (data.json with clips).

    In webdataset's, KEY.wav is followed or preceded by its KEY.txt or KEY.json.
    """

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        listing = self._listing()
        if listing.conversations is None:
            yield from self._samples()
        else:
            yield from listing.faults
            yield from self._conversations(listing.conversations, listing.clips)

    def _listing(self) -> _Listing:
        listing = _Listing()
        for _, member in self._members():
            name = member.name.removeprefix("./")
            is_list = _is_list(name)
            if reason := _refusal(member):
                listing.faults.append(self._fault(member, reason))
            elif name in listing.clips or (is_list and listing.conversations is not None):
                listing.faults.append(self._fault(member, _IS_THERE_TWICE))
            if not reason and is_list:
                listing.conversations = member
            elif not reason and name.lower().endswith(AUDIO_ENDINGS):
                listing.clips[name] = self._reference(member)
        return listing

    def _fault(self, member: tarfile.TarInfo, reason: str) -> SourceFault:
        return SourceFault(f"{self.prefix}/{member.name.removeprefix('./')}", reason)

    def _conversations(
        self, listing: tarfile.TarInfo, clips: dict[str, str]
    ) -> Iterator[SourceRow | SourceFault]:
        folder = str(PurePosixPath(listing.name.removeprefix("./")).parent)

        def resolve(path: str) -> str | None:
            # Paths are relative to the list's folder, or to the archive.
            plain = path.removeprefix("./")
            return clips.get(plain if folder == "." else f"{folder}/{plain}") or clips.get(plain)

        with self.path.open("rb") as file:
            file.seek(listing.offset_data)
            content = _Head(file, listing.size)
            records = list_items_in(content, f"{self.path} ({listing.name})")
            for number, record in enumerate(records, start=1):
                yield entry_of(self, f"{self.prefix}-{number}", record, resolve)

    def _samples(self) -> Iterator[SourceRow | SourceFault]:
        # The files of a key are neighbours, so an entry is complete when the key changes.
        key: str | None = None
        clip: str | None = None
        labels: dict[str, bytes] = {}
        endings: set[str] = set()
        for file, member in self._members():
            if reason := _refusal(member):
                yield self._fault(member, reason)
                continue
            member_key, ending = _key_of(member.name)
            if member_key != key:
                yield from self._sample(key, clip, labels)
                key, clip, labels, endings = member_key, None, {}, set()
            if ending in endings:
                yield self._fault(member, _IS_THERE_TWICE)
            elif clip is not None and ending in AUDIO_ENDINGS:
                yield self._fault(member, "is not the first clip of its name; the last one is read")
            endings.add(ending)
            if ending in AUDIO_ENDINGS:
                clip = self._reference(member)
            elif ending in _LABELS:
                labels[ending] = _content(file, member)
        yield from self._sample(key, clip, labels)

    def _sample(
        self, key: str | None, clip: str | None, labels: dict[str, bytes]
    ) -> Iterator[SourceRow | SourceFault]:
        """The entry of a key, if its files make one."""
        name = f"{self.prefix}/{key}"
        if clip is not None:
            yield self._clip_entry(name, clip, labels)
        # Files that say nothing of a clip are no entries.
        elif labels:
            yield SourceFault(name, f"has {', '.join(labels)} but no audio of a known kind")

    def _clip_entry(
        self, name: str, clip: str, labels: dict[str, bytes]
    ) -> SourceRow | SourceFault:
        record = parse_line(labels[".json"]) if ".json" in labels else {}
        if not isinstance(record, dict):
            return SourceFault(name, f"its .json is no JSON object ({record})")
        ending = next((ending for ending in WORDS_BESIDE if ending in labels), None)
        try:
            text = None if ending is None else labels[ending].decode("utf-8-sig")
        except UnicodeDecodeError:
            return SourceFault(name, "its words are not UTF-8 text")
        record = {key: value for key, value in record.items() if key not in _AUDIO_KEYS}
        record |= {"audio": clip} | ({"text": text} if text is not None else {})
        return entry_of(self, name, record, lambda path: path)

    def _members(self) -> Iterator[tuple[BinaryIO, tarfile.TarInfo]]:
        """The open archive and each of its members but folders."""
        with self.path.open("rb") as file:
            try:
                for member in _headers(file):
                    if not member.isdir():
                        yield file, member
            except _READ_ERRORS as error:
                raise ManifestError(
                    f"{self.path} is no whole tar archive ({error}); copy it again"
                ) from error

    def _reference(self, member: tarfile.TarInfo) -> str:
        return f"{self.path}:{member.offset_data}:{member.size}"


class _Head:
    """The next bytes of an open file, as many as `size`, as a file of their own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.remaining = file, size

    def read(self, size: int = -1) -> bytes:
        size = self.remaining if size < 0 else min(size, self.remaining)
        self.remaining -= size
        return self.file.read(size)


class _HeaderFile:
    """An archive for tarfile, which reads as many bytes as a header states."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(
                f"a header states {size} bytes; {_HEADER_BYTES >> 20} MiB is the most"
            )
        return self.file.read(size)


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an open archive, which is read again from where each header ends."""
    # "r:" without compression: a compressed archive would read, but offsets be useless.
    reader: Any = _HeaderFile(file)  # a file, as far as tarfile asks
    with tarfile.open(fileobj=reader, mode="r:") as archive:
        end = 0
        while (member := archive.next()) is not None:
            # Negative sizes would lead back to headers that were read.
            if member.size < 0 or archive.offset <= end:
                raise tarfile.ReadError(f"the header of {member.name} states no possible size")
            end = archive.offset
            yield member
            # The archive would otherwise remember all of them.
            archive.members = []  # type: ignore[attr-defined]  # tarfile documents it not
        # tarfile ends silently at a damaged header; an archive ends with zeros, or with its file.
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"the header after {end} bytes is damaged")


def _refusal(member: tarfile.TarInfo) -> str:
    """Why a member cannot be read, "" where it can."""
    if member.issym() or member.islnk():
        return "is a link; only regular files are read"
    # The bytes of a sparse file are not contiguous in the archive.
    if member.issparse():
        return "is a sparse file; pack it again without --sparse"
    if not member.isreg():
        return "is a pipe or a device; only regular files are read"
    if member.name.lower().endswith(_ARCHIVES):
        return "is an archive in the archive; unpack it, and name it as a source of its own"
    is_label = _key_of(member.name)[1] in _LABELS and not _is_list(member.name)
    if is_label and member.size > LABEL_BYTES:
        return f"has {member.size:,} bytes; {LABEL_BYTES >> 20} MiB of words are the most"
    return ""


def _is_list(name: str) -> bool:
    # It is read element by element, so it may have any size.
    return PurePosixPath(name).name == CONVERSATIONS


def _content(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    # tarfile seeks to where the next header is, wherever the file stands.
    file.seek(member.offset_data)
    return file.read(member.size)


def _key_of(name: str) -> tuple[str, str]:
    """Key and ending of a member, as webdataset splits them.

    The key ends before the first dot of the file's name; the ending is the rest, in lower case.
    """
    path = PurePosixPath(name.removeprefix("./"))
    stem, dot, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), (dot + ending).lower()
