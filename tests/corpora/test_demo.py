"""The demo corpus: tests are never trained on, manifests are valid, and builds are resumed."""

import json
import logging
import re
import shutil
from collections import Counter

import numpy as np
import pytest

from echox.core.errors import AssetError, ConfigError, SignalError
from echox.corpora import synthesis
from echox.corpora.augmentation import AugmentConfig
from echox.corpora.demo import build_demo_corpus
from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.own_answers import OwnAnswer
from echox.corpora.recording import ClipRecorder
from echox.corpora.templates import all_facts, capitals
from echox.corpora.voices import Role, Voice, available_voices
from echox.corpora.wording import NearDuplicates, plain_words
from echox.data.audio import load_audio
from echox.data.manifest import read_manifest, read_manifests, spoken_pairs
from echox.data.manifest_check import ManifestCheckConfig, check_rows

pytest.importorskip("hibari", reason="hibari-tts is not installed, so there is no voice to list")

TRAIN, TEST = (
    ("questions.train.jsonl", "free.train.jsonl", "heard.train.jsonl"),
    ("questions.test.jsonl", "unseen.test.jsonl", "free.test.jsonl"),
)
SHARE = 0.03
# Effects have tests of their own, and take most of the time in which a clip is written.
PLAIN = AugmentConfig(speed=(1.0, 1.0), noise_share=0.0, room_share=0.0, telephone_share=0.0)


class Humming(Voice):
    """A voice for tests: a short hum per word."""

    name, rate_hz, role = "humming", 16_000, Role.TRAIN

    def _render(self, text, seed):
        return 0.5 * np.sin(np.arange(400 * len(text.split())) / (5 + seed % 20))


@pytest.fixture
def humming(monkeypatch):
    monkeypatch.setattr(synthesis, "voice", lambda name: Humming())


@pytest.fixture
def failing_voices(monkeypatch):
    """A function after which the named voices fail, and the others hum."""

    def only(*names):
        def voice(name):
            if name in names:
                raise AssetError("the voice is not here")
            return Humming()

        monkeypatch.setattr(synthesis, "voice", voice)

    return only


def own_answers(questions, seed):
    """A language model for tests; about one answer in four is unusable."""
    answers = [
        f"{seed} 中"
        if len(question) % 4 == 0
        else f"I was asked {question.lower().rstrip('?.!')}. Then more"
        for question in questions
    ]
    return [OwnAnswer(answer, is_whole="more" not in answer) for answer in answers]


def token_texts():
    """A vocabulary for tests, in the order of its ids."""
    return [
        "<s>",
        " the",
        "ing",
        " Paris",
        " str",
        " The",
        " ten",
        " a",
        " Ten",
        " x",
        " rain",
        " so",
        " moon",
        " go",
    ] * 3


def config(folder, **changes) -> DemoCorpusConfig:
    settings = {"share": SHARE, "workers": 1, "words_per_clip": 3, "augment": PLAIN, **changes}
    return DemoCorpusConfig(folder=str(folder), **settings)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus that tests read and leave as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "voice", lambda name: Humming())
        return build_demo_corpus(
            config(tmp_path_factory.mktemp("corpus")), own_answers, token_texts
        )


def rows_of(folder, names):
    return read_manifests([folder / name for name in names])


def test_every_manifest_is_valid(corpus):
    summary = json.loads((corpus / "corpus.json").read_text())
    assert len(summary["manifests"]) == 11
    for name, counts in summary["manifests"].items():
        report = check_rows(ManifestCheckConfig(path=str(corpus / name)), progress=False)
        assert report.problems == [] and report.rows == counts["rows"] > 0
        assert set(report.rates_hz) == {16_000}
    assert set(summary["manifests"]["questions.train.jsonl"]["kinds"]) == {
        "capital",
        "arithmetic",
        "day",
        "month",
        "general",
    }


