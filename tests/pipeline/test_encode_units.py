"""`echox-prepare units` with several processes, its own and those of torchrun."""

import numpy as np
import pytest
import soundfile

from echox.data.manifest import Item, Role, Row, write_manifest
from echox_cli.prepare import main

RATE_HZ = 16_000


@pytest.fixture
def corpus(tmp_path):
    noise = np.random.default_rng(0)
    rows = []
    for number in range(9):
        soundfile.write(
            tmp_path / f"{number}.flac", 0.1 * noise.standard_normal(8_000 + 500 * number), RATE_HZ
        )
        rows.append(
            Row(f"row{number}", (Item(Role.ASSISTANT, "text", audio=tmp_path / f"{number}.flac"),))
        )
    write_manifest(tmp_path / "speech.jsonl", rows)
    return tmp_path


def units(corpus, cache: str, *overrides: str) -> bytes:
    words = [
        "units",
        str(corpus / "speech.jsonl"),
        "codec=kmeans",
        "codec.folder=random",
        "device=cpu",
        "rows_per_shard=2",
    ]
    assert main([*words, f"cache_dir={corpus / cache}", *overrides]) == 0
    return (corpus / "speech.units.jsonl").read_bytes()


def test_two_processes_write_what_one_writes(corpus, capsys):
    expected = units(corpus, "one")
    (corpus / "speech.units.jsonl").unlink()
    assert units(corpus, "two", "workers=2") == expected
    assert capsys.readouterr().out.split() == [str(corpus / "speech.units.jsonl")] * 2
    # Every shard was made, and no file is half written.
    (folder,) = (corpus / "two" / "units").iterdir()
    assert len(list(folder.glob("[0-9]*.json"))) == 5 and not list(folder.glob(".*"))


def test_ranks_begin_at_different_shards_and_the_first_prints(corpus, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    units(corpus, "cache")
    (folder,) = (corpus / "cache" / "units").iterdir()
    by_age = sorted(folder.glob("[0-9]*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [int(path.stem) for path in by_age] == [2, 3, 4, 0, 1]
    printed = capsys.readouterr()
    assert printed.out == "" and "row/s" not in printed.err


@pytest.mark.parametrize(
    "override, reason",
    [
        ("workers=0", "workers is 0"),
        ("part=3/2", "1/8"),
        ("rows_per_shard=0", "rows_per_shard is 0"),
    ],
)
def test_settings_out_of_range_are_refused(corpus, override, reason, capsys):
    assert (
        main(
            ["units", str(corpus / "speech.jsonl"), "codec=kmeans", "codec.folder=random", override]
        )
        == 2
    )
    assert reason in capsys.readouterr().err
