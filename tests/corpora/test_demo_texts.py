"""Texts of the demo: clean text, first sentences, near duplicates, facts and their splits."""

import random

import pytest

from echox.corpora.free_questions import open_questions
from echox.corpora.own_answers import OwnAnswer, OwnAnswers
from echox.corpora.splits import (
    contains_own_answer,
    country_names,
    held_out_phrasings,
    split_questions,
)
from echox.corpora.templates import KINDS, all_facts
from echox.corpora.wording import (
    NearDuplicates,
    clean,
    first_sentences,
    spoken_pieces,
    text_lines,
)
from echox.data.text import contains_answer, number_words


@pytest.mark.parametrize(
    "text, cleaned",
    {
        "It’s  fine – really…": "It's fine, really...",
        "In 1969, 12 men ate 1,234 pies.": "In nineteen sixty nine, "
        "twelve men ate one thousand two hundred thirty four pies.",
        "A well-known café: good": "A well known cafe, good",
        "1905 and 1900": "nineteen oh five and nineteen hundred",
        "2024": "two thousand twenty four",
        "3.5 miles": None,
        "$5": None,
        "the 3rd": None,
        "你好": None,
        "9999999": None,
        "007": None,
        "?!": None,
        "": None,
    }.items(),
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "answer, sentence",
    {
        "Paris. It lies on the Seine.": "Paris.",
        "It is. Yes! No more of it comes here.": "It is. Yes!",
        "It is so. 1. Wash it.": "It is so.",
        "It is 42!\nRight?": "It is forty two!",
        "The U.S. has it. Yes.": None,
        "Dr. Who said so.": None,
        "1. Wash it.\n2. Dry it.": None,
        "Here is a list:\n- one.": None,
        "It never ends": None,
        "": None,
        "One two three four five six.": None,
    }.items(),
)
def test_first_sentences(answer, sentence):
    assert first_sentences(answer, max_words=5) == sentence


def test_spoken_pieces():
    text = (
        "Rain falls in 1969, and it is wet. 你好 there. It costs $5.\n"
        "1. One two three four five six seven eight nine. Yes!"
    )
    pieces = spoken_pieces(text, 6)
    assert pieces == [
        "Rain falls in nineteen sixty",
        "nine, and it is wet.",
        "One two three four",
        "five six seven eight nine.",
    ]
    assert spoken_pieces("", 6) == []


def test_number_words():
    words = {
        0: "zero",
        13: "thirteen",
        40: "forty",
        99: "ninety nine",
        100: "one hundred",
        815: "eight hundred fifteen",
        20_001: "twenty thousand one",
    }
    assert {number: number_words(number) for number in words} == words


def test_near_duplicates_are_those_of_a_full_comparison():
    texts = text_lines("questions.txt")[:400]
    bags = [set(text.lower().rstrip("?.").split()) for text in texts]
    near = NearDuplicates([" ".join(sorted(bag)) for bag in bags], share=0.5)
    rng = random.Random(1)
    for bag in bags[:100]:
        probe = set(rng.sample(sorted(bag), max(1, len(bag) - rng.randrange(4)))) | {"zebra"}
        expected = any(len(probe & other) >= 0.5 * len(probe | other) for other in bags)
        assert (" ".join(probe) in near) == expected or any(
            "," in word or "." in word for word in probe
        )


def test_every_text_of_the_demo_can_be_spoken():
    for fact in all_facts():
        for text in (
            *fact.phrasings,
            *fact.more,
            *fact.reserved,
            fact.sentence,
            *fact.answer.split(" | "),
        ):
            assert clean(text) == text
    for question, answer in open_questions():
        assert clean(question) == question and not contains_answer(question, answer), question
    for frame in text_lines("frames.txt"):
        assert (
            "{word}" in frame and clean(filled := frame.format(word="rain", other="moon")) == filled
        )
    for name in ("questions.txt", "sentences.txt"):
        assert all(clean(line) == line for line in text_lines(name))


def test_facts_have_the_expected_texts():
    facts = {fact.id: fact for fact in all_facts()}
    assert len(facts) == len(all_facts())
    assert facts["plus-3-4"].sentence == "Three plus four is seven."
    assert facts["minus-9-9"].answer == "zero"
    assert facts["daybefore-monday"].answer == "Sunday"
    assert facts["monthafter-december"].answer == "January"
    assert facts["monthlength-february"].sentence == "February has twenty eight days."
    assert (
        facts["capital-netherlands"].phrasings[-1]
        == "The Netherlands has which city as its capital?"
    )
    for fact in facts.values():
        ways = [*fact.phrasings, *fact.more, *fact.reserved]
        assert len(set(ways)) == len(ways) and len(fact.phrasings) >= 4
        assert contains_answer(fact.sentence, fact.answer.removeprefix("the ")), fact.id
    assert (
        facts["plus-37-48"].sentence == "Thirty seven plus forty eight is eighty five."
        and facts["plus-37-48"].kind == "number"
    )
    assert (
        facts["minus-100-1"].answer == "ninety nine"
        and facts["capital-ukraine"].kind == "rare_capital"
    )
    assert contains_answer("It is Kiev.", facts["capital-ukraine"].answer)


