"""Splits of the questions: which are for training, which for validation, and which for the test."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from echox.corpora.templates import Fact
from echox.data.text import contains_answer


class Question(NamedTuple):
    """One fact in one phrasing."""

    fact: Fact
    phrasing: int  # of its phrasings, then of its reserved ones

    @property
    def text(self) -> str:
        """The words of the question."""
        return (*self.fact.phrasings, *self.fact.reserved)[self.phrasing]


@dataclass(frozen=True, slots=True)
class Splits:
    """Questions by use; no question is in two of them."""

    train: tuple[Question, ...]
    valid: tuple[Question, ...]  # of facts trained in other phrasings
    test: tuple[Question, ...]  # of facts trained in other phrasings
    unseen: tuple[Question, ...]  # of facts never trained in any phrasing
    reworded: tuple[Question, ...] = ()  # of trained facts, in phrasings that no fact is trained in

    @property
    def held_out(self) -> tuple[Question, ...]:
        """All questions that are never trained."""
        return (*self.valid, *self.test, *self.unseen, *self.reworded)


# Each purpose below has a random generator of its own, named by its purpose: another number of test
# questions leaves the other draws, and so most recorded clips, as they are.
def split_questions(
    facts: Sequence[Fact], *, test: int, valid: int, unseen: int, reworded: int = 0, seed: int
) -> Splits:
    """Hold out one phrasing of every fact, and a few facts altogether.

    Args:
        facts: all facts of the corpus.
        test: held-out phrasings for the test, spread over the kinds.
        valid: held-out phrasings for validation, of other facts than those of the test. Where a
            kind has too few facts for both, they share them.
        unseen: capitals and sums that are never trained; facts that would give them away leave
            training with them.
        reworded: reserved phrasings of trained facts, spread over the kinds that have some.
        seed: of all draws.

    Returns:
        the questions of each use; fewer than requested where there are too few facts.
    """
    held_out = held_out_phrasings(facts, random.Random(f"{seed} phrasings"))
    # A question that contains its own answer, as of the capital of Singapore or of six minus three,
    # tests nothing.
    testable = [fact for fact in facts if not contains_own_answer(fact)]
    hidden = spread(_hideable(testable, facts), unseen, random.Random(f"{seed} unseen"))
    hidden_topics = {fact.topic for fact in hidden}
    trained = [fact for fact in facts if fact.topic not in hidden_topics]
    testable = [fact for fact in testable if fact.topic not in hidden_topics]

    drawn = spread(testable, test + valid, random.Random(f"{seed} test"))
    questions = [Question(fact, held_out[fact.id]) for fact in drawn]
    # A corpus without validation questions is refused, so a single one goes to validation.
    valid_questions = every_nth(questions, valid, test + valid) or questions[-1:]
    test_questions = [question for question in questions if question not in valid_questions]
    train_questions = [
        Question(fact, phrasing)
        for fact in trained
        for phrasing in range(len(fact.phrasings))
        if phrasing != held_out[fact.id]
    ]
    return Splits(
        train=tuple(train_questions),
        valid=tuple(valid_questions),
        test=tuple(test_questions),
        unseen=tuple(Question(fact, held_out[fact.id]) for fact in hidden),
        reworded=_reworded(testable, reworded, random.Random(f"{seed} reworded")),
    )


def _hideable(testable: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
    """Sums, and capitals of countries whose name no other question mentions."""
    # A question about the Democratic Republic of the Congo names the Republic of the Congo too.
    naming = [fact for fact in facts if fact.template in ("capital", "general")]
    return [
        fact
        for fact in testable
        if fact.template == "plus"
        or (fact.template == "capital" and not is_named_by_others(fact, naming))
    ]


def _reworded(testable: Sequence[Fact], count: int, rng: random.Random) -> tuple[Question, ...]:
    facts = spread([fact for fact in testable if fact.reserved], count, rng)
    return tuple(
        Question(fact, len(fact.phrasings) + rng.randrange(len(fact.reserved))) for fact in facts
    )


def contains_own_answer(fact: Fact) -> bool:
    """Return whether a question of the fact contains the answer.

    An answer that repeats such a question would be scored as right.
    """
    return contains_answer(" or ".join(fact.ways), fact.answer)


def country_names(fact: Fact) -> list[str]:
    """Return the names of the country of a capital, in lower case and without its article.

    "Antigua and Barbuda" are two names.
    """
    country = fact.id.partition("-")[2].replace("_", " ").removeprefix("country of ")
    return [name.removeprefix("the ") for name in country.split(" and ")]


def name_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds names as whole words; without names it never matches."""
    # "(?!)" matches nowhere, where the empty pattern would match everywhere.
    return re.compile(
        "|".join(rf"\b{re.escape(name)}\b" for name in names) or r"(?!)", re.IGNORECASE
    )


class HiddenNames:
    """Texts that name a country whose capital is never trained: `text in hidden_names`.

    Args:
        facts: those that are never trained; only the capitals among them hide a name.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._pattern = name_pattern(
            name for fact in facts if fact.template == "capital" for name in country_names(fact)
        )

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._pattern.search(text) is not None


def is_named_by_others(fact: Fact, others: Iterable[Fact]) -> bool:
    """Return whether a question of another fact mentions the country of a capital."""
    names = name_pattern(country_names(fact))
    return any(
        names.search(phrasing)
        for other in others
        if other.id != fact.id
        for phrasing in other.phrasings
    )


def held_out_phrasings(facts: Iterable[Fact], rng: random.Random) -> dict[str, int]:
    """Choose the phrasing of each fact that is kept out of training.

    Args:
        facts: of any templates.
        rng: decides which fact has which phrasing.

    Returns:
        id of the fact -> number of its phrasing; each phrasing of a template about equally often.
    """
    families: dict[str, list[Fact]] = {}
    for fact in facts:
        families.setdefault(fact.template, []).append(fact)
    held_out = {}
    for family in families.values():
        shuffled = rng.sample(family, len(family))
        start = rng.randrange(len(family))
        for number, fact in enumerate(shuffled, start=start):
            held_out[fact.id] = number % len(fact.phrasings)
    return held_out


def spread(facts: Iterable[Fact], count: int, rng: random.Random) -> list[Fact]:
    """Draw at most `count` facts, one per topic, from the kinds in alternation."""
    # Sorted by draws, not sampled: of several facts of one topic the last in this order is kept.
    by_topic = {fact.topic: fact for fact in sorted(facts, key=lambda fact: rng.random())}
    by_kind: dict[str, list[Fact]] = {}
    for fact in by_topic.values():
        by_kind.setdefault(fact.kind, []).append(fact)
    rounds = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    return [fact for fact in chain.from_iterable(rounds) if fact is not None][:count]


def every_nth(questions: list[Question], part: float, total: float = 1) -> list[Question]:
    """Select the share `part / total` of the questions at even distances.

    Even distances keep the share of every fact and kind.
    """
    return [
        question
        for number, question in enumerate(questions)
        if (number + 1) * part // total > number * part // total
    ]
