"""Reports of any manifest and of any answers.jsonl, with scorers that need no weights."""

import json

import pytest
import soundfile
import torch
from tiny_run import noise, write_questions, write_run

from echox.core.errors import ConfigError, ManifestError
from echox.data.audio import save_audio
from echox.evaluation import evaluated_run
from echox.evaluation.report import EvaluateConfig, evaluate


class Parrot:
    """A recogniser with the same transcript for every clip."""

    name = "parrot"

    def __init__(self, weights, **_):
        pass

    def transcribe(self, clips, rate_hz):
        return ["It is Paris"] * len(clips)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def settings(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated_run, "Transcriber", Parrot)
    return {
        "run": str(run),
        "out_dir": str(tmp_path / "report"),
        "spoken_rows": 1,
        "typed_rows": 0,
        "mos_rows": 0,
        "max_tokens": 4,
        "device": "cpu",
    }


def write_answers(folder, *answers):
    folder.mkdir(exist_ok=True)
    path = folder / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, answers)), "utf-8")  # no line feed at the end
    return str(path)


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_a_manifest_of_any_name_and_labels_is_scored_and_what_is_missing_is_said(
    settings, tmp_path, capsys
):
    manifest = write_questions(tmp_path / "mine", "survey", 2, answer=None, kind=7, voice=None)
    report = evaluate(EvaluateConfig(manifests=[str(manifest)], **settings))
    section = report["sections"]["own-survey"]
    assert set(section["scores"]) == {"all", "kind 7"} and section["rows"] == 2
    scores = section["scores"]["all"]
    assert {"question WER", "speech WER", "word F1 with the answer's text"} <= set(scores)
    assert scores["word F1 with the answer's text"]["count"] == 2
    assert scores["speech WER"]["count"] == 1 and "S2T accuracy" not in scores
    missing = 'accuracy is missing: no row has a label "answer", the words of a right answer'
    assert missing in section["missing"]
    page = (tmp_path / "report" / "report.md").read_text()
    assert missing in page and missing in capsys.readouterr().out
    # Nothing of the demo corpus was asked for.
    assert list(report["sections"]) == ["own-survey"] and not report["skipped"]


def test_rows_without_any_label_are_an_error_where_nothing_is_spoken(settings, run, tmp_path):
    clip = tmp_path / "data" / "a.wav"
    save_audio(clip, noise(0, 0.3), 16_000)
    turns = [{"from": "user", "value": "", "audio": "a.wav"}]
    bare = write_rows(tmp_path / "data" / "bare.jsonl", {"id": "a", "conversations": turns})
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "s2t").symlink_to(run / "s2t")
    settings |= {"run": str(tmp_path / "text"), "manifests": [bare]}
    with pytest.raises(ManifestError, match=r"nothing was scored \(own-bare: no row of .*bare"):
        evaluate(EvaluateConfig(**settings))
    assert not (tmp_path / "report" / "report.md").exists()


def test_a_manifest_of_which_every_row_is_refused_is_an_error(settings, tmp_path):
    manifest = write_questions(tmp_path / "mine", "survey", 2)
    for clip in (tmp_path / "mine" / "clips").iterdir():
        soundfile.write(clip, torch.full((99,), float("nan")).numpy(), 16_000, subtype="FLOAT")
    with pytest.raises(ManifestError, match="own-survey: not one of 2 rows was answered.*NaN"):
        evaluate(EvaluateConfig(manifests=[str(manifest)], **settings))


def test_a_corpus_without_labels_is_an_error_and_no_page_of_headings(settings, tmp_path):
    write_questions(tmp_path / "corpus", "questions.test", 1, answer="")
    with pytest.raises(ManifestError, match='nothing was scored .*a label "answer"'):
        evaluate(EvaluateConfig(corpus=str(tmp_path / "corpus"), **settings))


def test_a_silent_row_needs_no_label(settings, tmp_path):
    write_questions(tmp_path / "corpus", "silent.test", 1, answer=None)
    report = evaluate(EvaluateConfig(corpus=str(tmp_path / "corpus"), **settings))
    assert set(report["sections"]["silent"]["scores"]["all"]) == {"nothing heard"}


