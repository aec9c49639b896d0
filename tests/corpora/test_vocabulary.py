"""Words of the vocabulary: single tokens, the most frequent first, each in so many texts."""

from collections import Counter

import pytest

from echox.corpora.vocabulary import missing_takes, other_words, random_word_texts, whole_words

TOKENS = [" The", "ing", " the", " str", " rain", " Paris", " rains"]


@pytest.mark.parametrize(
    "most, words",
    [(0, []), (1, ["The"]), (2, ["the", "rain"]), (9, ["the", "rain", "Paris", "rains"])],
)
def test_frequent_words_are_taken_once_and_in_lower_case_where_it_exists(most, words):
    assert whole_words(TOKENS, most, lambda word: word != "str") == words


def test_only_words_of_the_dictionary_are_taken():
    pytest.importorskip("hibari", reason="needs the extra `demo`: pip install -e '.[demo]'")
    from echox.corpora.voices.hibari import has_pronunciation

    tokens = [" ideals", " jurisdict", " Istanbul", " neglig", " wives", " categorized", " langu"]
    words = ["ideals", "Istanbul", "wives", "categorized"]
    assert whole_words(tokens, len(tokens), has_pronunciation) == words


def test_words_lack_what_texts_do_not_have():
    texts = ["Rain in Paris, the rain?", "rain's rain"]
    assert missing_takes(["rain", "Paris", "moon"], 2, texts) == {"rain": 0, "Paris": 1, "moon": 2}


def test_every_word_is_in_as_many_texts_as_there_are_takes():
    words = [f"word{number}" for number in range(20)]
    takes = dict.fromkeys(words, 3) | {"word4": 1, "word5": 0}
    texts = random_word_texts(takes, words_per_clip=6, seed=1)
    assert Counter(word for text in texts for word in text.split()) == Counter(takes)
    assert max(len(text.split()) for text in texts) == 6 and len(set(texts)) == len(texts)
    assert texts == random_word_texts(takes, words_per_clip=6, seed=1)


def test_other_words_are_taken_once_and_in_lower_case_where_it_exists():
    texts = ["Eleven cats in Costa Rica?", "What's eleven minus 2, in Rica?"]
    assert other_words(texts, known=["in", "Cats", "minus"]) == [
        "Costa",
        "eleven",
        "Rica",
        "What's",
    ]
