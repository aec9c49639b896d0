"""`echox-bench units` measures both ways over the same clips, and memory over many files."""

import json

from echox_cli.bench import main


def test_paces_and_memory_are_in_the_table(tmp_path, capsys):
    words = [
        "codec=kmeans",
        "codec.folder=random",
        "clips=3",
        "rounds=1",
        "longest_s=1.5",
        "files=20",
        "file_s=0.1",
        "device=cpu",
    ]
    assert main(["units", *words, f"output={tmp_path / 'units'}"]) == 0
    results = json.loads((tmp_path / "units.json").read_text())
    lines = {(line["contender"], line["precision"]): line for line in results["lines"]}
    assert (
        lines["one file at a time", "float32"]["of_loop"] == 1
        and lines["echox", "float32"]["pace"] > 0
    )
    assert [point["files"] for point in results["memory"]] == [2, 10, 20]
    assert all(point["peak_mib"] > 10 for point in results["memory"])
    assert (
        "MiB over 20 files" in (tmp_path / "units.md").read_text() == capsys.readouterr().out[:-1]
    )
    assert main(["units", *words, "rounds=0"]) == 2


def test_words_that_belong_to_no_field_are_refused(capsys):
    assert main(["units", "32x16"]) == 2
    assert "is not key=value" in capsys.readouterr().err
