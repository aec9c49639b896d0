"""`echox-prepare validate`: what it prints, its page and its numbers."""

import json
import os
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import ConfigError, ManifestError
from echox.evaluation import manifest_validation
from echox.evaluation.manifest_validation import ValidateConfig, validate


@pytest.fixture
def manifest(tmp_path):
    soundfile.write(tmp_path / "q.wav", 0.3 * np.sin(np.arange(16_000) / 9), 16_000)
    turns = [
        {"from": "user", "audio": "q.wav"},
        {"from": "assistant", "value": "Paris.", "transcription": "Which <city>?"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text(
        "\n".join(
            [json.dumps({"id": f"<{number}>", "conversations": turns}) for number in range(3)]
        )
        + "\n"
    )
    return path


def test_broken_rows_and_findings_are_printed_and_the_command_fails(manifest, capsys):
    assert validate(ValidateConfig(path=str(manifest))) == 0
    with manifest.open("a") as out:
        out.write("{\n")
    assert validate(ValidateConfig(path=str(manifest), max_s=0.5)) == 1
    printed = capsys.readouterr().out
    assert (
        f"{manifest}, line 4: not JSON" in printed
        and "3 good rows, 1 broken, 3 with something against them" in printed
    )
    assert "duration: 3 rows, such as line 1 (row '<0>'): item 1: the clip has 1.00 s" in printed
    with pytest.raises(ConfigError, match="path="):
        validate(ValidateConfig())


class Tags(HTMLParser):
    """Checks that tags are closed, and that nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img") and not {"src", "href"} & {
            name for name, _ in attrs
        }
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_the_numbers_are_json(manifest):
    validate(
        ValidateConfig(path=str(manifest), max_s=0.5, report=str(manifest.parent / "out" / "r"))
    )
    page = (manifest.parent / "out" / "r.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and {"svg", "rect", "details"} <= tags.seen
    assert "&lt;0&gt;" in page and "<0>" not in page
    for drawing in page.split("<svg")[1:]:
        bars = ElementTree.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>").findall(
            "rect"
        )
        assert sum(int(bar.find("title").text.rpartition(": ")[2]) for bar in bars) == 3
        assert max(float(bar.get("height")) for bar in bars) > 0
    numbers = json.loads((manifest.parent / "out" / "r.json").read_text(encoding="utf-8"))
    assert (
        numbers["rows"] == 3
        and numbers["findings"] == {"duration": 3}
        and numbers["config"]["max_s"] == 0.5
    )
    assert sum(numbers["histograms"]["questions, s"]["counts"]) == 3


def test_words_are_compared_with_transcripts(manifest, monkeypatch, capsys):
    class Recogniser:
        def __init__(self, weights, device):
            assert weights == "mine" and device == torch.device("cpu")

        def transcribe(self, clips, rate_hz):
            return ["which city"] * (len(clips) - 1) + ["sausages"]

    monkeypatch.setattr(manifest_validation, "Transcriber", Recogniser)
    validate(
        ValidateConfig(
            path=str(manifest),
            recogniser="mine",
            device="cpu",
            filtered=str(manifest.with_name("kept.jsonl")),
        )
    )
    assert "'Which <city>?' is heard as 'sausages'" in capsys.readouterr().out
    assert [json.loads(line)["id"] for line in manifest.with_name("kept.jsonl").open()] == [
        "<0>",
        "<1>",
    ]


def test_a_report_that_cannot_be_written_is_named(manifest):
    (manifest.parent / "file").write_text("")
    with pytest.raises(ManifestError, match="could not be written"):
        validate(ValidateConfig(path=str(manifest), report=str(manifest.parent / "file" / "r")))


def test_a_manifest_whose_name_is_not_utf_8_has_a_report(manifest):
    path = manifest.rename(manifest.with_name(os.fsdecode(b"m\xff.jsonl")))
    assert validate(ValidateConfig(path=str(path), report=str(path.parent / "r"))) == 0
    assert json.loads((path.parent / "r.json").read_text("utf-8"))["rows"] == 3
    assert r"m\udcff.jsonl" in (path.parent / "r.html").read_text("utf-8")