def test_splits_share_no_question_and_spread_over_kinds():
    splits = split_questions(all_facts(), test=160, valid=60, unseen=30, seed=3)
    texts = [
        {question.text for question in use}
        for use in (splits.train, splits.valid, splits.test, splits.unseen)
    ]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert [len(use) for use in texts[1:]] == [60, 160, 30]
    kinds = [question.fact.kind for question in splits.test]
    assert {kind: kinds.count(kind) >= 10 for kind in kinds} == dict.fromkeys(KINDS, True)
    hidden = {question.fact.topic for question in splits.unseen}
    assert hidden.isdisjoint(
        question.fact.topic for question in (*splits.train, *splits.valid, *splits.test)
    )
    assert (
        splits
        == split_questions(all_facts(), test=160, valid=60, unseen=30, seed=3)
        != split_questions(all_facts(), test=160, valid=60, unseen=30, seed=4)
    )


def test_a_country_is_hidden_only_where_no_other_question_names_it():
    splits = split_questions(all_facts(), test=0, valid=1, unseen=5_000, seed=1)
    hidden = {
        name
        for question in splits.unseen
        if question.fact.template == "capital"
        for name in country_names(question.fact)
    }
    assert (
        len(hidden) > 180
        and {
            "mongolia",
            "democratic republic of the congo",
            "papua new guinea",
            "georgia",
            "antigua",
            "grenadines",
        }
        <= hidden
    )
    assert hidden.isdisjoint({"republic of the congo", "guinea", "singapore"})


def test_written_phrasings_are_unlike_reserved_ones():
    for template in {fact.template for fact in all_facts() if fact.reserved}:
        fact = next(fact for fact in all_facts() if fact.template == template)
        reserved = NearDuplicates(list(fact.reserved))
        assert len(set(fact.written)) == len(fact.written) >= 12, template
        assert [
            way for way in fact.written if way in reserved or way in (*fact.phrasings, *fact.more)
        ] == []


def test_no_test_question_contains_its_answer():
    """An answer that repeats it would count as right, whatever else it says."""
    facts = {fact.id: fact for fact in all_facts()}
    assert (
        contains_own_answer(facts["minus-6-3"])
        and contains_own_answer(facts["capital-singapore"])
        and not contains_own_answer(facts["minus-6-4"])
    )
    splits = split_questions(
        list(facts.values()), test=5_000, valid=60, unseen=5_000, reworded=5_000, seed=1
    )
    assert not any(
        contains_answer(question.text, question.fact.answer) for question in splits.held_out
    )


def test_no_answer_is_right_for_two_capitals():
    """But for cities of one name: a model that names another country's capital is wrong."""
    facts = [fact for fact in all_facts() if fact.template == "capital"]
    for fact in facts:
        also_right = [
            other.id
            for other in facts
            if other.id != fact.id and contains_answer(other.sentence, fact.answer)
        ]
        assert also_right == [], fact.id


def test_every_kind_is_validated_however_few_facts_it_has():
    splits = split_questions(
        [fact for fact in all_facts() if fact.kind in ("day", "capital")],
        test=160,
        valid=60,
        unseen=0,
        seed=1,
    )
    for use in (splits.valid, splits.test):
        kinds = [question.fact.kind for question in use]
        assert kinds.count("day") >= 3
    only_days = split_questions(
        [fact for fact in all_facts() if fact.kind == "day"], test=160, valid=60, unseen=0, seed=1
    )
    assert (len(only_days.valid), len(only_days.test)) == (3, 11)


def test_each_phrasing_is_held_out_about_equally_often():
    held_out = held_out_phrasings(all_facts(), random.Random(1))
    plus = [held_out[fact.id] for fact in all_facts() if fact.template == "plus"]
    counts = [plus.count(number) for number in range(6)]
    assert max(counts) - min(counts) <= 1


def test_own_answers_survive_a_kill_and_are_generated_once(tmp_path):
    generated = []

    def answer(questions, seed):
        generated.extend((question, seed) for question in questions)
        return [OwnAnswer(f"{question} {seed}", question != "b") for question in questions]

    path = tmp_path / "answers.jsonl"
    assert OwnAnswers(path, answer).to(["a", "b"]) == {
        "a": ("a None", True),
        "b": ("b None", False),
    }
    path.write_text(path.read_text() + '{"question": "c", "se')
    answers = OwnAnswers(path, answer)
    assert answers.to(["c", "a"]) == {"c": ("c None", True), "a": ("a None", True)}
    assert answers.to(["a"], seed=0) == {"a": ("a 0", True)}
    assert OwnAnswers(path, answer).to(["a", "b", "c"]) == {
        "a": ("a None", True),
        "b": ("b None", False),
        "c": ("c None", True),
    }
    assert generated == [("a", None), ("b", None), ("c", None), ("a", 0)]
