"""Words of the language model's vocabulary, grouped at random into texts for transcription.

They train the adapter on more words than the questions contain.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

TokenTexts = Callable[[], list[str]]
"""Returns the surface string of every token of the language model, in the order of their ids."""

# A token that begins a word and may be one: without a vowel it is an abbreviation or a fragment.
WORD = re.compile(r" (?=\w*[aeiouyAEIOUY])([A-Za-z][a-z]*)")
WORD_OF_TEXT = re.compile(r"[A-Za-z][a-z]*(?:'[a-z]+)?")


def whole_words(token_texts: Iterable[str], most: int, is_word: Callable[[str], bool]) -> list[str]:
    """Return words that are a single token, the most frequent first, each in one capitalisation.

    Byte-pair vocabularies are numbered in the order of their merges, so a smaller id is a more
    frequent token.

    Args:
        token_texts: surface strings in the order of their ids; a leading space begins a word.
        most: words returned at most; 0 gives none.
        is_word: tells words from the beginnings of words, which are tokens as well ("jurisdict").
    """
    words: dict[str, str] = {}  # lower case -> the word as it is returned
    for text in token_texts:
        # Tested before a word is added, so that 0 gives none.
        if len(words) == most:
            break
        if (match := WORD.fullmatch(text)) and is_word(match.group(1)):
            _add_word(words, match.group(1))
    return list(words.values())


def other_words(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the words of texts that are not among the known ones.

    Args:
        texts: in which the words occur.
        known: words left out, however they are capitalised.

    Returns:
        words in alphabetical order, each in one capitalisation.
    """
    excluded = {word.lower() for word in known}
    words: dict[str, str] = {}
    for word in (word for text in texts for word in WORD_OF_TEXT.findall(text)):
        if word.lower() not in excluded:
            _add_word(words, word)
    return [words[lower] for lower in sorted(words)]


def _add_word(words: dict[str, str], word: str) -> None:
    """Add a word under its lower case; its own lower-case form replaces a capitalised one."""
    if word == word.lower() or word.lower() not in words:
        words[word.lower()] = word


def missing_takes(words: Iterable[str], takes: int, texts: Iterable[str]) -> dict[str, int]:
    """Return how many further texts each word needs to occur at least `takes` times.

    Args:
        words: to be counted, whatever their capitalisation.
        takes: occurrences that each word is to have.
        texts: in which words occur already.
    """
    counts = Counter(word.lower() for text in texts for word in WORD_OF_TEXT.findall(text))
    return {word: max(0, takes - counts[word.lower()]) for word in words}


def random_word_texts(takes: Mapping[str, int], words_per_clip: int, seed: int) -> list[str]:
    """Group words at random into texts of a few words.

    Args:
        takes: word -> texts that it appears in, mostly with other neighbours.
        words_per_clip: words of a text; the last text of a round may have fewer.
        seed: of the grouping.

    Returns:
        texts of words separated by spaces.
    """
    texts = []
    for take in range(max(takes.values(), default=0)):
        words = [word for word, count in takes.items() if count > take]
        # A generator for each round: more takes leave the texts of the first ones as they are.
        order = random.Random(f"{seed} words {take}").sample(words, len(words))
        texts += [
            " ".join(order[start : start + words_per_clip])
            for start in range(0, len(order), words_per_clip)
        ]
    return texts
