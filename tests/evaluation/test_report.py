"""The report of a tiny run, with scorers that need no weights."""

import dataclasses
import json
import shutil

import pytest
from tiny_run import write_questions, write_run, write_speech

from echox.core.errors import AssetError, CheckpointError, ConfigError
from echox.evaluation import evaluated_run
from echox.evaluation.question_sections import first_sentence
from echox.evaluation.report import EvaluateConfig, evaluate
from echox.evaluation.sections import SECTIONS


class Parrot:
    """A recogniser with the same transcript for every clip."""

    name = "parrot"
    clips = 0

    def __init__(self, weights, **_):
        pass

    def transcribe(self, clips, rate_hz):
        Parrot.clips += len(clips)
        return ["It is Paris"] * len(clips)


class Friend:
    """A naturalness model with the same score for every clip."""

    name = "friend"

    def score(self, clip, rate_hz):
        return 4.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_questions(folder, "questions.test", 6)
    write_questions(folder, "unseen.test", 2)
    write_questions(folder, "reworded.test", 3)
    write_questions(folder, "open.test", 4)
    write_questions(folder, "silent.test", 2, answer="I did not hear a question.")
    write_questions(folder, "free.test", 3)
    write_speech(folder, "speech.test", ["It is Paris", "It is three", "Hello.", "Three."])
    return folder


@pytest.fixture
def config(run, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated_run, "Transcriber", Parrot)
    monkeypatch.setattr(evaluated_run, "Quality", lambda device: Friend())
    Parrot.clips = 0
    return EvaluateConfig(
        run=str(run),
        corpus=str(corpus),
        out_dir=str(tmp_path / "report"),
        spoken_rows=4,
        cascade_rows=2,
        t2c_rows=1,
        max_tokens=4,
        device="cpu",
        batch_size=3,
    )


def value(report, section, group, metric):
    return report["sections"][section]["scores"][group][metric]["value"]


def test_every_section_is_scored(config, tmp_path, capsys):
    report = evaluate(config)
    assert (
        list(report["sections"]) == [section.name for section in SECTIONS] and not report["skipped"]
    )
    questions = report["sections"]["questions"]["scores"]
    assert set(questions) == {"all", "kind capital", "kind day", "voice noise"}
    assert (
        questions["all"]["S2T accuracy"]["count"] == 6
        and questions["all"]["S2S accuracy"]["count"] == 4
    )
    # The transcripts have the right answer where the model's text has none.
    assert (
        value(report, "questions", "all", "S2T accuracy") == 0.0
        and value(report, "questions", "all", "S2S accuracy") == 1.0
    )
    assert (
        value(report, "questions", "all", "gap") == -1.0
        and value(report, "questions", "all", "MOS") == 4.0
    )
    assert (
        questions["all"]["S2S accuracy"]["scorer"] == "parrot"
        and questions["all"]["S2T accuracy"]["protocol"] == "s2t-em"
    )
    open_questions = report["sections"]["open"]["scores"]["all"]
    assert (
        open_questions["typed accuracy"]["count"]
        == open_questions["typed accuracy, as pretrained"]["count"]
        == 4
    )
    assert {"typed accuracy, change by training", "typed minus spoken", "question WER"} <= set(
        open_questions
    )
    assert value(report, "silent", "all", "asked to repeat") == 0.0
    assert (
        value(report, "free", "all", "CTC token error") > 0
        and value(report, "free", "all", "word F1 with typed answer") is not None
    )
    assert report["sections"]["t2c"]["rows"] == 2 and {
        "recordings WER",
        "codec WER",
        "T2C WER",
        "codec MOS",
    } <= set(report["sections"]["t2c"]["scores"]["all"])
    assert value(report, "cascade", "Echo minus greedy text, T2C", "speech WER") == 0.0
    assert (
        report["sections"]["cascade"]["scores"]["recogniser, typed question, T2C"]["text accuracy"][
            "count"
        ]
        == 2
    )
    for section in report["sections"].values():
        for row in section["scores"].values():
            for score in row.values():
                assert score["protocol"] and score["low"] <= score["value"] <= score["high"], score
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## T2C alone" in page and "`s2s-em`, by parrot" in page and "wavs/questions/" in page
    assert len(list((tmp_path / "report" / "wavs" / "questions").iterdir())) == 4
    assert "S2S accuracy" in capsys.readouterr().out


def test_links_of_the_page_lead_to_files(config, tmp_path):
    evaluate(config)
    page = (tmp_path / "report" / "report.md").read_text()
    links = [part.split(")")[0] for part in page.split("](")[1:]]
    assert len(links) == 9 and all((tmp_path / "report" / link).is_file() for link in links)


def test_a_stopped_report_is_resumed(config, tmp_path, monkeypatch):
    whole = evaluate(config)
    (tmp_path / "report" / "sections" / "cascade.json").write_text("{half")
    Parrot.clips = 0
    again = evaluate(config)
    assert 0 < Parrot.clips < 12  # the cascade alone
    assert again["sections"]["questions"] == whole["sections"]["questions"]
    assert again["sections"]["cascade"]["scores"] == whole["sections"]["cascade"]["scores"]
    monkeypatch.setattr(evaluated_run, "load_pipeline", None)  # nothing is left to answer
    assert evaluate(config)["sections"] == again["sections"]


