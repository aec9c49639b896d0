"""Wheels built by tests that must not use the network."""

import base64
import hashlib
import zipfile
from pathlib import Path

from echox.assets import Asset, Member, Wheel
from echox.assets.convert import plain


def make_wheel(folder: Path, package: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """Write a wheel that pip accepts, holding `files` (path inside the wheel -> bytes)."""
    stem = package.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode()
        ),
        f"{info}/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "".join(
        f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in contents.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return wheel


def make_asset(
    files: dict[str, bytes],
    *,
    name: str = "toy",
    package: str = "toy-files",
    converter=plain.convert,
    **options,
) -> Asset:
    """Describe an asset of one wheel with the right hashes of `files`, and any further fields."""
    members = tuple(Member(path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
    return Asset(
        name=name,
        hub_id=options.pop("hub_id", None),
        wheels=(Wheel(package, "1.0", 1_000, members),),
        converter=converter,
        revision=1,
        contents=options.pop("contents", tuple(member.name for member in members)),
        licence="none",
        doc="A toy.",
        **options,
    )


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
