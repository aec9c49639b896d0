"""Which question is for training, which for validation, and which is asked only in the test."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from echox.corpora.templates import Fact
from echox.data.text import contains_answer


class Ask(NamedTuple):
    """One fact asked in one way."""

    fact: Fact
    phrasing: int  # of its phrasings, then of its reserved ones

    @property
    def text(self) -> str:
        """The question."""
        return (*self.fact.phrasings, *self.fact.reserved)[self.phrasing]


@dataclass(frozen=True, slots=True)
class Splits:
    """Questions by use; no question is in two of them."""

    train: tuple[Ask, ...]
    valid: tuple[Ask, ...]  # of facts trained in other phrasings
    test: tuple[Ask, ...]  # of facts trained in other phrasings
    unseen: tuple[Ask, ...]  # of facts never trained in any phrasing
    reworded: tuple[Ask, ...] = ()  # of trained facts, in phrasings that no fact is trained in

    @property
    def held_out(self) -> tuple[Ask, ...]:
        """All that is asked, but never in training."""
        return (*self.valid, *self.test, *self.unseen, *self.reworded)


def split_questions(facts: Sequence[Fact], *, test: int, valid: int, unseen: int, reworded: int = 0, seed: int) -> Splits:
    """Take one phrasing of every fact out of training, and a few facts altogether.

    Args:
        facts: what may be asked.
        test, valid: held-out phrasings wanted in each, spread over the kinds, which share those of a kind that has too few; no fact
            is in both.
        unseen: capitals and sums never trained; facts that would give them away leave training with them.
        reworded: reserved phrasings of trained facts wanted, spread over the kinds that have some.
    """
    held_out = held_out_phrasings(facts, random.Random(f"{seed} phrasings"))
    # Whoever hears of the Democratic Republic of the Congo hears of the Republic of the Congo.
    named = [fact for fact in facts if fact.template in ("capital", "general")]
    # A question that says its own answer, as of the capital of Singapore or of six minus three, tests nothing.
    telling = [fact for fact in facts if not says_its_answer(fact)]
    may_hide = [fact for fact in telling if fact.template in ("plus", "capital")]
    may_hide = [fact for fact in may_hide if fact.template == "plus" or not is_named_by_others(fact, named)]
    hidden = spread(may_hide, unseen, random.Random(f"{seed} unseen"))
    hidden_topics = {fact.topic for fact in hidden}
    known = [fact for fact in facts if fact.topic not in hidden_topics]
    telling = [fact for fact in telling if fact.topic not in hidden_topics]
    chosen = spread(telling, test + valid, random.Random(f"{seed} test"))
    asked = [Ask(fact, held_out[fact.id]) for fact in chosen]
    validated = evenly(asked, valid, test + valid) or asked[-1:]
    tested = [ask for ask in asked if ask not in validated]
    train = [Ask(fact, number) for fact in known for number in range(len(fact.phrasings)) if number != held_out[fact.id]]
    hidden_asked = tuple(Ask(fact, held_out[fact.id]) for fact in hidden)
    rng = random.Random(f"{seed} reworded")
    others = spread([fact for fact in telling if fact.reserved], reworded, rng)
    reworded_asked = tuple(Ask(fact, len(fact.phrasings) + rng.randrange(len(fact.reserved))) for fact in others)
    return Splits(tuple(train), tuple(validated), tuple(tested), hidden_asked, reworded_asked)


def says_its_answer(fact: Fact) -> bool:
    """Whether the answer stands in the question, and so in any answer that repeats the question."""
    return contains_answer(" or ".join(fact.ways), fact.answer)


def names_of(fact: Fact) -> list[str]:
    """The country whose capital a fact is, in small letters and without its article; of Antigua and Barbuda each."""
    country = fact.id.partition("-")[2].replace("_", " ").removeprefix("country of ")
    return [name.removeprefix("the ") for name in country.split(" and ")]


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """What finds any of some names as whole words; of no name nothing."""
    return re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names) or r"(?!)", re.IGNORECASE)


def is_named_by_others(fact: Fact, others: Iterable[Fact]) -> bool:
    """Whether a question of another fact holds a name of the country."""
    names = pattern_of(names_of(fact))
    return any(names.search(phrasing) for other in others if other.id != fact.id for phrasing in other.phrasings)


def held_out_phrasings(facts: Iterable[Fact], rng: random.Random) -> dict[str, int]:
    """Fact id -> the phrasing kept out of training, each phrasing of a template about equally often."""
    families: dict[str, list[Fact]] = {}
    for fact in facts:
        families.setdefault(fact.template, []).append(fact)
    held_out = {}
    for family in families.values():
        for turn, fact in enumerate(rng.sample(family, len(family)), start=rng.randrange(len(family))):
            held_out[fact.id] = turn % len(fact.phrasings)
    return held_out


def spread(facts: Iterable[Fact], count: int, rng: random.Random) -> list[Fact]:
    """At most `count` facts, drawn from the kinds in turn, one fact per topic."""
    by_topic = {fact.topic: fact for fact in sorted(facts, key=lambda fact: rng.random())}
    by_kind: dict[str, list[Fact]] = {}
    for fact in by_topic.values():
        by_kind.setdefault(fact.kind, []).append(fact)
    in_turn = chain.from_iterable(zip_longest(*(by_kind[kind] for kind in sorted(by_kind))))
    return [fact for fact in in_turn if fact is not None][:count]


def evenly(asks: list[Ask], part: float, whole: float = 1) -> list[Ask]:
    """part / whole of the questions, every so many of them, so that every fact or kind keeps its share."""
    return [ask for number, ask in enumerate(asks) if (number + 1) * part // whole > number * part // whole]
