"""Model folders from the Hugging Face hub: the local copy if it is whole, else a quick, quiet try over the network."""

import json
from pathlib import Path
from typing import Any

from echox.errors import AssetError
from echox.progress import Bar

_TIMEOUT_S = 5.0
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# Weights of models without safetensors (most HuBERTs); transformers reads their tensors alone and runs no code of theirs.
_PICKLED = "pytorch_model.bin"


def hub_folder(hub_id: str, *, progress: bool = True) -> Path:
    """Find or fetch a model on the Hugging Face hub.

    Args:
        hub_id: `org/name`.
        progress: show a bar of bytes while downloading.
    Returns:
        the snapshot folder in huggingface_hub's own cache.
    Raises:
        AssetError: it is not in that cache and the hub cannot be asked, does not have it, or has no weights of it.
    """
    # Imported here because most runs find their assets without the hub.
    from huggingface_hub import constants, snapshot_download

    cached = cached_snapshot(hub_id)
    if cached is not None:
        return cached
    if constants.is_offline_mode():
        raise AssetError(f"{hub_id} is not in the Hugging Face cache and HF_HUB_OFFLINE is set")
    revision, patterns, size_bytes = _offer(hub_id)
    try:
        with Bar(f"fetching {hub_id}", size_bytes, unit="B", in_bytes=True, shows=progress) as bar:
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    allow_patterns=patterns,
                    etag_timeout=_TIMEOUT_S,
                    tqdm_class=_counter_of(bar),
                )
            )
    except Exception as error:  # The hub client's failures come from several network libraries and share no base of ours.
        raise AssetError(f"the download of {hub_id} from the Hugging Face hub broke off ({_gist(error)})") from error
    if not _is_whole(folder):
        raise AssetError(f"{hub_id} on the Hugging Face hub has no weights as safetensors or {_PICKLED}")
    return folder


def cached_snapshot(hub_id: str) -> Path | None:
    """The snapshot in huggingface_hub's cache if it is whole, else None; the network is not asked.

    Raises:
        AssetError: the id is not of the form `org/name`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=[*_PATTERNS, _PICKLED]))
    except HFValidationError as error:
        raise AssetError(f"{hub_id!r} is not a valid hub id of the form org/name") from error
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _offer(hub_id: str) -> tuple[str, list[str], int | None]:
    """The newest commit, the files to take of it and their bytes, if the hub says: one request with a short timeout, so that a machine without network learns it at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(hub_id, timeout=_TIMEOUT_S, files_metadata=True)
    except GatedRepoError as error:
        raise AssetError(f"{hub_id} asks for a login (hf auth login) and consent on its hub page") from error
    except RepositoryNotFoundError as error:
        raise AssetError(f"the Hugging Face hub has no public model {hub_id}") from error
    except Exception as error:  # Name resolution, proxies, certificates and timeouts each raise their own kind.
        raise AssetError(f"the Hugging Face hub did not answer about {hub_id} ({_gist(error)})") from error
    is_safe = any(file.rfilename.endswith(".safetensors") for file in info.siblings or ())
    patterns = _PATTERNS if is_safe else [*_PATTERNS, _PICKLED]
    wanted = filter_repo_objects(info.siblings or (), allow_patterns=patterns, key=lambda file: file.rfilename)
    return info.sha, patterns, sum(file.size or 0 for file in wanted) or None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has a config and all shards of its weights (an interrupted download leaves a partial folder)."""
    return not missing_files(folder)


def missing_files(folder: Path) -> list[str]:
    """What a model's folder lacks of its config and the shards of its weights."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    else:
        wanted = [] if any(folder.glob("*.safetensors")) or (folder / _PICKLED).is_file() else ["model.safetensors"]
    return [name for name in ["config.json", *wanted] if not (folder / name).is_file()]


def _counter_of(bar: Bar) -> type:
    """What the hub's client counts with: none of its own bars is drawn, and its count of bytes moves ours."""
    from huggingface_hub.utils import tqdm as hub_tqdm

    class _Counter(hub_tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Bytes are counted twice, as they come and as they are written.
            self.moves = kwargs.get("unit") == "B" and not str(kwargs.get("name")).endswith(".transfer")
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.moves:
                bar.update(int(n or 0))

    return _Counter


def _gist(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]
