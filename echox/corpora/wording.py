"""The words that voices and models are given: clean text, numbers in words, and tests of sameness."""

from __future__ import annotations

import re
import unicodedata
from importlib import resources

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# Numbers from here on are read as years, "nineteen sixty nine", unless a comma says otherwise.
YEARS = range(1100, 2000)
LARGEST = 999_999

_SAME_SOUND = str.maketrans({"\u2018": "'", "\u2019": "'", "\u2013": "-", "\u2014": " - ", "\u2026": "...", "\u00a0": " "})
_NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\w])|(?<![\w.])\d+(?![\w])")
_PLAIN = re.compile(r"[A-Za-z',.!? ]+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def text_lines(name: str) -> list[str]:
    """The non-empty lines of a file in `texts/`."""
    content = resources.files("echox.corpora").joinpath("texts", name).read_text("utf-8")
    return [line for line in content.splitlines() if line.strip()]


def number_words(number: int) -> str:
    """A number from 0 to 999,999 in words, without hyphens or "and"."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_SMALL[number % 10]}" if number % 10 else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = f" {number_words(number % unit)}" if number % unit else ""
    return f"{number_words(number // unit)} {name}{rest}"


def clean(text: str) -> str | None:
    """Make a text speakable: letters, apostrophes, commas and . ! ? alone, digits in words.

    Returns:
        the text on one line, or None where something in it has no plain spoken form (other scripts, symbols, decimals).
    """
    text = unicodedata.normalize("NFKD", text.translate(_SAME_SOUND))
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text)
    text = re.sub(r"\s+-\s+|[;:](?=\s|$)", ", ", text).replace('"', "")
    text = _NUMBER.sub(lambda match: _spelt(match.group()), text)
    text = re.sub(r"\s+([,.!?])", r"\1", re.sub(r"\s+", " ", text)).strip()
    return text if _PLAIN.fullmatch(text) and re.search("[A-Za-z]", text) else None


def _spelt(digits: str) -> str:
    number = int(digits.replace(",", ""))
    if number > LARGEST or (len(digits) > 1 and digits[0] == "0"):
        return digits
    if number in YEARS and "," not in digits:
        century, year = divmod(number, 100)
        return f"{number_words(century)} {_year_words(year)}"
    return number_words(number)


def _year_words(year: int) -> str:
    return "hundred" if year == 0 else f"oh {number_words(year)}" if year < 10 else number_words(year)


def first_sentences(text: str, max_words: int) -> str | None:
    """The sentences at the front of a model's answer that have at most so many words together, cleaned.

    Returns:
        them, or None where already the first is unfinished, part of a list, too long, or not speakable.
    """
    line, kept, words = text.strip().partition("\n")[0], [], 0
    while (end := _SENTENCE_END.search(line)) is not None:
        sentence = _speakable(line[: end.end()])
        words += 0 if sentence is None else len(sentence.split())
        if sentence is None or words > max_words:
            break
        kept.append(sentence)
        line = line[end.end() :].lstrip()
    return " ".join(kept) or None


def _speakable(sentence: str) -> str | None:
    """A sentence cleaned; None where it is none, or has no spoken form."""
    spoken = clean(sentence)
    # A number alone was the mark of a list, and a lone letter that of an initial or an abbreviation.
    if spoken is None or re.match(r"\s*\d+[.)]", sentence) or re.search(r"\b[A-Z]\.$|\b(?:Mr|Mrs|Ms|Dr|St|vs|etc)\.$|\.\w", spoken):
        return None
    return spoken


def spoken_pieces(text: str, max_words: int) -> list[str]:
    """The sentences of a text that can be spoken, cleaned, those that are longer than `max_words` cut into pieces of about the same length."""
    pieces = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        words = (clean(sentence) or "").split()
        count = -(-len(words) // max_words)
        pieces += [" ".join(words[len(words) * number // count : len(words) * (number + 1) // count]) for number in range(count)]
    return [piece for piece in pieces if len(piece.split()) > 1]


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case without punctuation: what makes two texts the same to a listener."""
    return tuple(re.findall(r"[a-z']+", text.lower()))


class NearDuplicates:
    """Finds whether a text is, but for a few words, one of those it was given."""

    def __init__(self, texts: list[str], share: float = 0.8) -> None:
        """Remember texts; `share` is the least ratio of common words to all words that counts as the same."""
        self.share = share
        self._by_word: dict[str, list[int]] = {}
        self._bags = [frozenset(plain_words(text)) for text in texts]
        for index, bag in enumerate(self._bags):
            for word in bag:
                self._by_word.setdefault(word, []).append(index)

    def __contains__(self, text: str) -> bool:
        bag = frozenset(plain_words(text))
        # Whatever shares enough words shares at least one of the rarer ones.
        common_at_least = self.share * len(bag)
        rare_first = sorted(bag, key=lambda word: len(self._by_word.get(word, ())))
        deciding = rare_first[: len(bag) - int(-(-common_at_least // 1)) + 1]
        candidates = {index for word in deciding for index in self._by_word.get(word, ())}
        return any(len(bag & self._bags[index]) >= self.share * len(bag | self._bags[index]) for index in candidates)
