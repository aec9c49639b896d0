"""The language model's own words, spoken in random company, so that the adapter has heard more than the questions hold."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

TokenTexts = Callable[[], list[str]]
"""The surface string of every token of the language model, in the order of their ids."""

# A token that begins a word, and could be one: without a vowel it is an abbreviation or a piece.
WORD = re.compile(r" (?=\w*[aeiouyAEIOUY])([A-Za-z][a-z]*)")
WORD_OF_TEXT = re.compile(r"[A-Za-z][a-z]*(?:'[a-z]+)?")


def whole_words(token_texts: Iterable[str], most: int) -> list[str]:
    """Words that are one token, the commonest first, each once however it is capitalised.

    Byte-pair vocabularies are numbered in the order of their merges, so a smaller id is a commoner token.

    Args:
        token_texts: surface strings in the order of their ids; a leading space begins a word.
        most: words wanted; 0 gives none.
    """
    words: dict[str, str] = {}
    for text in token_texts:
        if len(words) == most:
            break
        if match := WORD.fullmatch(text):
            _note(words, match.group(1))
    return list(words.values())


def other_words(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Words of texts that are not among the known ones, in the order of the alphabet, each once however it is capitalised."""
    seen = {word.lower() for word in known}
    words: dict[str, str] = {}
    for word in (word for text in texts for word in WORD_OF_TEXT.findall(text)):
        if word.lower() not in seen:
            _note(words, word)
    return [words[lower] for lower in sorted(words)]


def _note(words: dict[str, str], word: str) -> None:
    """Keep a word under its small letters, itself in small letters where it is met so."""
    if word == word.lower() or word.lower() not in words:
        words[word.lower()] = word


def in_random_company(words: list[str], takes: int, words_per_clip: int, seed: int) -> list[str]:
    """Texts of a few words each, in which every word stands `takes` times, each time among others."""
    texts = []
    for take in range(takes):
        order = random.Random(f"{seed} words {take}").sample(words, len(words))
        texts += [" ".join(order[start : start + words_per_clip]) for start in range(0, len(order), words_per_clip)]
    return texts