def test_no_test_question_and_no_test_voice_is_trained(corpus):
    train, test = rows_of(corpus, TRAIN), rows_of(corpus, TEST)
    train_texts = {plain_words(row.answer.transcription) for row in train}
    assert train_texts.isdisjoint(plain_words(row.answer.transcription) for row in test)
    valid = rows_of(corpus, ["questions.valid.jsonl", "free.valid.jsonl"])
    assert train_texts.isdisjoint(plain_words(row.answer.transcription) for row in valid)
    assert {row.extra["voice"] for row in valid} <= set(available_voices(Role.VALID))
    assert {row.extra["voice"] for row in train} <= set(available_voices(Role.TRAIN))
    assert {row.extra["voice"] for row in test} <= set(available_voices(Role.TEST))
    assert {row.question.audio for row in train}.isdisjoint(row.question.audio for row in test)


def test_unseen_facts_are_never_trained_and_test_facts_in_other_phrasings(corpus):
    trained = {row.extra["fact"] for row in read_manifest(corpus / "questions.train.jsonl").rows}
    unseen = read_manifest(corpus / "unseen.test.jsonl").rows
    assert all(row.extra["unseen_fact"] and row.extra["fact"] not in trained for row in unseen)
    assert {
        row.extra["fact"] for row in read_manifest(corpus / "questions.test.jsonl").rows
    } <= trained


def test_held_out_sentences_are_not_trained(corpus):
    trained = NearDuplicates(
        [row.answer.text for row in read_manifest(corpus / "speech.train.jsonl").rows]
    )
    held_out = rows_of(corpus, ["speech.valid.jsonl", "speech.test.jsonl"])
    assert {row.extra["kind"] for row in held_out} == {"answer", "sentence", "own_answer"}
    for row in held_out:
        assert (row.answer.text in trained) == (row.extra["kind"] == "answer")
    for row in read_manifest(corpus / "free.test.jsonl").rows:
        assert not row.answer.text or row.answer.text not in trained


def test_free_questions_have_usable_answers_and_always_transcriptions(corpus):
    rows = rows_of(corpus, ["free.train.jsonl", "free.test.jsonl"])
    assert all(row.answer.transcription for row in rows)
    assert all(
        row.answer.text in ("", f"I was asked {row.answer.transcription.lower().rstrip('?.!')}.")
        for row in rows
    )
    assert {bool(row.answer.text) for row in rows} == {True, False}


def test_transcription_rows_have_sentences_and_vocabulary_words(corpus):
    rows = read_manifest(corpus / "heard.train.jsonl").rows
    assert {row.extra["kind"] for row in rows} == {"sentence", "words"} and not any(
        row.answer.text for row in rows
    )
    rows = [row for row in rows if row.extra["kind"] == "words"]
    texts = [row.answer.transcription.split() for row in rows]
    counts = Counter(word for words in texts for word in words)
    # Words that questions and sentences have twice, such as "the", need no clip of their own.
    trained = ["questions.train.jsonl", "free.train.jsonl", "heard.train.jsonl"]
    spoken = Counter(
        word
        for row in rows_of(corpus, trained)
        if row.extra["kind"] != "words"
        for word in re.findall(r"[a-z]+(?:'[a-z]+)?", row.answer.transcription.lower())
    )
    words = ("the", "Paris", "ten", "a", "rain", "so", "moon", "go")
    assert counts == {word: 2 - spoken[word.lower()] for word in words if spoken[word.lower()] < 2}
    assert counts["moon"] and not counts["the"] and all(len(words) <= 3 for words in texts)


def test_training_names_no_hidden_country(humming, tmp_path):
    settings = config(
        tmp_path,
        kinds=["capital", "rare_capital", "number"],
        facts_by_kind={"capital": 800, "rare_capital": 800, "number": 900},
        clips_by_kind={"number": 0.2},
        unseen_facts=300,
        hide_names=True,
    )
    folder = build_demo_corpus(settings, own_answers, token_texts)
    unseen = [row.extra for row in read_manifest(folder / "unseen.test.jsonl").rows]
    assert {label["kind"] for label in unseen} == {"capital", "rare_capital", "number"}
    countries = {
        label["fact"].partition("-")[2].replace("_", " ")
        for label in unseen
        if "capital" in label["kind"]
    }
    rows = rows_of(folder, [*TRAIN, "speech.train.jsonl"])
    texts = [
        f" {' '.join(plain_words(text))} "
        for row in rows
        for text in (row.answer.transcription, row.answer.text)
    ]
    assert countries and not any(f" {country} " in text for country in countries for text in texts)
    assert {
        label["answer"].partition(" | ")[0] for label in unseen if "capital" in label["kind"]
    }.isdisjoint(row.answer.text.rpartition(" is ")[2].rstrip(".") for row in rows)


