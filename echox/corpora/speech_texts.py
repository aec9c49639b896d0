"""What the answers' voice reads: which sentences train it, and which are kept for its tests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echox.corpora.wording import NearDuplicates, plain_words

# Fitted to forty sentences of this corpus in the answers' voice: what a character takes, and each clip whatever its text.
SECONDS_PER_CHARACTER = 0.042
SECONDS_PER_CLIP = 1.13
TEST_LINES = {"answer": 60, "sentence": 60, "own_answer": 30}
VALID_LINES = {"answer": 20, "sentence": 30, "own_answer": 30}
# However few texts there are, most train; answers to test questions never do, so test and validation divide them.
MOST_HELD_OUT = {"answer": 0.25, "sentence": 0.25, "own_answer": 0.5}


class Line(NamedTuple):
    """One sentence to be read."""

    kind: str  # answer, own_answer, sentence or question
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Texts to choose from."""

    answers: Sequence[str]  # what templates say; all are trained
    own_answers: Sequence[str]  # what the language model says to training questions
    reserved_answers: Sequence[str]  # what it says to test questions; none is trained
    sentences: Sequence[str]
    questions: Sequence[str]  # free questions
    fillers: Sequence[str]  # used when everything else is too short


@dataclass(slots=True)
class SpeechTexts:
    """Lines by use."""

    train: list[Line] = field(default_factory=list)
    valid: list[Line] = field(default_factory=list)
    test: list[Line] = field(default_factory=list)


def choose_speech(pool: Pool, *, hours: float, share: float, seed: int) -> SpeechTexts:
    """Hold out lines for validation and test, then take lines for training until `hours` are estimated to be full.

    Test and validation hold template answers, which are trained too (a model may know by heart what it always says), and
    sentences and answers of the language model, of which nothing alike is trained.
    """
    rng = random.Random(f"{seed} speech")
    free = {
        "answer": shuffled(pool.answers, rng),
        "sentence": shuffled(pool.sentences, rng),
        "own_answer": shuffled(pool.reserved_answers, rng),
    }
    test, valid = ([line for kind in free for line in take(free[kind], kind, counts[kind] * share)] for counts in (TEST_LINES, VALID_LINES))
    kept_out = NearDuplicates([line.text for line in test + valid if line.kind != "answer"] + list(pool.reserved_answers))
    wide = [Line("own_answer", text) for text in pool.own_answers]
    wide += [Line("sentence", text) for text in free["sentence"]] + [Line("question", text) for text in pool.questions]
    first = [Line("answer", text) for text in pool.answers]
    order = first + rng.sample(wide, len(wide)) + [Line("question", text) for text in rng.sample(list(pool.fillers), len(pool.fillers))]
    return SpeechTexts(list(_until(3600 * hours, _new(order, kept_out))), valid, test)


def seconds(text: str) -> float:
    """About how long the answers' voice takes."""
    return SECONDS_PER_CLIP + SECONDS_PER_CHARACTER * len(text)


def shuffled(texts: Iterable[str], rng: random.Random) -> list[str]:
    """Texts in random order, each once."""
    distinct = list({plain_words(text): text for text in texts}.values())
    return rng.sample(distinct, len(distinct))


def take(texts: list[str], kind: str, count: float) -> list[Line]:
    """Take about `count` lines away from the end of `texts`."""
    taken = min(math.ceil(count), math.ceil(MOST_HELD_OUT[kind] * len(texts)))
    return [Line(kind, texts.pop()) for _ in range(taken)]


def _new(lines: Iterable[Line], kept_out: NearDuplicates) -> Iterator[Line]:
    seen: set[tuple[str, ...]] = set()
    for line in lines:
        words = plain_words(line.text)
        if words not in seen and (line.kind == "answer" or line.text not in kept_out):
            seen.add(words)
            yield line


def _until(limit_s: float, lines: Iterable[Line]) -> Iterator[Line]:
    total_s = 0.0
    for line in lines:
        total_s += seconds(line.text)
        # Answers are wanted whole even where they alone are longer.
        if total_s > limit_s and line.kind != "answer":
            return
        yield line
