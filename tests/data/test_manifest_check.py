"""The check of a manifest: each fault is counted, named, and left out of the filtered rows."""

import json
import logging
import math

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import ConfigError, ManifestError
from echox.data import histogram
from echox.data.histogram import Tally, geometric_histogram, number_text, uniform_histogram
from echox.data.manifest_check import ManifestCheckConfig, check_rows
from echox.data.row_measures import clip_levels
from echox.data.text import error_rates

TONE = 0.3 * np.sin(np.arange(16_000) / 9)
CLIPS = {
    "good.wav": TONE,
    "again.wav": TONE,
    "silent.wav": 1e-4 * TONE,
    "hole.wav": np.concatenate([TONE[:800], np.zeros(31_200)]),
    "clipped.wav": np.clip(5 * TONE, -1, 1),
    "short.wav": TONE[:800],
}


@pytest.fixture
def folder(tmp_path):
    for name, samples in CLIPS.items():
        soundfile.write(tmp_path / name, samples, 16_000)
    soundfile.write(tmp_path / "low.wav", TONE[:4000], 4000)
    return tmp_path


def row(number: int, audio: str = "good.wav", text: str = "Yes it is.", **item) -> dict:
    answer = {
        "from": "assistant",
        "value": text,
        "audio": audio,
        "units": " ".join(["7"] * 40),
    } | item
    return {
        "id": f"row{number}",
        "speaker": f"s{number % 2}",
        "conversations": [{"from": "user", "value": "Is it?"}, answer],
    }


FAULTS = [
    (row(20, "silent.wav"), "silence", "dBFS; at least -50"),
    (row(21, "hole.wav"), "silence", "% of the clip are silent; at most 90 %"),
    (row(22, "clipped.wav"), "clipping", "stand at full scale"),
    (row(23, "short.wav", text="Oh."), "duration", "0.05 s; 0.1 to 120"),
    (row(24, "low.wav"), "rate", "4000 Hz; at least 8000"),
    (row(25, text="x" * 41), "transcript", "41 letters a second; at most 40"),
    (row(26, units="7 100"), "units", "unit 100 is none of the codec's, which has 100"),
    (row(27, wer=0.6, cer=0.2), "transcript", "cer is 0.200; at most 0.1"),
    (
        row(28, units=" ".join(["7"] * 4000)),
        "text-to-unit ratio",
        "500.00 units a letter, where the median is",
    ),
    (row(0), "id used before", "id 'row0' was already used in line 1"),
    (row(30, "gone.wav"), "broken", "gone.wav does not exist"),
    ("{", "broken", "not JSON"),
]


def test_silence_is_no_fault_in_rows_marked_no_speech(folder):
    question = {"from": "user", "value": "", "audio": "silent.wav"}
    silent = [
        {
            "id": f"s{number}",
            "no_speech": no_speech,
            "conversations": [question, {"from": "assistant", "value": "Again?"}],
        }
        for number, no_speech in enumerate((True, False))
    ]
    report = check(write(folder, silent))
    assert [finding.line for finding in report.examples["silence"]] == [2]


def write(folder, rows):
    path = folder / "m.jsonl"
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    )
    return path