def test_reworded_questions_are_trained_facts_in_untrained_phrasings(humming, tmp_path):
    folder = build_demo_corpus(
        config(tmp_path, kinds=["capital", "day"], reworded_questions=300, more_phrasings=True),
        own_answers,
        token_texts,
    )
    rows = read_manifest(folder / "reworded.test.jsonl").rows
    train = read_manifest(folder / "questions.train.jsonl").rows
    assert {row.extra["fact"] for row in rows} <= {row.extra["fact"] for row in train} and len(
        rows
    ) == 3
    ways = {way for fact in all_facts() for way in (*fact.phrasings, *fact.more)}
    assert {row.answer.transcription for row in rows}.isdisjoint(ways) and {
        row.extra["voice"] for row in rows
    } <= set(available_voices(Role.TEST))
    before = build_demo_corpus(
        config(tmp_path / "fewer", kinds=["capital", "day"]), own_answers, token_texts
    )
    assert len(train) > 1.6 * len(read_manifest(before / "questions.train.jsonl").rows)


def test_open_questions_have_answers_and_no_near_duplicate_is_trained(humming, tmp_path):
    folder = build_demo_corpus(config(tmp_path, open_questions=200), own_answers, token_texts)
    rows = read_manifest(folder / "open.test.jsonl").rows
    assert len(rows) == 6 and all(row.extra["answer"] for row in rows)
    near = NearDuplicates([row.answer.transcription for row in rows])
    assert not any(
        row.answer.transcription in near
        for row in rows_of(folder, ["questions.train.jsonl", "free.train.jsonl"])
    )


def test_silent_clips_have_no_words_and_an_answer(tmp_path):
    silent = config(
        tmp_path,
        silent_clips=200,
        free_questions=False,
        test_questions=0,
        unseen_facts=0,
        heard_sentences=0,
        kinds=["day"],
    )
    rows = read_manifest(build_demo_corpus(silent) / "silent.train.jsonl").rows
    assert len(rows) == 6 and {spoken_pairs(row)[0][1] for row in rows} == {""}
    assert {row.answer.text for row in rows} == {"I did not hear a question."}
    assert all(0.4 < len(load_audio(row.question.audio, 16_000)) / 16_000 < 5.1 for row in rows)
    assert len({load_audio(row.question.audio, 16_000).square().mean().item() for row in rows}) > 3


def test_framed_questions_have_vocabulary_words_and_answers(humming, tmp_path):
    plain = rows_of(
        build_demo_corpus(config(tmp_path / "plain"), own_answers, token_texts),
        ["free.train.jsonl"],
    )
    framed = rows_of(
        build_demo_corpus(
            config(tmp_path / "framed", framed_questions=200), own_answers, token_texts
        ),
        ["free.train.jsonl"],
    )
    before, after = ({row.answer.transcription for row in rows} for rows in (plain, framed))
    assert len(after) == len(before) + 6 and before < after
    words = {"the", "paris", "ten", "a", "rain", "so", "moon", "go"}
    assert all(words & set(plain_words(text)) for text in after - before) and any(
        row.answer.text for row in framed if row.answer.transcription not in before
    )


def test_own_answers_are_spoken_in_pieces(humming, tmp_path):
    folder = build_demo_corpus(config(tmp_path, heard_answers=500), own_answers, token_texts)
    rows = [row for row in rows_of(folder, ["heard.train.jsonl"]) if row.extra["kind"] == "answer"]
    assert len(rows) == 15 and "Then more" in {row.answer.transcription for row in rows}
    assert not any(row.answer.text for row in rows) and {row.extra["voice"] for row in rows} <= set(
        available_voices(Role.TRAIN)
    )


