"""Statistics of manifests, counted from rows and headers."""

import json

import numpy as np
import pytest
import soundfile

from echox.core.errors import ConfigError
from echox.data import audio_ref
from echox.data.manifest_stats import StatsConfig, count_manifest, print_stats


@pytest.fixture
def manifest(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2)), 16_000)
    turns = [
        {"from": "user", "audio": "a.wav", "duration_s": 0.5},
        {"from": "assistant", "value": "Two words.", "transcription": "One", "units": "1 2 9"},
    ]
    rows = [
        json.dumps({"id": str(number), "speaker": number % 3, "conversations": turns})
        for number in range(9)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join([*rows, "{"]))
    return tmp_path / "m.jsonl"


def test_rows_clips_and_texts_are_counted(manifest, capsys):
    stats = count_manifest(manifest, StatsConfig(), progress=False)
    assert (stats.words, stats.letters, stats.report.rows, stats.report.broken) == (
        27,
        9 * 12,
        9,
        1,
    )
    assert stats.report.question_s == pytest.approx(4.5)
    assert stats.report.rates_hz == {16_000: 9} and stats.report.channels == {2: 9}
    assert stats.report.units == 27 and stats.report.speakers.counts == {"0": 3, "1": 3, "2": 3}
    print_stats(
        StatsConfig(manifests=[str(manifest)] * 2, output=str(manifest.with_name("stats.json")))
    )
    printed = capsys.readouterr().out
    assert "together: 18 rows, 9.0 s" in printed and "audio: 4.5 s of questions, 0.0 s" in printed
    assert "words of an answer: 9 from 2 to 2, median 2, mean 2" in printed
    assert json.loads(manifest.with_name("stats.json").read_text())[0]["hours"][
        "user"
    ] == pytest.approx(4.5 / 3600)
    with pytest.raises(ConfigError, match="no manifest was named"):
        print_stats(StatsConfig())


def test_clips_with_stated_seconds_are_not_opened(manifest, monkeypatch):
    monkeypatch.setattr(audio_ref.AudioRef, "open", lambda ref: pytest.fail(f"{ref} was opened"))
    assert count_manifest(
        manifest, StatsConfig(headers=False), progress=False
    ).report.question_s == pytest.approx(4.5)


def test_texts_are_counted_in_tokens(manifest, monkeypatch):
    from echox.data import row_measures

    def tokenizer(texts, add_special_tokens):
        return type("Ids", (), {"input_ids": [list(text) for text in texts]})

    monkeypatch.setattr(row_measures, "load_tokenizer", lambda name: tokenizer)
    assert count_manifest(manifest, StatsConfig(tokenizer="any"), progress=False).tokens == 9 * len(
        "Two words.One"
    )
