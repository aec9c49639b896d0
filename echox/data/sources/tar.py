"""Tar shards, read as streams: clips are referenced in the tar, as `a.tar:OFFSET:LENGTH`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from echox.core.errors import ManifestError
from echox.data.lines import list_items_in
from echox.data.row_reader import parse_line
from echox.data.sources.base import AUDIO_ENDINGS, Source, SourceFault, SourceRow
from echox.data.sources.folder import WORDS_BESIDE
from echox.data.sources.rows import entry_of

# The list of conversations in the published archives.
CONVERSATIONS = "data.json"
# Bytes of a file of words or labels at most, for it is read whole.
_LABEL_BYTES = 16 << 20
# Keys of a label file that name audio, for which the clip beside it stands in.
_AUDIO_KEYS = ("audio", "audio_filepath", "audio_path")


class TarSource(Source):
    """A tar in the layout of webdataset, or of the published data (data.json with clips).

    In webdataset's, KEY.wav is followed or preceded by its KEY.txt or KEY.json.
    """

    def entries(self) -> Iterator[SourceRow | SourceFault]:
        listing = self._listing()
        yield from self._conversations(*listing) if listing is not None else self._samples()

    def _listing(self) -> tuple[tarfile.TarInfo, dict[str, str]] | None:
        """The list of conversations, and the references of all clips by name.

        None where the tar has no such list.
        """
        conversations, clips = None, {}
        for _, member in self._members():
            if PurePosixPath(member.name).name == CONVERSATIONS:
                conversations = member
            elif member.name.lower().endswith(AUDIO_ENDINGS):
                clips[member.name.removeprefix("./")] = self._reference(member)
        return None if conversations is None else (conversations, clips)

    def _conversations(
        self, listing: tarfile.TarInfo, clips: dict[str, str]
    ) -> Iterator[SourceRow | SourceFault]:
        folder = str(PurePosixPath(listing.name.removeprefix("./")).parent)

        def resolve(path: str) -> str | None:
            # Paths are relative to the list's folder, or to the archive.
            plain = path.removeprefix("./")
            return clips.get(plain if folder == "." else f"{folder}/{plain}") or clips.get(plain)

        # Not by `extractfile`, for the archive is closed by now.
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
        for archive, member in self._members():
            member_key, ending = _key_of(member.name)
            if member_key != key:
                yield from self._sample(key, clip, labels)
                key, clip, labels = member_key, None, {}
            if ending in AUDIO_ENDINGS:
                clip = self._reference(member)
            elif ending in (*WORDS_BESIDE, ".json") and member.size <= _LABEL_BYTES:
                labels[ending] = _content(archive, member)
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

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            # "r:" without compression: a compressed archive would read, but offsets be useless.
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    # The bytes of a sparse file are not contiguous in the archive.
                    if member.isreg() and not member.issparse():
                        yield archive, member
                    # The archive would otherwise remember all of them.
                    archive.members = []  # type: ignore[attr-defined]  # tarfile documents it not
        except (tarfile.TarError, EOFError) as error:
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


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    # None only for what is no file, such as a folder.
    return b"" if file is None else file.read()


def _key_of(name: str) -> tuple[str, str]:
    """Key and ending of a member, as webdataset splits them.

    The key ends before the first dot of the file's name; the ending is the rest, in lower case.
    """
    path = PurePosixPath(name.removeprefix("./"))
    stem, dot, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), (dot + ending).lower()
