"""Model folders from the Hugging Face hub: the cached copy if it is complete, else a download."""

import json
from pathlib import Path
from typing import Any

from echox.core.errors import AssetError
from echox.core.progress import Bar

_TIMEOUT_S = 5.0  # of a request; machines without network should learn it at once
# Config, weights, tokenizer and chat template, but no weights of other frameworks.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# Weights of models without safetensors (most HuBERTs); transformers reads nothing but tensors from
# them and runs no code of theirs.
_PICKLED = "pytorch_model.bin"


# Why the hub could not be reached. Remembered for the process, so that of several models only the
# first waits for the timeout.
_fault: str | None = None


def may_answer() -> bool:
    """Return whether it makes sense to ask the hub: not offline, and not in vain before."""
    from huggingface_hub import constants

    return _fault is None and not constants.is_offline_mode()


def hub_folder(hub_id: str, *, revision: str | None = None, progress: bool = True) -> Path:
    """Find a model in the hub client's cache, or download it.

    Args:
        hub_id: `org/name`.
        revision: commit, branch or tag; None is the newest commit.
        progress: show a bar of bytes while downloading.

    Returns:
        the snapshot folder in huggingface_hub's own cache.

    Raises:
        AssetError: the model is not in that cache, and the hub cannot be reached, does not have
            it, or has no weights of it.
    """
    # Imported here, because most runs find their assets without the hub.
    from huggingface_hub import constants

    cached = cached_snapshot(hub_id, revision)
    if cached is not None:
        return cached
    if constants.is_offline_mode():
        raise AssetError(f"{hub_id} is not in the Hugging Face cache and HF_HUB_OFFLINE is set")
    if _fault is not None:
        raise AssetError(_fault)
    folder = _download(hub_id, revision, progress)
    if _is_complete(folder):
        return folder
    raise AssetError(
        f"{hub_id} on the Hugging Face hub has no weights as safetensors or {_PICKLED}"
    )


def _download(hub_id: str, revision: str | None, progress: bool) -> Path:
    from huggingface_hub import snapshot_download

    commit, patterns, size_bytes = _offered_files(hub_id, revision)
    try:
        with Bar(f"fetching {hub_id}", size_bytes, unit="B", in_bytes=True, shows=progress) as bar:
            folder = snapshot_download(
                hub_id,
                revision=commit,
                allow_patterns=patterns,
                etag_timeout=_TIMEOUT_S,
                tqdm_class=_counter_of(bar),
            )
            return Path(folder)
    # The client's errors come from several network libraries, without a common base class.
    except Exception as error:
        raise AssetError(
            f"the download of {hub_id} from the Hugging Face hub broke off ({_gist(error)})"
        ) from error


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """Find a complete snapshot in huggingface_hub's cache, without the network.

    Args:
        hub_id: `org/name`.
        revision: commit, branch or tag; None is the commit that was newest when it was fetched.

    Returns:
        the snapshot folder, or None where it is missing or incomplete.

    Raises:
        AssetError: the id is not of the form `org/name`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = [*_PATTERNS, _PICKLED]
    try:
        folder = Path(
            snapshot_download(
                hub_id, revision=revision, local_files_only=True, allow_patterns=patterns
            )
        )
    except HFValidationError as error:
        raise AssetError(f"{hub_id!r} is not a valid hub id of the form org/name") from error
    except LocalEntryNotFoundError:
        return None  # no file of the model is cached
    return folder if _is_complete(folder) else None


def _offered_files(hub_id: str, revision: str | None) -> tuple[str, list[str], int | None]:
    """Ask the hub for the commit of a revision, file patterns to fetch, and their bytes or None."""
    from huggingface_hub.utils import filter_repo_objects

    info = _model_info(hub_id, revision)
    files = info.siblings or ()
    is_safe = any(file.rfilename.endswith(".safetensors") for file in files)
    # Pickled weights only where there are no others: both would be twice the download.
    patterns = _PATTERNS if is_safe else [*_PATTERNS, _PICKLED]
    chosen = filter_repo_objects(files, allow_patterns=patterns, key=lambda file: file.rfilename)
    return info.sha, patterns, sum(file.size or 0 for file in chosen) or None


def _model_info(hub_id: str, revision: str | None) -> Any:
    """Send the one request for a model's commit and files; every failure is an AssetError."""
    global _fault
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().model_info(
            hub_id, revision=revision, timeout=_TIMEOUT_S, files_metadata=True
        )
    except GatedRepoError as error:
        raise AssetError(
            f"{hub_id} asks for a login (hf auth login) and consent on its hub page"
        ) from error
    except RepositoryNotFoundError as error:
        raise AssetError(f"the Hugging Face hub has no public model {hub_id}") from error
    except RevisionNotFoundError as error:
        raise AssetError(f"{hub_id} on the Hugging Face hub has no revision {revision}") from error
    # Name resolution, proxies, certificates and timeouts each raise their own type.
    except Exception as error:
        _fault = f"the Hugging Face hub did not answer about {hub_id} ({_gist(error)})"
        raise AssetError(_fault) from error


def _is_complete(folder: Path) -> bool:
    # An interrupted download leaves a folder with some of the files.
    return not missing_files(folder)


def missing_files(folder: Path) -> list[str]:
    """List the config and the weight shards that a model's folder lacks.

    Args:
        folder: a folder in transformers' layout, complete or not.

    Returns:
        file names; [] for a complete folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        # Sharded weights: the index names the file of every tensor.
        weights = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    elif any(folder.glob("*.safetensors")) or (folder / _PICKLED).is_file():
        weights = []  # one file of any name is complete
    else:
        weights = ["model.safetensors"]
    return [name for name in ["config.json", *weights] if not (folder / name).is_file()]


def _counter_of(bar: Bar) -> type:
    """Return a progress class for the hub's client that draws nothing and moves `bar` instead."""
    from huggingface_hub.utils import tqdm as hub_tqdm

    class _Counter(hub_tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The client counts bytes twice, as they arrive and as they are written.
            is_transfer = str(kwargs.get("name")).endswith(".transfer")
            self.moves = kwargs.get("unit") == "B" and not is_transfer
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.moves:
                bar.update(int(n or 0))

    return _Counter


def _gist(error: Exception) -> str:
    """Return an error's type and first line, at most 160 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]
