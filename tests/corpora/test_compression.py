"""Compression of a codec, by the commands from recordings to the report."""

import json

import numpy as np
import pytest
import soundfile

from echox.backbones.hub import byte_tokenizer
from echox.codecs.base import CODECS
from echox.codecs.hubert_units import HubertUnitsConfig
from echox.core.durations import duration_text
from echox.core.errors import ManifestError
from echox.corpora.compression import measure_compression
from echox.data.manifest import read_manifest
from echox_cli import prepare

RATE_HZ = 16_000
TEXTS = ("It is.", "No.", "The sum is seven.", "Yes, it is.", "I do not know that.", "Go on.")


@pytest.fixture
def speech(workspace):
    """A manifest of six answers, and a tokenizer whose tokens are bytes."""
    rows = []
    for number, text in enumerate(TEXTS):
        time_s = np.arange(int((0.8 + 0.1 * number) * RATE_HZ)) / RATE_HZ
        soundfile.write(
            workspace / f"{number}.wav",
            0.2 * np.sin(2 * np.pi * (150 + 40 * number + 80 * time_s) * time_s),
            RATE_HZ,
        )
        turns = [
            {"from": "user", "value": "Well?"},
            {"from": "assistant", "value": text, "audio": f"{number}.wav"},
        ]
        rows.append({"id": f"row-{number}", "conversations": turns})
    (workspace / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    byte_tokenizer().save_pretrained(workspace / "bytes")
    return workspace


CODEC = ["codec=hubert_units", "codec.folder=units", "device=cpu"]


def test_from_recordings_to_the_report_by_commands(speech, capsys):
    settings = [
        "codec.fit.encoder.weights=random",
        "codec.fit.encoder.layer=1",
        "codec.fit.units=8",
        "codec.fit.language.words=24",
    ]
    assert prepare.main(["codec", "speech.jsonl", *CODEC, *settings]) == 0
    assert "frames/s" in capsys.readouterr().err
    assert prepare.main(["codec", "speech.jsonl", *CODEC, *settings]) == 0
    assert "fitted already" in capsys.readouterr().out
    assert prepare.main(["units", "speech.jsonl", *CODEC]) == 0
    command = ["compression", "speech.units.jsonl", *CODEC[:2], "tokenizer=bytes"]
    assert prepare.main(command) == 0
    printed = capsys.readouterr().out

    codec = CODECS.build(HubertUnitsConfig(folder="units"))
    rows = read_manifest("speech.units.jsonl").rows
    units = sum(len(row.answer.units) for row in rows)
    words = sum(len(codec.unit_tokens_of(list(row.answer.units))) for row in rows)
    seconds, tokens = sum(0.8 + 0.1 * number for number in range(6)), sum(map(len, TEXTS))
    for count in (seconds * 50, units, words):
        assert f"{count / seconds:>10.2f}{count / tokens:>14.2f}\n" in printed
    assert (
        f"6 answers, {duration_text(seconds)}, {tokens} text tokens; "
        f"{units / words:.2f} units a word" in printed
    )


def test_units_of_another_codec_are_refused(speech, capsys):
    other = ["codec=kmeans", "codec.folder=random"]
    assert prepare.main(["units", "speech.jsonl", *other, "device=cpu"]) == 0
    rows = read_manifest("speech.units.jsonl").rows
    with pytest.raises(ManifestError, match="row-0.*has units of codec"):
        measure_compression(
            rows, CODECS.build(HubertUnitsConfig(folder="random")), byte_tokenizer()
        )
    with pytest.raises(ManifestError, match="no row has an answer"):
        measure_compression(
            read_manifest("speech.jsonl").rows,
            CODECS.build(HubertUnitsConfig(folder="random")),
            byte_tokenizer(),
        )
    for words, message in (
        (["compression", *other, "tokenizer=bytes"], "no manifest"),
        (["compression", "speech.units.jsonl", *other], "tokenizer has no value"),
    ):
        assert prepare.main(words) == 2
        assert message in capsys.readouterr().err