def test_typed_numbers_leave_hidden_ones_out(humming, tmp_path):
    counts = {
        "facts_by_kind": {"number": 4_000},
        "clips_by_kind": {"number": 0.1},
        "typed_numbers": 400_000,
    }
    tests = {
        "unseen_facts": 200,
        "test_questions": 1_500,
        "reworded_questions": 200,
        "free_questions": False,
    }
    folder = build_demo_corpus(config(tmp_path, kinds=["number"], **counts, **tests))
    rows = read_manifest(folder / "typed.train.jsonl").rows
    held_out = rows_of(
        folder,
        [
            "questions.test.jsonl",
            "questions.valid.jsonl",
            "unseen.test.jsonl",
            "reworded.test.jsonl",
        ],
    )
    assert {row.question.text for row in rows}.isdisjoint(
        row.answer.transcription for row in held_out
    )
    hidden = {row.extra["fact"] for row in read_manifest(folder / "unseen.test.jsonl").rows}
    facts = {fact.id: fact for fact in all_facts() if fact.kind == "number"}
    assert (
        len(rows) > 0.9 * len(facts)
        and hidden
        and hidden.isdisjoint(row.extra["fact"] for row in rows)
    )
    ways = {
        fact_id: {*fact.with_more().phrasings, *fact.written} for fact_id, fact in facts.items()
    }
    assert all(
        row.question.audio is None and row.question.text in ways[row.extra["fact"]] for row in rows
    )
    assert all(row.answer.text == facts[row.extra["fact"]].sentence for row in rows)


def test_typed_rows_have_facts_and_own_answers(humming, tmp_path):
    folder = build_demo_corpus(
        config(
            tmp_path,
            kinds=["day", "capital"],
            typed_questions=1_000,
            typed_answers=2_000,
            unseen_facts=30,
        ),
        own_answers,
        token_texts,
    )
    facts = {fact.id: fact for fact in all_facts()}
    hidden = {row.extra["fact"] for row in read_manifest(folder / "unseen.test.jsonl").rows}
    rows = read_manifest(folder / "typed.train.jsonl").rows
    of_facts = [row for row in rows if row.extra["kind"] != "free"]
    assert (
        len(of_facts) == 30
        and {row.extra["kind"] for row in of_facts} == {"day", "capital"}
        and hidden.isdisjoint(row.extra["fact"] for row in of_facts)
    )
    assert all(row.question.text in facts[row.extra["fact"]].written for row in of_facts)
    of_model = [row for row in rows if row.extra["kind"] == "free"]
    assert {row.question.text for row in of_model} <= {
        row.answer.transcription for row in read_manifest(folder / "free.train.jsonl").rows
    }
    # As the language model generates it, unspeakable text included; an end is trained only where
    # the model itself ended.
    assert {row.answer.text[-1] for row in of_model} == {"e", "中"} and len(of_model) > 20
    assert all(
        row.answer.extra.get("unfinished", False) == row.answer.text.endswith("more")
        for row in of_model
    )


def test_numbers_are_grouped_with_numbers(humming, tmp_path):
    folder = build_demo_corpus(config(tmp_path, number_takes=2), own_answers, token_texts)
    text = " ".join(row.answer.transcription for row in rows_of(folder, ["heard.train.jsonl"]))
    assert text.count("nineteen") >= 2 and text.count("ninety nine") >= 2 and "one hundred" in text


