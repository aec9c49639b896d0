"""Text normalized for comparison: lower-case words without punctuation, numbers spelled out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ("hundred", "thousand")
NUMBERS = frozenset((*ONES, *TENS, *SCALES))
# Python converts texts of 4,300 digits at most to integers.
_CONVERTED_DIGITS = 4_000


def words_of(text: str) -> list[str]:
    """Return the words of a text: accents dropped, digits spelled out, punctuation removed."""
    plain = without_accents(text.lower(), "NFD")
    # "1,000" is one number; the comma of "3, 4" has no three digits after it.
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    plain = re.sub(r"\d+", lambda match: f" {_spelled(match.group())} ", plain)
    # Apostrophes join: "it's" is one word, as "its".
    return re.sub(r"[^\w\s]|_", " ", plain.replace("'", "")).split()


def without_accents(text: str, form: Literal["NFD", "NFKD"]) -> str:
    """Return a text decomposed into a Unicode normal form, without its combining marks."""
    if text.isascii():
        return text
    # Decomposed, an accent is a character of its own.
    decomposed = unicodedata.normalize(form, text)
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _spelled(digits: str) -> str:
    if len(digits) > _CONVERTED_DIGITS:
        return " ".join(ONES[int(digit)] for digit in digits)
    return number_words(int(digits))


def number_words(number: int) -> str:
    """Spell a number from 0 to 999,999 in words; larger numbers digit by digit."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = f" {number_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 1_000_000:
        rest = f" {number_words(number % 1000)}" if number % 1000 else ""
        return f"{number_words(number // 1000)} thousand{rest}"
    return " ".join(ONES[int(digit)] for digit in str(number))


def contains_answer(text: str, answer: str) -> bool:
    """Return whether the answer's words stand next to each other in the text.

    A number counts as a whole: "twenty three" answers neither "twenty" nor "three".

    Args:
        text: text to search.
        answer: expected words; alternatives are separated by "|".

    Source:
        the answer matching of DPR and UltraEval-Audio, with numbers spelled out.
    """
    words = words_of(text)
    return any(_contains(words, words_of(alternative)) for alternative in answer.split("|"))


def _contains(words: list[str], target: list[str]) -> bool:
    N = len(target)
    starts = (i for i in range(len(words) - N + 1) if words[i : i + N] == target)
    # An answer without words would stand everywhere.
    return N > 0 and any(not _splits_a_number(words, i, i + N) for i in starts)


def _splits_a_number(words: list[str], begin: int, end: int) -> bool:
    """Whether the word before words[begin:end], or the one after it, is of the same number."""
    # Neighbouring pairs across both ends of the answer; shorter at the ends of the text.
    before, after = words[begin - 1 : begin + 1] if begin else [], words[end - 1 : end + 1]
    return any(len(pair) == 2 and _are_one_number(*pair) for pair in (before, after))


def _are_one_number(left: str, right: str) -> bool:
    """Whether two adjacent words are of one number: twenty three, two hundred, hundred five."""
    if left in TENS[2:] and right in ONES[1:10]:
        return True
    return (left in SCALES and right in NUMBERS) or (left in NUMBERS and right in SCALES)


def edit_distance(left: Sequence, right: Sequence) -> int:
    """Return the Levenshtein distance between two sequences [N] and [M], in O(M) memory."""
    # distances[j]: from the part of `left` seen so far to right[:j].
    distances = list(range(len(right) + 1))
    for i, item in enumerate(left, 1):
        diagonal, distances[0] = distances[0], i
        for j, other in enumerate(right, 1):
            substitution = diagonal + (item != other)
            best = min(distances[j] + 1, distances[j - 1] + 1, substitution)
            diagonal, distances[j] = distances[j], best
    return distances[-1]


def error_rates(reference: str, transcript: str) -> list[tuple[str, float]]:
    """Return word and character error rate of a transcript, as ("wer", ...) and ("cer", ...).

    Numbers are spelled out, case and punctuation are ignored. A reference without words has no
    rates.
    """
    words, transcribed = words_of(reference), words_of(transcript)
    if not words:
        return []
    # Characters with the spaces between words, whose loss or gain is an error too.
    letters = " ".join(words)
    return [
        ("wer", edit_distance(words, transcribed) / len(words)),
        ("cer", edit_distance(letters, " ".join(transcribed)) / len(letters)),
    ]
