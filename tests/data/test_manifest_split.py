"""Splits: no speaker or text in two parts, the same parts each time, all rows accounted for."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from echox.core.errors import ConfigError, ManifestError
from echox.data.manifest_split import PARTS, By, SplitConfig, _joined_groups, split_rows


def row(number: int, speaker: str | None, text: str) -> dict:
    turns = [
        {"from": "user", "audio": "a.wav", "duration_s": 1.5},
        {"from": "assistant", "transcription": text, "value": ""},
    ]
    return {"id": f"row{number}", "conversations": turns} | (
        {} if speaker is None else {"speaker": speaker}
    )


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n{\n")
    return path


@pytest.fixture
def corpus(tmp_path):
    """400 rows of 50 speakers; every fifth has a text that others have too."""
    draw = random.Random(0)
    return write(
        tmp_path / "m.jsonl",
        [
            row(n, f"s{draw.randrange(50)}", f"Common {n % 35}!" if n % 5 == 0 else f"own {n}")
            for n in range(400)
        ],
    )


def split(path, **settings):
    return split_rows(SplitConfig(path=str(path), **settings), progress=False)


def parts_of(path):
    return {
        part: [json.loads(line) for line in path.with_name(f"{path.stem}.{part}.jsonl").open()]
        for part in PARTS
    }


def values(rows, by):
    return {
        row.get("speaker")
        if by == "speaker"
        else row["conversations"][1]["transcription"].lower().strip("!")
        for row in rows
    }


def test_neither_speaker_nor_text_is_in_two_parts(corpus):
    counts = split(corpus, valid=0.1, test=0.1)
    parts = parts_of(corpus)
    for by in ("speaker", "text"):
        train, valid, test = (values(parts[part], by) for part in PARTS)
        assert not (train & valid or train & test or valid & test)
    assert counts.shared == {"speakers": 0, "texts": 0} and counts.broken == 1
    assert sum(counts.rows.values()) + counts.left_out == 400
    assert counts.rows == {part: len(rows) for part, rows in parts.items()}
    assert 20 <= counts.rows["test"] <= 60 and counts.rows["train"] > 200
    assert counts.seconds["test"] == 1.5 * counts.rows["test"]
    ids = [row["id"] for row in parts["train"]]
    assert ids == sorted(ids, key=lambda name: int(name[3:]))
    assert json.loads(corpus.with_name("m.split.json").read_text())["rows"] == counts.rows


def test_the_same_seed_gives_the_same_parts_by_any_number_of_processes(corpus):
    split(corpus)
    before = {part: corpus.with_name(f"m.{part}.jsonl").read_bytes() for part in PARTS}
    with pytest.raises(ConfigError, match="there already; set overwrite=true"):
        split(corpus)
    split(corpus, overwrite=True, processes=2)
    assert {part: corpus.with_name(f"m.{part}.jsonl").read_bytes() for part in PARTS} == before
    split(corpus, overwrite=True, seed=2)
    assert corpus.with_name("m.test.jsonl").read_bytes() != before["test"]


def test_a_split_by_speaker_or_text_alone(corpus):
    assert split(corpus, by=[By.speaker]).shared["speakers"] == 0
    assert split(corpus, by=[By.speaker], overwrite=True).left_out == 0
    counts = split(corpus, by=[By.text], overwrite=True)
    assert counts.shared["texts"] == 0 and counts.shared["speakers (not asked for)"] > 0
    assert counts.left_out == 0


def test_rows_without_speakers_are_drawn_by_their_text(tmp_path):
    path = write(
        tmp_path / "m.jsonl", [row(number, None, f"text {number // 2}") for number in range(100)]
    )
    counts = split(path, valid=0.1, test=0.1)
    assert counts.left_out == 0 and counts.shared["texts"] == 0
    assert counts.rows == {"train": 80, "valid": 10, "test": 10}


def test_rows_that_share_texts_through_others_stay_together(tmp_path):
    """Chains of three rows: each shares its question with one and its answer with another."""
    draw = random.Random(1)
    rows = []
    for chain in range(100):
        pairs = [("a", "x"), ("a", "y"), ("b", "y")]
        for number, (question, answer) in enumerate(pairs):
            turns = [
                {"from": "user", "value": f"question {question} {chain}"},
                {"from": "assistant", "value": f"answer {answer} {chain}."},
            ]
            rows.append({"id": f"{chain}-{number}", "conversations": turns})
    draw.shuffle(rows)
    path = write(tmp_path / "m.jsonl", rows)
    for by in ([By.text], [By.speaker, By.text]):
        counts = split(path, valid=0.1, test=0.1, by=by, overwrite=True)
        assert counts.left_out == 0 and counts.shared["texts"] == 0
        assert counts.rows == {"train": 240, "valid": 30, "test": 30}
        # Answers have no audio, and are in one part all the same.
        parts = parts_of(path)
        answers = [{row["conversations"][1]["value"] for row in parts[part]} for part in PARTS]
        assert not (answers[0] & answers[1] or answers[0] & answers[2] or answers[1] & answers[2])


def test_speakers_with_a_common_text_are_one_group_where_enough_others_are_left(tmp_path):
    # Speakers 2n and 2n + 1 read one text in common.
    rows = [
        row(number, f"s{number % 40}", f"pair {number % 40 // 2}" if number < 40 else f"t{number}")
        for number in range(400)
    ]
    counts = split(write(tmp_path / "m.jsonl", rows), valid=0.1, test=0.1)
    assert counts.left_out == 0 and counts.shared == {"speakers": 0, "texts": 0}
    assert counts.rows == {"train": 320, "valid": 40, "test": 40}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_graph(seed):
    """Against joining by hand."""
    draw = random.Random(seed)
    groups = [draw.randrange(1, 30) for _ in range(60)]
    pairs = [(draw.randrange(60), draw.randrange(80)) for _ in range(70)]
    names = dict(zip(range(60), groups))
    for _ in range(60):  # as often as the longest chain
        lowest = {}
        for keyed in ([(f"g{groups[n]}", n) for n in range(60)], [(t, n) for n, t in pairs]):
            for key, number in keyed:
                lowest[key] = min(lowest.get(key, 99), names[number])
            for key, number in keyed:
                names[number] = min(names[number], lowest[key])
    found = _joined_groups(
        np.array(groups), np.array([text for _, text in pairs]), np.array([row for row, _ in pairs])
    )
    assert found.tolist() == [names[number] for number in range(60)]


def test_a_large_speaker_does_not_fill_the_test(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        [
            row(number, "all" if number % 10 else f"s{number}", f"t{number}")
            for number in range(200)
        ],
    )
    counts = split(path, valid=0.05, test=0.05)
    assert counts.rows == {"train": 180, "valid": 10, "test": 10}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_no_part_appears_on_a_full_disk(corpus, monkeypatch):
    open_path = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *mode, **options: (
            open("/dev/full", "wb")
            if path.name.startswith(".m.train")
            else open_path(path, *mode, **options)
        ),
    )
    with pytest.raises(ManifestError, match="could not be written: No space left on device"):
        split(corpus)
    assert [path.name for path in corpus.parent.iterdir()] == ["m.jsonl"]


def test_manifests_that_cannot_be_split_are_refused(tmp_path):
    path = write(
        tmp_path / "m.jsonl", [row(number, f"s{number % 5}", "the same") for number in range(50)]
    )
    with pytest.raises(
        ManifestError, match="no row of .* is left for train and valid: .*by=.speaker."
    ):
        split(path)
    with pytest.raises(ManifestError, match="1 groups of rows that must stay together"):
        split(path, by=[By.text])
    unshared = write(
        tmp_path / "o.jsonl", [row(number, f"s{number % 3}", f"t{number}") for number in range(30)]
    )
    with pytest.raises(ManifestError, match="is left for train and valid.*smaller shares"):
        split(unshared, test=0.9, valid=0.05)
    assert not list(tmp_path.glob("?.t*.jsonl"))
    with pytest.raises(ConfigError, match="below 1"):
        split(path, test=0.99, valid=0.5)
    with pytest.raises(ConfigError, match="by is empty"):
        split(path, by=[])