def test_clips_by_kind_changes_clips_and_keeps_all_facts(humming, tmp_path):
    whole = build_demo_corpus(
        config(tmp_path / "whole", clips_per_question=1, free_questions=False)
    )
    changed = build_demo_corpus(
        config(
            tmp_path / "some",
            clips_per_question=1,
            free_questions=False,
            clips_by_kind={"arithmetic": 0.5, "day": 3},
        )
    )
    before, after = (
        Counter(row.extra["kind"] for row in rows_of(folder, ["questions.train.jsonl"]))
        for folder in (whole, changed)
    )
    assert after == {**before, "arithmetic": before["arithmetic"] // 2, "day": 3 * before["day"]}
    facts = [
        {row.extra["fact"] for row in rows_of(folder, ["questions.train.jsonl"])}
        for folder in (whole, changed)
    ]
    assert facts[0] == facts[1]


def test_only_configured_kinds_and_facts_are_used(humming, tmp_path):
    kinds, most = ["capital", "day", "month"], {"capital": 7, "day": 100}
    few = DemoCorpusConfig(
        folder=str(tmp_path),
        kinds=kinds,
        facts_by_kind=most,
        clips_per_question=1,
        test_questions=5,
        valid_questions=5,
        unseen_facts=0,
        free_questions=False,
        heard_sentences=0,
        vocabulary_words=0,
        speech_hours=0.01,
        workers=1,
    )
    rows = rows_of(build_demo_corpus(few), ["questions.train.jsonl", "questions.test.jsonl"])
    facts = Counter(fact.split("-")[0] for fact in {row.extra["fact"] for row in rows})
    assert facts["capital"] == 7 and facts["dayafter"] + facts["daybefore"] == 14
    assert {row.extra["kind"] for row in rows} == set(kinds)
    every = [fact.id for fact in capitals()]
    places = sorted(
        every.index(row.extra["fact"]) for row in rows if row.extra["kind"] == "capital"
    )
    # Taken from all of the alphabet.
    assert places[0] < len(every) // 7 and places[-1] >= len(every) * 6 // 7


def test_without_a_vocabulary_all_words_of_the_questions_are_rare(humming, tmp_path):
    folder = build_demo_corpus(
        config(tmp_path, vocabulary_words=0, rare_word_takes=2), own_answers, token_texts
    )
    rows = [row for row in rows_of(folder, ["heard.train.jsonl"]) if row.extra["kind"] == "words"]
    counts = Counter(word.lower() for row in rows for word in row.answer.transcription.split())
    assert counts["the"] == counts["what"] == 2 and set(counts.values()) == {2}


def test_clips_of_words_begin_with_the_lead(humming, tmp_path):
    folders = [
        build_demo_corpus(
            config(tmp_path / name, rare_word_takes=1, words_lead=lead), own_answers, token_texts
        )
        for name, lead in (("plain", ""), ("led", "And"))
    ]
    plain, led = (
        [
            row.answer.transcription
            for row in rows_of(folder, ["heard.train.jsonl"])
            if row.extra["kind"] == "words"
        ]
        for folder in folders
    )
    assert plain and led == [f"And {text}" for text in plain]


@pytest.mark.parametrize("setting", ["kinds", "facts_by_kind"])
def test_unknown_kinds_are_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{setting} has no kind 'dy'; did you mean 'day'"):
        config(tmp_path, **{setting: ["dy"] if setting == "kinds" else {"dy": 3}})
    with pytest.raises(ConfigError, match="kinds is empty"):
        config(tmp_path, kinds=[])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dy": 2}, "did you mean 'day'"),
        ({"day": 1.5}, "a whole number"),
        ({"day": 0}, "a whole number"),
    ],
)
def test_invalid_clips_by_kind_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, clips_by_kind=changes)


def test_rare_words_have_as_many_clips_as_configured(humming, tmp_path):
    folder = build_demo_corpus(
        config(tmp_path, rare_word_takes=2, vocabulary_takes=1), own_answers, token_texts
    )
    texts = [
        row.answer.transcription.split()
        for row in rows_of(folder, ["heard.train.jsonl"])
        if row.extra["kind"] == "words"
    ]
    counts = Counter(word for words in texts for word in words)
    question_words = {
        word.lower()
        for row in rows_of(folder, ["questions.train.jsonl"])
        for word in row.answer.transcription.rstrip("?.").split()
        if word.isalpha()
    }
    rare = {
        word
        for word in counts
        if word.lower() in question_words - {"the", "paris", "ten", "a", "rain", "so", "moon", "go"}
    }
    assert rare and {counts[word] for word in rare} == {2} and counts["moon"] == 1


def test_template_answers_have_clips(corpus):
    rows = read_manifest(corpus / "questions.train.jsonl").rows
    assert all(
        row.answer.audio and row.extra["answer"].lower() in row.answer.text.lower() for row in rows
    )


def test_a_built_corpus_is_replaced_only_with_overwrite(corpus, humming, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "copy")
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    build_demo_corpus(config(folder), own_answers, token_texts)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    with pytest.raises(
        AssetError,
        match=r"copy was made otherwise \(corpus.clips_per_question 2 -> 1\), "
        "and runs may have learned from it; .*overwrite=true",
    ):
        build_demo_corpus(config(folder, clips_per_question=1), own_answers, token_texts)
    with pytest.raises(AssetError, match="made otherwise .from other texts, or by other voices.,"):
        build_demo_corpus(config(folder), own_answers)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    build_demo_corpus(
        config(folder, clips_per_question=1), own_answers, token_texts, overwrite=True
    )
    fewer = set(folder.rglob("*.flac"))
    assert fewer < set(before) and all(path.stat().st_mtime_ns == before[path] for path in fewer)


