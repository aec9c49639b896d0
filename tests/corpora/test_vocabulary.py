"""The language model's words: whole ones, the commonest first, and each in as many clips as asked."""

from collections import Counter

import pytest

from echox.corpora.vocabulary import in_random_company, other_words, whole_words

TOKENS = [" The", "ing", " the", " str", " rain", " Paris", " rains"]


@pytest.mark.parametrize("most, words", [(0, []), (1, ["The"]), (2, ["the", "rain"]), (9, ["the", "rain", "Paris", "rains"])])
def test_the_commonest_words_are_taken_once_and_in_lower_case_where_they_have_it(most, words):
    assert whole_words(TOKENS, most) == words


def test_every_word_stands_in_as_many_texts_as_asked_among_others():
    words = [f"word{number}" for number in range(20)]
    texts = in_random_company(words, takes=3, words_per_clip=6, seed=1)
    assert Counter(word for text in texts for word in text.split()) == dict.fromkeys(words, 3)
    assert max(len(text.split()) for text in texts) == 6 and len(set(texts)) == len(texts)
    assert texts == in_random_company(words, takes=3, words_per_clip=6, seed=1)


def test_words_that_are_not_known_are_taken_once_with_their_apostrophe_and_in_lower_case_where_they_stand_so():
    texts = ["Eleven cats in Costa Rica?", "What's eleven minus 2, in Rica?"]
    assert other_words(texts, known=["in", "Cats", "minus"]) == ["Costa", "eleven", "Rica", "What's"]