def test_answers_of_any_origin_are_scored_against_their_manifest(
    settings, tmp_path, monkeypatch, capsys
):
    settings |= {"run": "nowhere", "out_dir": None}
    questions = write_questions(tmp_path / "mine", "survey", 3)
    save_audio(tmp_path / "theirs" / "wavs" / "0.wav", noise(1, 0.2), 16_000)
    answers = write_answers(
        tmp_path / "theirs",
        {"id": "survey/0", "text": "Paris", "heard": "What is 0?", "audio": "wavs/0.wav"},
        {"id": "survey/1", "text": "Rome", "heard": "What is", "cut": "text"},
        {"id": "of another", "text": "Paris"},
    )
    report = evaluate(EvaluateConfig(answers=answers, manifests=[str(questions)], **settings))
    section = report["sections"]["own-survey"]
    scores = section["scores"]["all"]
    # The row without an answer counts as wrong.
    assert (scores["S2T accuracy"]["value"], scores["S2T accuracy"]["count"]) == (1 / 3, 3)
    assert scores["S2S accuracy"]["value"] == 1.0 and scores["speech WER"]["value"] == 2.0
    # Of six words that were asked and heard of, one was not heard.
    assert (scores["question WER"]["value"], scores["question WER"]["count"]) == (1 / 6, 2)
    assert "1 of 3 rows have no answer, which counts as a wrong one" in section["missing"]
    assert "1 of 3 answers were cut at a limit of length" in section["missing"]
    assert json.loads((tmp_path / "theirs" / "report" / "report.json").read_text()) == report
    assert "answers to listen to" not in capsys.readouterr().out
    assert "(../wavs/0.wav)" in (tmp_path / "theirs" / "report" / "report.md").read_text()
    # By folder, as `echox-generate` names it, the stored records are found again.
    monkeypatch.setattr(evaluated_run, "Transcriber", None)
    by_folder = settings | {"answers": str(tmp_path / "theirs"), "manifests": [str(questions)]}
    again = evaluate(EvaluateConfig(**by_folder))
    assert again["sections"]["own-survey"]["scores"] == section["scores"]


def test_answers_without_a_manifest_are_scored_by_their_speech(settings, tmp_path):
    save_audio(tmp_path / "theirs" / "a.wav", noise(1, 0.2), 16_000)
    spoken = {"id": "a", "text": "It is Paris.", "audio": "a.wav"}
    lost = {"id": "b", "text": "", "error": "too long"}
    answers = write_answers(tmp_path / "theirs", spoken, lost)
    report = evaluate(EvaluateConfig(answers=answers, **settings))
    section = report["sections"]["own-answers"]
    assert section["scores"]["all"]["speech WER"]["value"] == 0.0
    assert any(sentence.startswith("question WER is missing") for sentence in section["missing"])
    write_answers(tmp_path / "theirs", lost)
    with pytest.raises(ManifestError, match="not one of 1 rows was answered, .*: too long; mend"):
        evaluate(EvaluateConfig(answers=answers, **settings))
    write_answers(tmp_path / "theirs", {"id": "a", "text": "Paris"})
    with pytest.raises(ManifestError, match="no manifest says what was asked; name it by manif"):
        evaluate(EvaluateConfig(answers=answers, **settings))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"text": "Paris"}, 'line 1: an answer is an object with "id"'),
        ({"id": "a"}, 'line 1: an answer without an "error" has a "text"'),
        ({"id": "a", "text": 3}, 'line 1: "text" must be text or null, and is int'),
        ({"id": "a", "text": "Paris"}, "no answer of .* is of a row of .*'a' and others"),
    ],
)
def test_wrong_answers_are_one_sentence(settings, tmp_path, answer, reason):
    questions = write_questions(tmp_path / "mine", "survey", 1)
    answers = write_answers(tmp_path / "theirs", answer)
    with pytest.raises(ManifestError, match=reason):
        evaluate(EvaluateConfig(answers=answers, manifests=[str(questions)], **settings))


def test_wrong_names_are_refused_before_anything_is_scored(settings, tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.jsonl does not exist"):
        evaluate(EvaluateConfig(manifests=["nowhere.jsonl"], **settings))
    with pytest.raises(ManifestError, match="answers.jsonl does not exist"):
        evaluate(EvaluateConfig(answers=str(tmp_path / "answers.jsonl"), **settings))
    with pytest.raises(ConfigError, match="scored without a run, so no corpus is asked"):
        EvaluateConfig(answers="a.jsonl", corpus="demo")
