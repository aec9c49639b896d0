"""Lines of a file end at a line feed alone, and what a killed process left is left out."""

import json

from echox.core.files import complete_lines
from echox.corpora.own_answers import OwnAnswer, OwnAnswers
from echox.inference.records import Records

# All that `str.splitlines` splits at; JSON has them inside strings as they are.
LINE_ENDS = "a\u2028b\u2029c\x85d\x1ce\x1df\x1eg\x0ch\x0bi"


def test_lines_end_at_line_feeds(tmp_path):
    path = tmp_path / "file"
    assert complete_lines(path) == []
    path.write_bytes(f"{LINE_ENDS}\n\nsecond\r\nhalf a li".encode())
    assert complete_lines(path) == [LINE_ENDS, "", "second\r"]


def test_records_keep_every_character(tmp_path):
    record = {"id": LINE_ENDS, "text": LINE_ENDS, "error": None, "audio": None}
    Records(tmp_path, {}, overwrite=False).add([record])
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "of a killed ru')
    records = Records(tmp_path, {}, overwrite=False)
    assert list(records.kept.values()) == [record] == records.in_order([LINE_ENDS])


def test_own_answers_keep_every_character_and_lose_half_a_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    answer = OwnAnswer(LINE_ENDS, True)
    assert OwnAnswers(path, lambda questions, seed: [answer]).to([LINE_ENDS]) == {LINE_ENDS: answer}
    stored = path.read_text()
    # As an editor or another program may write it, without escapes.
    path.write_text(json.dumps(json.loads(stored), ensure_ascii=False) + '\n{"question": "ha')
    again = OwnAnswers(path, lambda questions, seed: [OwnAnswer("", True)])
    assert again.to([LINE_ENDS]) == {LINE_ENDS: answer}
    assert path.read_text().count("\n") == 1 and path.read_text().endswith("\n")
