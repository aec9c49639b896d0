import json
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from echox.assets.hub import _counter_of, hub_folder
from echox.core.errors import AssetError
from echox.core.progress import Bar

COMMIT = "0" * 40


@pytest.fixture
def snapshot(package_index, tmp_path):
    """An empty snapshot of `someone/model` in huggingface_hub's cache."""
    model = tmp_path / "hub" / "models--someone--model"
    folder = model / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_complete_snapshot_is_used_without_the_network(snapshot):
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert hub_folder("someone/model") == snapshot


def test_a_snapshot_without_weights_is_not_used(snapshot):
    (snapshot / "config.json").write_text("{}")
    (snapshot / "tf_model.h5").write_bytes(b"")
    with pytest.raises(AssetError, match="not in the Hugging Face cache"):
        hub_folder("someone/model")
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert hub_folder("someone/model") == snapshot


@pytest.mark.parametrize(
    ("files", "has_pickled"),
    [(["model.safetensors", "pytorch_model.bin"], False), (["pytorch_model.bin"], True)],
)
def test_pickled_weights_are_fetched_where_there_are_no_others(
    package_index, monkeypatch, tmp_path, files, has_pickled
):
    def download(hub_id, revision=None, allow_patterns=(), local_files_only=False, **_):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing is cached")
        assert ("pytorch_model.bin" in allow_patterns) == has_pickled
        for name in ["config.json", *files]:
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    info = SimpleNamespace(
        sha=COMMIT, siblings=[SimpleNamespace(rfilename=name, size=300) for name in files]
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub_folder("someone/model") == tmp_path


def test_a_snapshot_without_all_shards_is_not_used(snapshot):
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model-1.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AssetError, match="not in the Hugging Face cache"):
        hub_folder("someone/model")
    (snapshot / "model-2.safetensors").write_bytes(b"")
    assert hub_folder("someone/model") == snapshot


def test_a_hub_that_does_not_answer_is_one_sentence(package_index, monkeypatch):
    def silent(*args, **kwargs):
        raise TimeoutError("timed out\nafter a while")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
    with pytest.raises(
        AssetError, match="did not answer about someone/model .TimeoutError: timed out.$"
    ):
        hub_folder("someone/model")


def test_an_invalid_id_is_refused(package_index):
    with pytest.raises(AssetError, match="not a valid hub id"):
        hub_folder("some one/mod el")


def test_downloaded_bytes_move_our_bar_and_the_client_draws_none(capsys):
    with Bar("fetching someone/model", 100, in_bytes=True, shows=False) as bar:
        counter = _counter_of(bar)
        written = counter(total=100, unit="B", name="huggingface_hub.snapshot_download")
        others = [
            counter(total=100, unit="B", name="huggingface_hub.snapshot_download.transfer"),
            counter(total=2, desc="Fetching 2 files"),
        ]
        for client_bar in (written, *others):
            client_bar.update(40)
        assert bar.n == 40
    assert capsys.readouterr() == ("", "")
