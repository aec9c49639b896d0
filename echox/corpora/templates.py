"""What the demo is asked: facts of five kinds, each with several ways to ask and one way to answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from echox.corpora.wording import number_words, text_lines

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = "January February March April May June July August September October November December".split()
DAYS_OF_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
LARGEST_OPERAND = 12
KINDS = ("capital", "arithmetic", "day", "month", "general")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to be asked about."""

    id: str
    kind: str  # one of KINDS
    phrasings: tuple[str, ...]  # ways to ask
    answer: str  # what counts, in few words: "Paris"
    sentence: str  # what is said: "The capital of France is Paris."

    @property
    def template(self) -> str:
        """The family whose phrasings it shares: "capital", "plus" ... """
        return self.id.split("-")[0]

    @property
    def topic(self) -> tuple[str, ...]:
        """The same for facts that give each other away: three plus four, and four plus three."""
        return tuple(sorted(self.id.split("-")))


@dataclass(frozen=True, slots=True)
class Template:
    """Ways to ask and the way to answer, with places in braces."""

    kind: str
    phrasings: tuple[str, ...]
    sentence: str

    def fact(self, fact_id: str, answer: str, **places: str) -> Fact:
        """Fill the places; every text begins with a capital letter."""
        phrasings = tuple(capitalised(phrasing.format(**places)) for phrasing in self.phrasings)
        return Fact(fact_id, self.kind, phrasings, answer, capitalised(self.sentence.format(answer=answer, **places)))


CAPITAL = Template(
    "capital",
    (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "Tell me the capital of {country}.",
        "Name the capital city of {country}.",
        "Do you know the capital of {country}?",
        "{country} has which city as its capital?",
    ),
    "The capital of {country} is {answer}.",
)
PLUS = Template(
    "arithmetic",
    (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "Tell me the sum of {a} and {b}.",
        "What do you get when you add {a} and {b}?",
        "If I add {a} and {b}, what is the result?",
        "{a} plus {b} makes how much?",
    ),
    "{a} plus {b} is {answer}.",
)
MINUS = Template(
    "arithmetic",
    (
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "What do you get when you subtract {b} from {a}?",
        "If I take {b} away from {a}, what is left?",
        "Tell me what {a} minus {b} is.",
        "{a} minus {b} makes how much?",
    ),
    "{a} minus {b} is {answer}.",
)
DAY_AFTER = Template(
    "day",
    (
        "What day comes after {day}?",
        "Which day follows {day}?",
        "Tell me the day after {day}.",
        "If today is {day}, what day is tomorrow?",
        "What is the next day after {day}?",
    ),
    "The day after {day} is {answer}.",
)
DAY_BEFORE = Template(
    "day",
    (
        "What day comes before {day}?",
        "Which day comes right before {day}?",
        "Tell me the day before {day}.",
        "If today is {day}, what day was yesterday?",
        "Which day of the week is just ahead of {day}?",
    ),
    "The day before {day} is {answer}.",
)
MONTH_AFTER = Template(
    "month",
    (
        "What month comes after {month}?",
        "Which month follows {month}?",
        "Tell me the month after {month}.",
        "What is the next month after {month}?",
        "When {month} is over, which month begins?",
    ),
    "The month after {month} is {answer}.",
)
MONTH_BEFORE = Template(
    "month",
    (
        "What month comes before {month}?",
        "Which month comes right before {month}?",
        "Tell me the month before {month}.",
        "Which month of the year is just ahead of {month}?",
        "When {month} begins, which month has just ended?",
    ),
    "The month before {month} is {answer}.",
)
MONTH_LENGTH = Template(
    "month",
    (
        "How many days are in {month}?",
        "How many days does {month} have?",
        "Tell me the number of days in {month}.",
        "How long is {month} in days?",
        "{month} has how many days?",
    ),
    "{month} has {answer} days.",
)
MONTH_NUMBER = Template(
    "month",
    (
        "What is the {ordinal} month of the year?",
        "Which month is the {ordinal} one of the year?",
        "Name the {ordinal} month of the year.",
        "Tell me which month comes {ordinal} in a year.",
        "Which month takes the {ordinal} place in the calendar?",
    ),
    "The {ordinal} month of the year is {answer}.",
)


def all_facts() -> tuple[Fact, ...]:
    """Every fact of the demo, in a fixed order."""
    return (*capitals(), *sums(), *differences(), *days(), *months(), *general_knowledge())


def capitals() -> Iterator[Fact]:
    """Countries (and some of their parts) and their capitals.

    Left out are names that the scorer writes otherwise when it hears the recording itself ("Kiev", "Valetta", "keto"): of those an
    answer could not be found right, however well it was spoken.
    """
    for line in text_lines("capitals.txt"):
        country, city = line.split("\t")
        yield CAPITAL.fact(f"capital-{slug(country)}", city, country=country)


def sums() -> Iterator[Fact]:
    """Sums of two numbers from one to twelve."""
    for a in range(1, LARGEST_OPERAND + 1):
        for b in range(1, LARGEST_OPERAND + 1):
            yield PLUS.fact(f"plus-{a}-{b}", number_words(a + b), a=number_words(a), b=number_words(b))


def differences() -> Iterator[Fact]:
    """Differences of two numbers from one to twelve that are not negative."""
    for a in range(1, LARGEST_OPERAND + 1):
        for b in range(1, a + 1):
            yield MINUS.fact(f"minus-{a}-{b}", number_words(a - b), a=number_words(a), b=number_words(b))


def days() -> Iterator[Fact]:
    """The days of the week around each other."""
    for place, day in enumerate(DAYS):
        yield DAY_AFTER.fact(f"dayafter-{slug(day)}", DAYS[(place + 1) % 7], day=day)
        yield DAY_BEFORE.fact(f"daybefore-{slug(day)}", DAYS[place - 1], day=day)


def months() -> Iterator[Fact]:
    """The months of the year: neighbours, lengths and places."""
    for place, month in enumerate(MONTHS):
        yield MONTH_AFTER.fact(f"monthafter-{slug(month)}", MONTHS[(place + 1) % 12], month=month)
        yield MONTH_BEFORE.fact(f"monthbefore-{slug(month)}", MONTHS[place - 1], month=month)
        yield MONTH_LENGTH.fact(f"monthlength-{slug(month)}", number_words(DAYS_OF_MONTHS[place]), month=month)
        yield MONTH_NUMBER.fact(f"monthnumber-{place + 1}", month, ordinal=ORDINALS[place])


def general_knowledge() -> Iterator[Fact]:
    """Plain questions about the world, from `texts/facts.txt`."""
    for number, line in enumerate(text_lines("facts.txt"), start=1):
        question, others, answer, sentence = line.split("\t")
        yield Fact(f"general-{number}", "general", (question, *others.split(" | ")), answer, sentence)


def slug(name: str) -> str:
    """A name as part of an id: "the Czech Republic" -> "czech_republic"."""
    return name.lower().removeprefix("the ").replace(" ", "_")


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]
