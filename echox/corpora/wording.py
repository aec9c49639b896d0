"""Text normalization: clean text that voices can synthesize, numbers in words, near duplicates."""

from __future__ import annotations

import re
from importlib import resources

from echox.data.text import number_words, without_accents

# Numbers from here on are read as years, "nineteen sixty nine", unless a comma says otherwise.
YEARS = range(1100, 2000)
LARGEST = 999_999  # that is written in words

# Typographic characters and the ASCII ones that are read alike.
_SAME_SOUND = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u2013": "-", "\u2014": " - ", "\u2026": "...", "\u00a0": " "}
)
# Whole numbers, with or without commas between thousands; none that belongs to a word or a decimal.
_NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\w])|(?<![\w.])\d+(?![\w])")
_PLAIN = re.compile(r"[A-Za-z',.!? ]+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_LIST_ITEM = re.compile(r"\s*\d+[.)]")
# An initial or an abbreviation, whose period ends no sentence.
_ABBREVIATION = re.compile(r"\b[A-Z]\.$|\b(?:Mr|Mrs|Ms|Dr|St|vs|etc)\.$|\.\w")


def text_lines(name: str) -> list[str]:
    """Return the non-empty lines of a file in `texts/`."""
    file = resources.files("echox.corpora") / "texts" / name
    content = file.read_text("utf-8")
    return [line for line in content.splitlines() if line.strip()]


def clean(text: str) -> str | None:
    """Normalize a text to what voices can read: letters, apostrophes, commas and . ! ? alone.

    Returns:
        the text on one line with its numbers in words, or None where something in it has no plain
        spoken form (other scripts, symbols, decimals).
    """
    text = without_accents(text.translate(_SAME_SOUND), "NFKD")
    # Hyphens within words become spaces, other dashes and colons a pause.
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text)
    text = re.sub(r"\s+-\s+|[;:](?=\s|$)", ", ", text).replace('"', "")
    text = _NUMBER.sub(lambda match: _spoken_number(match.group()), text)
    text = re.sub(r"\s+([,.!?])", r"\1", re.sub(r"\s+", " ", text)).strip()
    return text if _PLAIN.fullmatch(text) and re.search("[A-Za-z]", text) else None


def _spoken_number(digits: str) -> str:
    """The words of a number; the digits themselves where they have none, which `clean` refuses."""
    number = int(digits.replace(",", ""))
    if number > LARGEST or (len(digits) > 1 and digits[0] == "0"):
        return digits
    if number in YEARS and "," not in digits:
        century, year = divmod(number, 100)
        return f"{number_words(century)} {_year_words(year)}"
    return number_words(number)


def _year_words(year: int) -> str:
    if year == 0:
        return "hundred"
    return f"oh {number_words(year)}" if year < 10 else number_words(year)


def first_sentences(text: str, max_words: int) -> str | None:
    """Return the first sentences of a model's answer, cleaned, up to a number of words.

    Args:
        text: the answer, of which only the first line is read.
        max_words: words of the sentences together at most.

    Returns:
        whole sentences, or None where the first is unfinished, an item of a list, too long, or has
        no spoken form.
    """
    line, sentences, words = text.strip().partition("\n")[0], [], 0
    while (end := _SENTENCE_END.search(line)) is not None:
        sentence = _clean_sentence(line[: end.end()])
        words += 0 if sentence is None else len(sentence.split())
        # Stopped, not skipped: what is used has to be the beginning of the model's answer.
        if sentence is None or words > max_words:
            break
        sentences.append(sentence)
        line = line[end.end() :].lstrip()
    return " ".join(sentences) or None


def _clean_sentence(sentence: str) -> str | None:
    """A sentence cleaned; None where it is none, or has no spoken form."""
    spoken = clean(sentence)
    # The item's number is matched before cleaning, which writes it in words.
    if spoken is None or _LIST_ITEM.match(sentence) or _ABBREVIATION.search(spoken):
        return None
    return spoken


def spoken_pieces(text: str, max_words: int) -> list[str]:
    """Split a text into cleaned pieces that can be spoken, each of one sentence or a part of one.

    Args:
        text: of any length; sentences that have no spoken form are left out.
        max_words: longer sentences are cut into pieces of about equal length.

    Returns:
        pieces of at least two words.
    """
    pieces = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        words = (clean(sentence) or "").split()
        count = -(-len(words) // max_words)  # rounded up
        cuts = [len(words) * number // count for number in range(count + 1)] if count else []
        pieces += [" ".join(words[start:end]) for start, end in zip(cuts, cuts[1:])]
    return [piece for piece in pieces if len(piece.split()) > 1]


def plain_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case without punctuation.

    Texts of the same plain words sound the same.
    """
    return tuple(re.findall(r"[a-z']+", text.lower()))


class NearDuplicates:
    """A set of texts with a test for near duplicates, by the Jaccard similarity of their words.

    `text in near_duplicates` is true where the words of the text and those of one of the set have a
    ratio of common to all words of at least `share`.

    Args:
        texts: the set.
        share: the least ratio that counts as a near duplicate, 0 to 1.
    """

    def __init__(self, texts: list[str], share: float = 0.8) -> None:
        self.share = share
        self._by_word: dict[str, list[int]] = {}
        self._bags = [frozenset(plain_words(text)) for text in texts]
        for index, bag in enumerate(self._bags):
            for word in bag:
                self._by_word.setdefault(word, []).append(index)

    def __contains__(self, text: str) -> bool:
        bag = frozenset(plain_words(text))
        # Prefix filtering: a text that shares enough words shares at least one of the rarest ones,
        # so only the texts with one of these are compared.
        least_common = self.share * len(bag)
        rare_first = sorted(bag, key=lambda word: len(self._by_word.get(word, ())))
        rarest = rare_first[: len(bag) - int(-(-least_common // 1)) + 1]
        candidates = {index for word in rarest for index in self._by_word.get(word, ())}
        return any(
            len(bag & self._bags[index]) >= self.share * len(bag | self._bags[index])
            for index in candidates
        )
