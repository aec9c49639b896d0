"""Manifests: rows are read as they were written, broken ones named by line and reason."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echox.core.errors import ManifestError
from echox.data.manifest import (
    Item,
    OnBroken,
    Role,
    Row,
    manifest_fingerprint,
    read_manifest,
    read_manifests,
    with_answer,
    write_manifest,
)
from echox.data.manifest_check import ManifestCheckConfig, check_rows


@pytest.fixture
def folder(tmp_path):
    """A manifest's folder with a usable clip, several unusable ones, and a secret outside."""
    root = tmp_path / "corpus"
    root.mkdir()
    clip = 0.1 * np.ones(1600)
    soundfile.write(root / "q.wav", clip, 16_000)
    soundfile.write(root / "nan.wav", np.full(1600, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(root / "empty.wav", clip[:0], 16_000)
    (root / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "secret.wav", clip, 16_000)
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    return root


def record(number: int = 0, user: dict | None = None, assistant: dict | None = None, **row) -> dict:
    user = {"from": "user", "value": "", "audio": "q.wav"} | (user or {})
    assistant = {"from": "assistant", "value": "Paris.", "transcription": "Which city?"} | (
        assistant or {}
    )
    return {"id": f"row{number}", "conversations": [user, assistant], "kind": "capital"} | row


def write_lines(path: Path, *lines) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    )
    return path


BREAKAGES = {
    "half a line": ('{"id": "row', "not JSON"),
    "a list": ("[1]", "not a list"),
    "no conversations": ({"id": "row1"}, "no list 'conversations'"),
    "empty conversations": ({"id": "row1", "conversations": []}, "no list 'conversations'"),
    "a list of another name": (
        {"id": "row1", "tags": ["a"], "messages": [{"from": "user", "value": "Hi"}]},
        "with at least one item; its list 'messages' looks like one: rename it",
    ),
    "keys of other chat formats": (
        {"id": "row1", "conversations": [{"role": "user", "content": "Hi"}]},
        "item 1 has 'role' in place of 'from' and 'content' in place of 'value'; rename",
    ),
    "an item that is text": ({"id": "row1", "conversations": ["hello"]}, "item 1 is a string"),
    "unknown role": (record(1, user={"from": "usr"}), "from 'usr'; roles are user and assistant"),
    "missing audio": (record(1, user={"audio": "gone.wav"}), "gone.wav does not exist"),
    "a folder as audio": (record(1, user={"audio": "."}), "is a folder"),
    "unreadable audio": (record(1, user={"audio": "text.wav"}), "text.wav is not readable"),
    "zero length": (record(1, user={"audio": "empty.wav"}), "empty.wav has zero length"),
    "audio above the folder": (
        record(1, user={"audio": "../secret.wav"}),
        "outside the manifest's folder",
    ),
    "a link out of the folder": (
        record(1, user={"audio": "link.wav"}),
        "outside the manifest's folder",
    ),
    "an absolute path": (
        record(1, user={"audio": "/etc/hostname"}),
        "outside the manifest's folder",
    ),
    "an impossible path": (record(1, user={"audio": "a\0b"}), "no usable path"),
    "audio that is a number": (record(1, user={"audio": 3}), "'audio' is a number"),
    "units in words": (record(1, assistant={"units": "1 two 3"}), "one is 'two'"),
    "units below zero": (record(1, assistant={"units": [1, -2]}), "one is -2"),
    "units with a comma": (record(1, assistant={"units": "1, 2"}), "one is '1,'"),
    "units without spaces": (
        record(1, assistant={"units": "12" * 3000}),
        "more than 9 digits, 121212121...; write spaces",
    ),
    "a number of thousands of digits": ('{"id": "row1", "n": ' + "9" * 5000 + "}", "not JSON"),
    "seconds beyond all floats": (record(1, user={"start_s": 10**400}), "it must be seconds"),
    "half of a character": (record(1, assistant={"value": "Fine \ud83d"}), "half of a character"),
    "a quotation of megabytes": (
        {**record(1), "conversations": [{"from": "x" * 9999}]},
        "xxx ... xxx",
    ),
    "an id used before": (record(0), "'row0' was already used in line 1"),
    "an id that is a list": (record(1, id=[]), "id is a list"),
    "a word for silence": (
        {**record(1), "no_speech": "false"},
        "no_speech is a string; it must be true or false",
    ),
    "a word for an end": (
        record(1, assistant={"unfinished": "no"}),
        "item 2: unfinished is a string; it must be true or false",
    ),
    "a silent user": (record(1, user={"audio": None}), "neither audio nor a text"),
    "a silent assistant": (
        record(1, assistant={"value": " ", "transcription": ""}),
        "neither a text",
    ),
    "an answer in unknown words": (
        record(1, assistant={"value": "", "audio": "q.wav"}),
        "no text ('value') beside",
    ),
}


@pytest.mark.parametrize("broken", BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_row_is_named_by_line_and_reason(folder, caplog, broken):
    line, reason = broken
    path = write_lines(folder / "m.jsonl", record(0), "", line, record(2))
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert (
        "1 broken row in" in str(error.value)
        and "line 3" in str(error.value)
        and reason in str(error.value)
    )
    with caplog.at_level(logging.WARNING):
        manifest = read_manifest(path, on_broken=OnBroken.skip)
    assert [row.id for row in manifest.rows] == ["row0", "row2"]
    assert [(problem.line, reason in problem.reason) for problem in manifest.problems] == [
        (3, True)
    ]
    assert len(caplog.messages) == 1 and "line 3" in caplog.text and reason in caplog.text


def test_text_that_is_not_utf_8_is_refused(folder):
    (folder / "m.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ManifestError, match="line 1: not UTF-8"):
        read_manifest(folder / "m.jsonl")


def test_ten_broken_rows_are_listed_and_the_rest_counted(folder):
    path = write_lines(
        folder / "m.jsonl",
        record(0),
        *(record(number, user={"from": f"user {number}"}) for number in range(1, 14)),
    )
    with pytest.raises(ManifestError, match="13 broken rows.*line 2.*line 11.*and 3 more") as error:
        read_manifest(path)
    assert "line 12" not in str(error.value)


@pytest.mark.parametrize(
    "content, reason", [("", "is empty"), ("\n \n", "is empty"), ("{\n", "no row of .* is usable")]
)
def test_a_manifest_without_rows_is_refused(folder, content, reason):
    (folder / "m.jsonl").write_text(content)
    with pytest.raises(ManifestError, match=reason):
        read_manifest(folder / "m.jsonl", on_broken=OnBroken.skip)


def test_other_files_are_refused_as_manifests(folder):
    (folder / "object.json").write_text("{}")
    (folder / "half.json").write_text("[{")
    for name, reason in {
        "gone.jsonl": "does not exist",
        ".": "is a folder",
        "object.json": "a list of rows",
        "half.json": "not JSON",
    }.items():
        with pytest.raises(ManifestError, match=reason):
            read_manifest(folder / name)


def test_a_published_list_without_ids_is_read(folder):
    entry = record(1, assistant={"wer": 0.1, "units": "12 4 5"})
    del entry["id"]
    (folder / "data.json").write_text(json.dumps([entry, entry]))
    rows = read_manifest(folder / "data.json").rows
    assert [row.id for row in rows] == ["data-1", "data-2"]
    assert rows[0].answer.units == (12, 4, 5) and rows[0].answer.extra == {"wer": 0.1}


def test_outside_audio_is_read_when_allowed(folder):
    path = write_lines(
        folder / "m.jsonl",
        record(1, user={"audio": "link.wav"}),
        record(2, user={"audio": "../secret.wav"}),
    )
    assert len(read_manifest(path, allow_outside=True).rows) == 2


def test_rows_are_the_same_after_writing_and_reading(folder):
    question = Item(Role.USER, audio=folder / "q.wav")
    answer = Item(
        Role.ASSISTANT, "Bogotá.", transcription="Which city?", units=(3, 0), extra={"wer": 0.5}
    )
    row = Row("a", (question, answer), {"kind": "capital", "voice": "v"})
    write_manifest(folder / "m.jsonl", [row])
    assert read_manifest(folder / "m.jsonl").rows == (row,)
    assert json.loads((folder / "m.jsonl").read_text())["conversations"][0]["audio"] == "q.wav"
    assert [path.name for path in folder.glob(".*")] == []
    before = manifest_fingerprint(folder / "m.jsonl")
    write_manifest(folder / "m.jsonl", [with_answer(row, units=(3, 1))])
    assert read_manifest(folder / "m.jsonl").rows[0].answer.units == (3, 1)
    assert manifest_fingerprint(folder / "m.jsonl") != before


def test_several_manifests_are_one_list_with_distinct_ids(folder):
    first, second = (
        write_lines(folder / "a.jsonl", record(1)),
        write_lines(folder / "b.jsonl", record(2)),
    )
    assert [row.id for row in read_manifests([first, second])] == ["row1", "row2"]
    with pytest.raises(ManifestError, match="'row1' is in .*a.jsonl and in .*a.jsonl"):
        read_manifests([first, first])
    with pytest.raises(ManifestError, match="no manifest was named"):
        read_manifests([])


def test_the_check_decodes_clips_and_counts_good_rows(folder):
    path = write_lines(
        folder / "m.jsonl",
        record(0),
        record(1, user={"audio": "nan.wav"}),
        "{",
        record(3, voice="joe"),
    )
    headers = ManifestCheckConfig(path=str(path), check_audio=False)
    assert len(check_rows(headers, progress=False).problems) == 1
    report = check_rows(ManifestCheckConfig(path=str(path)), progress=False)
    assert [problem.line for problem in report.problems] == [2, 3]
    assert "NaN" in report.problems[0].reason
    assert (
        report.rows == 2 and report.rates_hz == {16_000: 2} and report.speakers.counts == {"joe": 1}
    )
    assert report.question_s == pytest.approx(0.2)


def test_complaints_of_one_kind_are_one_sentence(folder, caplog):
    rows = [{"id": f"row{number}", "messages": []} for number in range(105)]
    path = write_lines(folder / "m.jsonl", record(200), *rows, "[1]")
    assert len(read_manifest(path, on_broken=OnBroken.skip).rows) == 1
    first, second = (record.message for record in caplog.records)
    assert "line 2 (row 'row0'): the row has no list 'conversations'" in first
    assert first.endswith("(and 104 more lines); row skipped") and "line 107" in second


def test_what_a_row_lacks_is_said_with_its_name():
    row = Row("r1", (Item(Role.USER, "Why?"),))
    assert row.require_question() is row.turns[0]
    with pytest.raises(ManifestError, match="row 'r1' has no turn of the assistant"):
        row.require_answer()
    for missing in (row.turns[0].require_audio, row.turns[0].require_units):
        with pytest.raises(ManifestError, match=r"a turn of the user \('Why\?'\) has no"):
            missing()
