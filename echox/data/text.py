"""Text as it is compared: lower-case words without punctuation, numbers spelled out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ("hundred", "thousand")
NUMBERS = frozenset((*ONES, *TENS, *SCALES))


def words_of(text: str) -> list[str]:
    """The words of a text: accents dropped, digits spelled out, nothing but letters left."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    plain = re.sub(r"\d+", lambda match: f" {number_words(int(match.group()))} ", plain)
    return re.sub(r"[^\w\s]|_", " ", plain.replace("'", "")).split()


def number_words(number: int) -> str:
    """0 .. 999,999 in words; larger numbers digit by digit."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{ONES[number // 100]} hundred" + (f" {number_words(number % 100)}" if number % 100 else "")
    if number < 1_000_000:
        return f"{number_words(number // 1000)} thousand" + (f" {number_words(number % 1000)}" if number % 1000 else "")
    return " ".join(ONES[int(digit)] for digit in str(number))


def contains_answer(text: str, answer: str) -> bool:
    """Whether the answer's words stand next to each other in the text (the rule of DPR and UltraEval-Audio, numbers spelled out).

    A number counts whole: "twenty three" answers neither "twenty" nor "three".

    Args:
        text: what was said.
        answer: what counts; several that count alike are parted by "|".
    """
    words = words_of(text)
    return any(_contains(words, words_of(one)) for one in answer.split("|"))


def _contains(words: list[str], wanted: list[str]) -> bool:
    N = len(wanted)
    places = (i for i in range(len(words) - N + 1) if words[i : i + N] == wanted)
    return N > 0 and any(not _is_cut_from_a_number(words, i, i + N) for i in places)


def _is_cut_from_a_number(words: list[str], begin: int, end: int) -> bool:
    """Whether the word before words[begin:end], or the one after it, belongs to the same number."""
    before, after = words[begin - 1 : begin + 1] if begin else [], words[end - 1 : end + 1]
    return any(len(pair) == 2 and _are_one_number(*pair) for pair in (before, after))


def _are_one_number(left: str, right: str) -> bool:
    """Whether two words in a row are of one number: twenty three, two hundred, hundred five."""
    if left in TENS[2:] and right in ONES[1:10]:
        return True
    return (left in SCALES and right in NUMBERS) or (left in NUMBERS and right in SCALES)


def edit_distance(left: Sequence, right: Sequence) -> int:
    """Levenshtein distance between two sequences."""
    row = list(range(len(right) + 1))
    for i, item in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (item != other))
    return row[-1]


def error_rates(said: str, heard: str) -> list[tuple[str, float]]:
    """Word and character error rate of what was heard, against what was said; numbers spelled out, without case and punctuation."""
    words, found = words_of(said), words_of(heard)
    if not words:
        return []
    letters = " ".join(words)
    return [
        ("wer", edit_distance(words, found) / len(words)),
        ("cer", edit_distance(letters, " ".join(found)) / len(letters)),
    ]