def check(path, transcribe=None, **settings):
    return check_rows(ManifestCheckConfig(path=str(path), **settings), transcribe, progress=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_fault_is_found_named_and_left_out(folder, processes):
    good = [row(number) for number in range(10)]
    path = write(folder, [*good, *(fault for fault, _, _ in FAULTS)])
    report = check(
        path, unit_vocabulary=100, filtered=str(folder / "kept.jsonl"), processes=processes
    )
    assert (
        report.left_out == len(FAULTS)
        and report.broken == 3
        and report.rows == 10 + len(FAULTS) - 3
    )
    assert (folder / "kept.jsonl").read_text() == "".join(
        json.dumps(entry) + "\n" for entry in good
    )
    left_out = [json.loads(line) for line in (folder / "kept.left_out.jsonl").open()]
    for number, (record, (fault, kind, reason)) in enumerate(zip(left_out, FAULTS), start=11):
        assert record["line"] == number and record["id"] == (
            fault["id"] if isinstance(fault, dict) else None
        )
        assert any(
            finding["kind"] == kind and reason in finding["reason"] for finding in record["reasons"]
        ), (record, kind)
    assert sum(report.findings.values()) == sum(
        len({finding["kind"] for finding in record["reasons"]}) for record in left_out
    )
    assert report.fatal == 4  # two broken rows, the id used before, the unit beyond


def test_a_good_manifest_has_nothing_against_it(folder):
    report = check(
        write(folder, [row(number) for number in range(10)]),
        unit_vocabulary=8,
        filtered=str(folder / "kept.jsonl"),
    )
    assert (
        report.left_out == report.fatal == 0 and (folder / "kept.left_out.jsonl").read_text() == ""
    )
    assert (
        report.rates_hz == {16_000: 10}
        and report.channels == {1: 10}
        and report.answer_s == pytest.approx(10)
    )
    assert (
        report.units == 400
        and report.highest_unit == 7
        and report.speakers.counts == {"s0": 5, "s1": 5}
    )
    assert (
        report.histograms["units a second"].mean == 40
        and report.histograms["units a letter"].mean == 5
    )


def test_without_decoding_only_headers_are_checked(folder):
    path = write(folder, [row(0, "silent.wav"), row(1, "gone.wav")])
    report = check(path, check_audio=False)
    assert (
        set(report.findings) == {"broken"} and not report.histograms["silent share of a clip"].count
    )


def test_repeated_clips_are_found_by_their_bytes(folder):
    path = write(folder, [row(0), row(1, "hole.wav", units=""), row(2, "again.wav")])
    assert check(path, hash_audio=True, max_silence=1).examples["audio used before"][0].line == 3
    assert "audio used before" not in check(path, max_silence=1).findings


def test_wrong_transcripts_are_found(folder):
    path = write(folder, [row(number) for number in range(70)])
    transcribed = []

    def transcribe(clips, rate_hz):
        assert rate_hz == 16_000 and all(len(clip) == 16_000 for clip in clips)
        transcribed.extend(clips)
        return ["yes, it is!" if len(transcribed) < 66 else "no it was"] * len(clips)

    report = check(path, transcribe)
    assert len(transcribed) == 70 and report.findings == {"transcript": 6}
    assert "'Yes it is.' is heard as 'no it was'" in report.examples["transcript"][0].reason
    assert report.histograms["word error rate"].count == 70


def test_error_rates_ignore_case_punctuation_and_digits():
    assert error_rates("It's 5!", "its five") == [("wer", 0.0), ("cer", 0.0)]
    assert error_rates("one two", "one too") == [("wer", 0.5), ("cer", pytest.approx(1 / 7))]
    assert error_rates("...", "x") == []


def test_levels_of_known_signals():
    loudest, silent, clipped = clip_levels(torch.ones(16_000), 16_000)
    assert loudest == pytest.approx(0, abs=1e-4) and silent == 0 and clipped == 1
    loudest, silent, clipped = clip_levels(
        torch.cat([torch.full((1600,), 0.1), torch.zeros(14_400)]), 16_000
    )
    assert loudest == pytest.approx(-20, abs=1e-3) and silent == pytest.approx(0.9) and clipped == 0
    assert clip_levels(torch.zeros(3), 16_000) == (pytest.approx(-100), 1, 0)


def test_numbers_beyond_those_of_the_machine_are_no_measures(folder):
    huge = {"wer": 10**400, "cer": -(10**400), "duration_s": 10**400, "units": []}
    rows = [row(0), row(1, **huge), row(2, text="Yes " + "9" * 5000)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_rows(ManifestCheckConfig(path=str(folder / "m.jsonl")), progress=False)
    assert (report.rows, report.left_out) == (3, 1) and "letters a second" in str(report.examples)
    assert error_rates("9" * 5000, "nine")[0] == ("wer", 4999 / 5000)


def test_a_json_list_is_checked_and_filtered_too(folder):
    rows = [row(0), row(1, "gone.wav"), row(2)]
    (folder / "data.json").write_text(json.dumps(rows))
    report = check(folder / "data.json", filtered=str(folder / "kept.jsonl"))
    assert report.rows == 2 and [json.loads(line) for line in (folder / "kept.jsonl").open()] == [
        rows[0],
        rows[2],
    ]


def test_empty_manifests_and_invalid_settings_are_refused(folder):
    path = write(folder, [])
    with pytest.raises(ManifestError, match="is empty"):
        check(path)
    with pytest.raises(ConfigError, match="another .jsonl file in"):
        check(path, filtered=str(path))
    with pytest.raises(ConfigError, match="give path="):
        check("")
    with pytest.raises(ConfigError, match="min_s is 3"):
        check(path, min_s=3, max_s=2)


def test_quantiles_of_up_to_a_million_values_are_exact(monkeypatch):
    words = geometric_histogram(1, 1000, 40)
    for count in (1, 2, 2, 3, 5, 5):
        words.add(count)
    assert words.quantile(0.5) == 2.5 and words.quantile(0) == 1 and words.quantile(1) == 5
    assert words.plain()["p50"] == 2.5
    assert [number_text(value) for value in (2.5, 0.1234, 99.96, 12345.6)] == [
        "2.5",
        "0.123",
        "100",
        "12,346",
    ]
    assert histogram.EXACT_VALUES >= 1_000_000
    monkeypatch.setattr(histogram, "EXACT_VALUES", 6)
    words.add(5)
    # Too many are not kept.
    assert words.values is None and words.count == 7 and 1 < words.quantile(0.5) < 5


def test_histograms_count_all_values_and_estimate_quantiles(caplog, monkeypatch):
    monkeypatch.setattr(histogram, "EXACT_VALUES", 100)
    values = np.random.default_rng(0).lognormal(0, 1, 5000)
    lognormal = geometric_histogram(0.001, 1000, 400)
    for value in [*values, 1e9, 0.0]:
        lognormal.add(float(value))
    assert sum(lognormal.counts) == lognormal.count == 5002
    assert lognormal.high == 1e9
    assert lognormal.quantile(0.5) == pytest.approx(np.median(values), rel=0.03)
    assert lognormal.quantile(0.95) == pytest.approx(np.quantile(values, 0.95), rel=0.03)
    empty = uniform_histogram(0, 1, 4)
    assert math.isnan(empty.quantile(0.5)) and empty.plain() == {"count": 0}
    monkeypatch.setattr(histogram, "TALLY_NAMES", 2)
    tally = Tally()
    for name in "abcba":
        tally.add(name)
    assert tally.counts == {"a": 2, "b": 2} and tally.others == 1 and tally.names == "more than 2"
    with caplog.at_level(logging.WARNING):
        assert caplog.messages == []
