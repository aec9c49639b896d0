"""Words of the vocabulary: single tokens, the most frequent first, each in so many texts."""

from collections import Counter

import pytest

from echox.corpora.vocabulary import other_words, random_word_texts, whole_words

TOKENS = [" The", "ing", " the", " str", " rain", " Paris", " rains"]


@pytest.mark.parametrize(
    "most, words",
    [(0, []), (1, ["The"]), (2, ["the", "rain"]), (9, ["the", "rain", "Paris", "rains"])],
)
def test_frequent_words_are_taken_once_and_in_lower_case_where_it_exists(most, words):
    assert whole_words(TOKENS, most) == words


def test_every_word_is_in_as_many_texts_as_there_are_takes():
    words = [f"word{number}" for number in range(20)]
    texts = random_word_texts(words, takes=3, words_per_clip=6, seed=1)
    assert Counter(word for text in texts for word in text.split()) == dict.fromkeys(words, 3)
    assert max(len(text.split()) for text in texts) == 6 and len(set(texts)) == len(texts)
    assert texts == random_word_texts(words, takes=3, words_per_clip=6, seed=1)


def test_other_words_are_taken_once_and_in_lower_case_where_it_exists():
    texts = ["Eleven cats in Costa Rica?", "What's eleven minus 2, in Rica?"]
    assert other_words(texts, known=["in", "Cats", "minus"]) == [
        "Costa",
        "eleven",
        "Rica",
        "What's",
    ]
