"""Windows of long recordings: cut at pauses or with overlap, covering all of the recording."""

import json

import numpy as np
import pytest
import soundfile

from echox.core.errors import ConfigError
from echox.data.audio import audio_header, load_audio
from echox.data.manifest import Item, Role, Row, read_manifest, write_manifest
from echox.data.windows import WindowsConfig, window_spans
from echox_cli.prepare import main

RATE_HZ = 8_000
PAUSES_S = (7.0, 15.5, 21.0, 33.0)


@pytest.fixture
def folder(tmp_path):
    """A manifest of a recording of 40 s with four pauses, and of three other rows.

    They are a short clip, a long one with words, and a truncated one.
    """
    samples = 0.2 * np.random.default_rng(0).standard_normal(40 * RATE_HZ + 37)
    for pause_s in PAUSES_S:
        samples[round((pause_s - 0.2) * RATE_HZ) : round((pause_s + 0.2) * RATE_HZ)] *= 0.01
    soundfile.write(tmp_path / "long.wav", samples, RATE_HZ)
    soundfile.write(tmp_path / "short.wav", samples[:RATE_HZ], RATE_HZ)
    soundfile.write(tmp_path / "cut.flac", samples, RATE_HZ)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:200_000])
    names = {"a": "long.wav", "b": "short.wav", "d": "cut.flac"}
    rows = [
        Row(name, (Item(Role.USER, audio=tmp_path / path),), {"speaker": "s"})
        for name, path in names.items()
    ]
    rows.append(
        Row(
            "c",
            (
                Item(Role.USER, audio=tmp_path / "long.wav"),
                Item(Role.ASSISTANT, "Yes.", transcription="So many words"),
            ),
        )
    )
    write_manifest(tmp_path / "m.jsonl", rows)
    return tmp_path


def test_windows_end_in_pauses_and_cover_the_recording(folder):
    spans = window_spans(folder / "long.wav", WindowsConfig(longest_s=12.0, shortest_s=4.0))
    assert [end for _, end in spans[:-1]] == pytest.approx([7.0, 15.5, 21.0, 33.0], abs=0.15)
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(40.0, abs=0.03)
    assert all(first[1] == second[0] for first, second in zip(spans, spans[1:]))


def test_windows_without_pauses_keep_their_limits(folder):
    soundfile.write(folder / "even.wav", np.full(31 * RATE_HZ, 0.1), RATE_HZ)
    lengths = [
        end - start
        for start, end in window_spans(
            folder / "even.wav", WindowsConfig(longest_s=10.0, shortest_s=4.0)
        )
    ]
    assert sum(lengths) == pytest.approx(31.0) and all(
        4.0 - 1e-6 <= length <= 10.0 + 1e-6 for length in lengths
    )


def test_pauses_are_located_at_rates_without_whole_samples_in_20_ms(folder):
    samples = np.full(200 * 11_025, 0.1)
    samples[round(189.8 * 11_025) : round(190.2 * 11_025)] = 0.0
    soundfile.write(folder / "odd.wav", samples, 11_025)
    spans = window_spans(folder / "odd.wav", WindowsConfig(longest_s=10.0, shortest_s=4.0))
    assert any(abs(end - 190.0) < 0.12 for _, end in spans) and spans[-1][1] == pytest.approx(
        200.0, abs=1e-6
    )


@pytest.mark.parametrize("overlap_s, starts", [(0.0, [0, 10, 20, 30]), (2.0, [0, 8, 16, 24, 32])])
def test_windows_of_one_length_overlap_as_configured(folder, overlap_s, starts):
    spans = window_spans(
        folder / "long.wav", WindowsConfig(longest_s=10.0, shortest_s=4.0, overlap_s=overlap_s)
    )
    assert [start for start, _ in spans] == starts and spans[-1][1] == pytest.approx(40.0, abs=0.01)


def test_the_command_writes_rows_with_the_samples_of_the_recording(folder, capsys, caplog):
    assert main(["window", str(folder / "m.jsonl"), "longest_s=12", "shortest_s=4"]) == 0
    assert (
        "5 windows; 1 long rows with words left as they are; "
        "1 recordings that cannot be read left out" in capsys.readouterr().out
    )
    assert "row 'd'" in caplog.text
    rows = {row.id: row for row in read_manifest(folder / "m.windows.jsonl").rows}
    assert [*rows] == [*(f"a-000{number}" for number in range(5)), "b", "c"]
    assert rows["a-0001"].extra == {"speaker": "s", "recording": "a"}
    samples = np.concatenate(
        [load_audio(rows[f"a-000{number}"].question.audio, RATE_HZ).numpy() for number in range(5)]
    )
    np.testing.assert_array_equal(
        samples, load_audio(folder / "long.wav", RATE_HZ).numpy()[: len(samples)]
    )
    assert len(samples) == audio_header(folder / "long.wav").samples
    # Windows are short, so a second run leaves them as they are, to the byte.
    first = (folder / "m.windows.jsonl").read_text()
    assert main(["window", str(folder / "m.windows.jsonl"), "longest_s=12", "shortest_s=4"]) == 0
    assert (folder / "m.windows.windows.jsonl").read_text() == first
    assert json.loads(first.splitlines()[0])["conversations"][0]["end_s"] == pytest.approx(
        7.0, abs=0.15
    )


@pytest.mark.parametrize("settings", [{"shortest_s": 30.0}, {"shortest_s": 0}, {"overlap_s": 30.0}])
def test_invalid_lengths_are_refused(settings):
    with pytest.raises(ConfigError):
        WindowsConfig(**settings)
