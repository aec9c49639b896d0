"""Tar shards, read as streams: clips are referenced where they lie, as `a.tar:OFFSET:LENGTH`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from echox.data.lines import list_items_in
from echox.data.row_reader import parsed
from echox.data.sources.base import AUDIO_ENDINGS, Fault, Found, Source
from echox.data.sources.folder import WORDS_BESIDE
from echox.data.sources.rows import row_of
from echox.errors import ManifestError

# The list of conversations in the published archives.
CONVERSATIONS = "data.json"
# Words and labels beside a clip; what is larger is none.
_LABEL_BYTES = 16 << 20


class TarSource(Source):
    """A tar in the layout of webdataset (KEY.wav with KEY.txt or KEY.json beside it, neighbours), or of the published data (data.json)."""

    def entries(self) -> Iterator[Found | Fault]:
        listing = self._listing()
        yield from self._conversations(*listing) if listing is not None else self._samples()

    def _listing(self) -> tuple[tarfile.TarInfo, dict[str, str]] | None:
        """Where the list of conversations lies, and all clips by name; None where there is no list."""
        found, clips = None, {}
        for _, member in self._members():
            if PurePosixPath(member.name).name == CONVERSATIONS:
                found = member
            elif member.name.lower().endswith(AUDIO_ENDINGS):
                clips[member.name.removeprefix("./")] = self._place(member)
        return None if found is None else (found, clips)

    def _conversations(self, listing: tarfile.TarInfo, clips: dict[str, str]) -> Iterator[Found | Fault]:
        folder = str(PurePosixPath(listing.name.removeprefix("./")).parent)

        def resolve(named: str) -> str | None:
            plain = named.removeprefix("./")
            return clips.get(plain if folder == "." else f"{folder}/{plain}") or clips.get(plain)

        with self.path.open("rb") as file:
            file.seek(listing.offset_data)
            part = _Part(file, listing.size)
            for number, record in enumerate(list_items_in(part, f"{self.path} ({listing.name})"), start=1):
                yield row_of(self, f"{self.prefix}-{number}", record, resolve)

    def _samples(self) -> Iterator[Found | Fault]:
        key, clip, labels = None, None, {}
        for archive, member in self._members():
            member_key, ending = _key_of(member.name)
            if member_key != key:
                yield from self._sample(key, clip, labels)
                key, clip, labels = member_key, None, {}
            if ending in AUDIO_ENDINGS:
                clip = self._place(member)
            elif ending in (*WORDS_BESIDE, ".json") and member.size <= _LABEL_BYTES:
                labels[ending] = archive.extractfile(member).read()
        yield from self._sample(key, clip, labels)

    def _sample(self, key: str | None, clip: str | None, labels: dict[str, bytes]) -> Iterator[Found | Fault]:
        if clip is None:
            # Files that say nothing of a clip are no entries.
            if labels:
                yield Fault(f"{self.prefix}/{key}", f"has {', '.join(labels)} but no audio of a known kind")
            return
        name = f"{self.prefix}/{key}"
        about = parsed(labels[".json"]) if ".json" in labels else {}
        if not isinstance(about, dict):
            yield Fault(name, f"its .json is no JSON object ({about})")
            return
        try:
            text = next((labels[ending].decode("utf-8-sig") for ending in WORDS_BESIDE if ending in labels), None)
        except UnicodeDecodeError:
            yield Fault(name, "its words are not UTF-8 text")
            return
        about = {key: value for key, value in about.items() if key not in ("audio", "audio_filepath", "audio_path")}
        yield row_of(self, name, about | {"audio": clip} | ({"text": text} if text is not None else {}), lambda named: named)

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        yield archive, member
                    # Else it would remember all of them.
                    archive.members = []
        except (tarfile.TarError, EOFError) as error:
            raise ManifestError(f"{self.path} is no whole tar archive ({error}); copy it again") from error

    def _place(self, member: tarfile.TarInfo) -> str:
        return f"{self.path}:{member.offset_data}:{member.size}"


class _Part:
    """So many bytes of an open file from where it stands."""

    def __init__(self, file, size: int) -> None:
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        return self.file.read(size)


def _key_of(name: str) -> tuple[str, str]:
    """Key and ending of a member: what is before the first dot of its name, and the rest in lower case, as webdataset has it."""
    path = PurePosixPath(name.removeprefix("./"))
    stem, dot, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), (dot + ending).lower()


