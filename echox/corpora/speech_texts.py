"""Texts of the speech manifests: which sentences train the answers' voice, which test it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echox.corpora.wording import NearDuplicates, plain_words

# Fitted to forty sentences of this corpus in the answers' voice: the duration of a character, and
# that of a clip whatever its text.
SECONDS_PER_CHARACTER = 0.042
SECONDS_PER_CLIP = 1.13
TEST_LINES = {"answer": 60, "sentence": 60, "own_answer": 30}
VALID_LINES = {"answer": 20, "sentence": 30, "own_answer": 30}
# However few texts there are, most train; answers to test questions never do, so test and
# validation divide them.
MOST_HELD_OUT = {"answer": 0.25, "sentence": 0.25, "own_answer": 0.5}


class Line(NamedTuple):
    """One sentence with its kind."""

    kind: str  # answer, own_answer, sentence or question
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Texts to choose from."""

    answers: Sequence[str]  # of templates; all are trained
    own_answers: Sequence[str]  # of the language model to training questions
    reserved_answers: Sequence[str]  # of the language model to test questions; none is trained
    sentences: Sequence[str]
    questions: Sequence[str]  # free questions
    fillers: Sequence[str]  # used when all others together are too short


@dataclass(slots=True)
class SpeechTexts:
    """Lines by use."""

    train: list[Line] = field(default_factory=list)
    valid: list[Line] = field(default_factory=list)
    test: list[Line] = field(default_factory=list)


def choose_speech(pool: Pool, *, hours: float, share: float, seed: int) -> SpeechTexts:
    """Hold out lines for validation and test, then choose lines for training.

    Test and validation hold template answers, which are trained too (a model may memorize what it
    always says), and sentences and answers of the language model, of which no near duplicate is
    trained.

    Args:
        pool: texts to choose from.
        hours: estimated duration of the training lines.
        share: of `TEST_LINES` and `VALID_LINES`, 0 to 1.
        seed: of all draws.

    Returns:
        lines of each use.
    """
    # One generator for all: the order of the draws is part of the recorded corpora.
    rng = random.Random(f"{seed} speech")
    texts = {
        "answer": shuffled(pool.answers, rng),
        "sentence": shuffled(pool.sentences, rng),
        "own_answer": shuffled(pool.reserved_answers, rng),
    }
    # The test is served first; what both take is removed from `texts`.
    test, valid = (
        [line for kind in texts for line in take(texts[kind], kind, counts[kind] * share)]
        for counts in (TEST_LINES, VALID_LINES)
    )
    held_out = NearDuplicates(
        [line.text for line in test + valid if line.kind != "answer"] + list(pool.reserved_answers)
    )
    candidates = _training_order(pool, texts["sentence"], rng)
    train = _until(3600 * hours, _unused(candidates, held_out))
    return SpeechTexts(list(train), valid, test)


def _training_order(pool: Pool, sentences: Sequence[str], rng: random.Random) -> list[Line]:
    """Template answers first, then all other texts shuffled, the fillers last."""
    others = [Line("own_answer", text) for text in pool.own_answers]
    others += [Line("sentence", text) for text in sentences]
    others += [Line("question", text) for text in pool.questions]
    return [
        *(Line("answer", text) for text in pool.answers),
        *rng.sample(others, len(others)),
        *(Line("question", text) for text in rng.sample(list(pool.fillers), len(pool.fillers))),
    ]


def seconds(text: str) -> float:
    """Estimate the seconds that the answers' voice takes for a text."""
    return SECONDS_PER_CLIP + SECONDS_PER_CHARACTER * len(text)


def shuffled(texts: Iterable[str], rng: random.Random) -> list[str]:
    """Return texts in random order; of those that sound alike only the last."""
    distinct = list({plain_words(text): text for text in texts}.values())
    return rng.sample(distinct, len(distinct))


def take(texts: list[str], kind: str, count: float) -> list[Line]:
    """Remove held-out lines from the end of `texts`.

    Args:
        texts: changed in place.
        kind: a key of `MOST_HELD_OUT`, which bounds the share of the texts.
        count: lines, rounded up.

    Returns:
        the removed lines.
    """
    lines = min(math.ceil(count), math.ceil(MOST_HELD_OUT[kind] * len(texts)))
    return [Line(kind, texts.pop()) for _ in range(lines)]


def _unused(lines: Iterable[Line], held_out: NearDuplicates) -> Iterator[Line]:
    """Lines that sound unlike all before them, and unlike what is held out."""
    seen: set[tuple[str, ...]] = set()
    for line in lines:
        words = plain_words(line.text)
        # Template answers are trained even where they resemble a held-out sentence.
        if words not in seen and (line.kind == "answer" or line.text not in held_out):
            seen.add(words)
            yield line


def _until(limit_s: float, lines: Iterable[Line]) -> Iterator[Line]:
    total_s = 0.0
    for line in lines:
        total_s += seconds(line.text)
        # All template answers are used, even where they alone are longer.
        if total_s > limit_s and line.kind != "answer":
            return
        yield line
