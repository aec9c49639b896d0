import json
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from echox.assets.hub import _counter_of, hub_folder
from echox.errors import AssetError
from echox.progress import Bar

COMMIT = "0" * 40


@pytest.fixture
def snapshot(shop, tmp_path):
    """An empty snapshot of `someone/model` in huggingface_hub's cache."""
    model = tmp_path / "hub" / "models--someone--model"
    folder = model / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_whole_snapshot_is_used_without_asking(snapshot):
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


@pytest.mark.parametrize(("files", "takes_pickled"), [(["model.safetensors", "pytorch_model.bin"], False), (["pytorch_model.bin"], True)])
def test_pickled_weights_are_taken_where_there_are_no_others(shop, monkeypatch, tmp_path, files, takes_pickled):
    def download(hub_id, revision=None, allow_patterns=(), local_files_only=False, **_):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing is cached")
        assert ("pytorch_model.bin" in allow_patterns) == takes_pickled
        for name in ["config.json", *files]:
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name, size=300) for name in files])
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


def test_a_silent_hub_is_one_sentence(shop, monkeypatch):
    def silent(*args, **kwargs):
        raise TimeoutError("timed out\nafter a while")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
    with pytest.raises(AssetError, match="did not answer about someone/model .TimeoutError: timed out.$"):
        hub_folder("someone/model")


def test_an_impossible_id_is_refused(shop):
    with pytest.raises(AssetError, match="not a valid hub id"):
        hub_folder("some one/mod el")


def test_bytes_from_the_hub_move_our_bar_and_the_clients_own_are_not_drawn(capsys):
    with Bar("fetching someone/model", 100, in_bytes=True, shows=False) as bar:
        counter = _counter_of(bar)
        written = counter(total=100, unit="B", name="huggingface_hub.snapshot_download")
        others = [counter(total=100, unit="B", name="huggingface_hub.snapshot_download.transfer"), counter(total=2, desc="Fetching 2 files")]
        for client_bar in (written, *others):
            client_bar.update(40)
        assert bar.n == 40
    assert capsys.readouterr() == ("", "")