def test_an_interrupted_build_gives_the_same_corpus(corpus, humming, tmp_path, monkeypatch):
    folder, answered, add_outcome = tmp_path, [], synthesis.add_outcome

    def killed_after_fifty(outcome, report):
        add_outcome(outcome, report)
        if report.written == 50:
            raise KeyboardInterrupt

    def count(questions, seed):
        answered.extend(questions)
        return own_answers(questions, seed)

    monkeypatch.setattr(synthesis, "add_outcome", killed_after_fifty)
    with pytest.raises(KeyboardInterrupt):
        build_demo_corpus(config(folder), count, token_texts)
    assert not (folder / "corpus.json").exists()
    monkeypatch.setattr(synthesis, "add_outcome", add_outcome)
    build_demo_corpus(config(folder), count, token_texts)
    assert len(answered) == len(set(answered))
    for path in (*corpus.rglob("*.jsonl"), *corpus.rglob("*.flac")):
        assert (folder / path.relative_to(corpus)).read_bytes() == path.read_bytes()


def test_without_a_language_model_free_questions_serve_transcription(humming, tmp_path):
    build_demo_corpus(config(tmp_path))
    assert {row.answer.text for row in read_manifest(tmp_path / "free.train.jsonl").rows} == {""}
    assert {row.extra["kind"] for row in read_manifest(tmp_path / "speech.train.jsonl").rows} == {
        "answer",
        "sentence",
        "question",
    }


def test_free_questions_can_be_left_out_and_their_files_are_deleted(corpus, humming, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "copy")
    build_demo_corpus(config(folder, free_questions=False), own_answers, overwrite=True)
    assert {
        path.name for path in folder.glob("*.jsonl") if path.name.startswith(("free", "unseen"))
    } == {"unseen.test.jsonl"}
    assert len(json.loads((folder / "corpus.json").read_text())["manifests"]) == 8


def test_a_failing_voice_costs_its_own_rows_and_one_warning(failing_voices, tmp_path, caplog):
    failing_voices("joe")
    with caplog.at_level(logging.WARNING):
        build_demo_corpus(config(tmp_path, test_questions=600))
    assert "voice joe could not be made" in caplog.text and len(caplog.messages) == 1
    assert "joe" not in {
        row.extra["voice"] for row in read_manifest(tmp_path / "questions.test.jsonl").rows
    }


def test_a_manifest_without_any_clip_is_refused(failing_voices, tmp_path):
    failing_voices(*available_voices(Role.TEST))
    with pytest.raises(AssetError, match="test.jsonl would be empty.*the voice is not here"):
        build_demo_corpus(config(tmp_path))


def test_without_test_questions_no_test_voice_is_needed(failing_voices, tmp_path):
    failing_voices(*available_voices(Role.TEST))
    build_demo_corpus(config(tmp_path, test_questions=0, unseen_facts=0, free_questions=False))
    assert {path.name for path in tmp_path.glob("*.test.jsonl")} == {"speech.test.jsonl"}


@pytest.mark.parametrize(
    "field, value",
    [
        ("share", 0.0),
        ("share", 1.5),
        ("clips_per_question", 0),
        ("workers", 0),
        ("speech_hours", -1.0),
        ("facts_by_kind", {"day": 0}),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        DemoCorpusConfig(**{field: value})


def test_a_real_voice_is_recorded(tmp_path):
    recorder = ClipRecorder(tmp_path, 1, AugmentConfig())
    clean, changed = (
        recorder.clip("Three plus four is seven.", "hibari"),
        recorder.clip("What is three plus four?", "hibari_male", augmented=True),
    )
    assert recorder.record(workers=1).failures == []
    for path in (clean, changed):
        assert 1 < len(load_audio(path, 16_000)) / 16_000 < 5
    with pytest.raises(SignalError):
        load_audio(tmp_path / "other.flac", 16_000)