def test_other_questions_or_samples_are_scored_anew(config):
    evaluate(config)
    config.spoken_rows = 2
    assert evaluate(config)["sections"]["questions"]["scores"]["all"]["S2S accuracy"]["count"] == 2


def test_a_sample_is_drawn_by_the_seed(config):
    run = evaluated_run.EvaluatedRun(config, None, None, None)
    assert (
        run.sample(range(50), 5, "a")
        == run.sample(range(50), 5, "a")
        != run.sample(range(50), 5, "b")
    )
    assert run.sample(range(50), 5, "a") == sorted(run.sample(range(50), 5, "a"))
    assert run.sample(range(3), 5, "a") == [0, 1, 2]


def test_missing_parts_are_named_and_the_others_scored(config, run, corpus, tmp_path, capsys):
    shutil.copytree(run / "s2t", tmp_path / "half" / "s2t")
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "free.test.jsonl").unlink()
    config.run, config.corpus = str(tmp_path / "half"), str(tmp_path / "corpus")
    report = evaluate(config)
    assert (
        list(report["sections"]) == ["questions", "reworded", "unseen", "open", "silent"]
        and Parrot.clips == 0
    )
    assert "S2S accuracy" not in report["sections"]["questions"]["scores"]["all"]
    assert report["skipped"] == {
        "free": "the corpus has no free.test.jsonl",
        "t2c": "the run has no stage that synthesizes text",
        "cascade": "the run has no stage that answers aloud",
    }
    assert "not scored: free" in capsys.readouterr().out


def test_sections_of_no_rows_are_left_out(config, run, corpus):
    config.run, config.corpus = str(run), str(corpus)
    config.t2c_rows = config.cascade_rows = config.free_rows = config.open_rows = 0
    report = evaluate(config)
    assert list(report["sections"]) == ["questions", "reworded", "unseen", "silent"]
    assert report["skipped"] == {
        name: f"{name}_rows is 0" for name in ("open", "free", "t2c", "cascade")
    }


def test_t2c_alone_is_scored_too(config, run, corpus, tmp_path):
    # Under another name: what a stage is used for decides, not what it is called.
    shutil.copytree(run / "t2c", tmp_path / "voice" / "reader")
    config.run, config.corpus = str(tmp_path / "voice"), str(corpus)
    report = evaluate(config)
    assert list(report["sections"]) == ["t2c"] and list(report["checkpoints"]) == ["reader"]
    assert (
        report["skipped"]["questions"]
        == "the run has no stage that answers aloud or answers in text"
    )


def test_a_codec_without_a_vocoder_is_refused_before_the_first_section(
    config, run, tmp_path, monkeypatch
):
    shutil.copytree(run, tmp_path / "mute")
    for stage in ("echo", "t2c"):
        path = tmp_path / "mute" / stage / "final" / "meta.json"
        meta = json.loads(path.read_text())
        del meta["checksum"]
        meta["recipe"]["codec"] = {"name": "hubert_units", "folder": str(tmp_path / "units")}
        path.write_text(json.dumps(meta))
    shutil.rmtree(tmp_path / "mute" / "echo")
    config.run = str(tmp_path / "mute")
    monkeypatch.setattr(
        evaluated_run.EvaluatedRun, "rows", lambda *_: pytest.fail("rows were read")
    )
    with pytest.raises(ConfigError, match="t2c.*cannot be heard.*no vocoder"):
        evaluate(config)


@pytest.mark.parametrize(
    ("field", "model"),
    [("encoder_folder", "a Whisper model"), ("backbone_folder", "a causal language model")],
)
def test_parts_that_were_moved_are_read_from_where_they_are_now(
    config, run, tmp_path, field, model
):
    config = dataclasses.replace(config, **{field: str(tmp_path)})
    scored = evaluated_run.EvaluatedRun(config, run, tmp_path, tmp_path)
    with pytest.raises(AssetError, match=f"^{tmp_path} does not hold {model}"):
        scored.pipeline  # noqa: B018  # loaded at its first use


def test_without_mos_rows_there_is_no_mos(config, monkeypatch):
    config.mos_rows = 0
    report = evaluate(config)
    assert "MOS" not in report["sections"]["questions"]["scores"]["all"]


def test_wrong_folders_are_one_sentence(config, run, tmp_path):
    config.run = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no finished stage that answers or synthesizes"):
        evaluate(config)
    config.run, config.corpus = str(run), str(tmp_path)
    with pytest.raises(ConfigError, match="none of the test manifests"):
        evaluate(config)
    config.corpus = None
    with pytest.raises(ConfigError, match="names no corpus; set corpus=FOLDER"):
        evaluate(config)


def test_first_sentences():
    assert (
        first_sentence("It is blue. That is why.") == "It is blue."
        and first_sentence(" One 3.5 two") == "One 3.5 two"
    )
