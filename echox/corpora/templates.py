"""Facts of the demo corpus: seven kinds, each with phrasings of the question and one answer.

Every text here decides what the corpus says: `demo.corpus_fingerprint` hashes them all.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from echox.corpora.wording import text_lines
from echox.data.text import number_words

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January February March April May June July August September October November December".split()
)
# Of a common year: leap days would make the length of February ambiguous.
DAYS_OF_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
LARGEST_OPERAND = 12  # of the kind "arithmetic"
HUNDRED = 100  # the largest number of the kind "number"
KINDS = ("capital", "arithmetic", "day", "month", "general", "rare_capital", "number")


# Fingerprints of corpora hash the repr of all facts: another name of the class or of a field, or
# another order of the fields, makes every corpus be built again.
@dataclass(frozen=True, slots=True)
class Fact:
    """One fact with its questions and its answer."""

    id: str
    kind: str  # one of KINDS
    phrasings: tuple[str, ...]  # of the question
    answer: str  # "Paris"; further accepted answers (spellings, second capitals) after " | "
    sentence: str  # the spoken answer: "The capital of France is Paris."
    more: tuple[str, ...] = ()  # further phrasings, for corpora with `more_phrasings`
    reserved: tuple[str, ...] = ()  # phrasings in which no fact of the template is trained
    written: tuple[str, ...] = ()  # phrasings that are trained in writing alone

    @property
    def template(self) -> str:
        """Name of the template whose phrasings it has, such as "capital" or "plus"."""
        return self.id.split("-")[0]

    @property
    def ways(self) -> tuple[str, ...]:
        """All phrasings of the spoken question, trained or not."""
        return (*self.phrasings, *self.more, *self.reserved)

    @property
    def topic(self) -> tuple[str, ...]:
        """Key that facts share whose answers are the same: three plus four, four plus three."""
        return tuple(sorted(self.id.split("-")))

    def with_more(self) -> Fact:
        """Return the fact with its further phrasings among the trained ones."""
        return replace(self, phrasings=self.phrasings + self.more, more=())


@dataclass(frozen=True, slots=True)
class Template:
    """Phrasings of a question and of its answer, with placeholders in braces."""

    kind: str
    phrasings: tuple[str, ...]
    sentence: str
    more: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()

    def fact(self, fact_id: str, answer: str, **places: str) -> Fact:
        """Fill the placeholders.

        Args:
            fact_id: begins with the name of the template.
            answer: in few words.
            places: placeholder -> text.

        Returns:
            a fact whose texts begin with capital letters.
        """
        # From a file, for there are many more of them than of the others.
        written_phrasings = written_ways().get(fact_id.partition("-")[0], ())
        phrasings, more, reserved, written = (
            tuple(capitalised(phrasing.format(**places)) for phrasing in texts)
            for texts in (self.phrasings, self.more, self.reserved, written_phrasings)
        )
        sentence = capitalised(self.sentence.format(answer=answer, **places))
        return Fact(fact_id, self.kind, phrasings, answer, sentence, more, reserved, written)


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
    more=(
        "What's the capital city of {country}?",
        "Could you please tell me the capital of {country}?",
        "I'd like to know what the capital of {country} is called.",
        "If I travel to {country}, which city is its capital?",
        "Can you name the city that serves as capital of {country}?",
        "{country}, what is its capital?",
    ),
    reserved=(
        "In {country}, which town is the capital?",
        "Any idea what the capital of {country} might be?",
        "Remind me, what do they call their capital over in {country}?",
        "My homework asks for the capital of {country}, so what should I write?",
        "People living in {country} regard which city as their capital?",
    ),
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
    more=(
        "What's {a} plus {b}?",
        "Can you add {a} and {b} for me?",
        "Please work out {a} plus {b}.",
        "What is the total of {a} and {b}?",
        "Could you tell me what {a} and {b} make together?",
        "I need to know how much {a} and {b} add up to.",
    ),
    reserved=(
        "How many are {a} and {b}?",
        "Starting from {a} and counting up by {b}, where do I land?",
        "Put {a} and {b} into one pile, what number do you count?",
        "I have {a} and somebody gives me {b} more, so how many is that?",
        "Which number is larger than {a} by exactly {b}?",
    ),
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
    more=(
        "What's {a} minus {b}?",
        "Can you subtract {b} from {a} for me?",
        "Please work out {a} minus {b}.",
        "What is the difference between {a} and {b}?",
        "Could you tell me what remains when {b} is taken from {a}?",
        "What is {a} take away {b}?",
    ),
    reserved=(
        "By how much is {a} larger than {b}?",
        "Starting from {a} and counting down by {b}, where do I land?",
        "I had {a} and gave {b} to a friend, so how many do I still have?",
        "Which number is smaller than {a} by exactly {b}?",
        "Reduce {a} by {b}, what comes out?",
    ),
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
    more=(
        "What's the day after {day}?",
        "Can you tell me which day comes after {day}?",
        "After {day}, which day do we have?",
        "If it is {day} today, what day will it be tomorrow?",
        "Please name the day that follows {day}.",
        "{day} is followed by which day?",
    ),
    reserved=(
        "It was {day} yesterday, so what is it now?",
        "When the clock strikes midnight at the end of {day}, what day starts?",
        "Say the weekdays in order, which one do you say once {day} is out?",
        "I leave on {day} and arrive one day later, when is that?",
        "The shop is closed on {day} but opens a day later, on which day?",
    ),
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
    more=(
        "What's the day before {day}?",
        "Can you tell me which day comes before {day}?",
        "Before {day}, which day do we have?",
        "If it is {day} today, what day did we have yesterday?",
        "Please name the day that precedes {day}.",
        "{day} comes straight after which day?",
    ),
    reserved=(
        "It will be {day} tomorrow, so what is it now?",
        "Which day has to end so that {day} can start?",
        "Go one step back in the week from {day}, where are you?",
        "I arrive on {day} and set out one day earlier, when was that?",
        "The party is on {day} but we shop for it a day sooner, on which day?",
    ),
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
    more=(
        "What's the month after {month}?",
        "Can you tell me which month comes after {month}?",
        "After {month}, which month do we have?",
        "If it is {month} now, what will next month be?",
        "Please name the month that follows {month}.",
        "{month} is followed by which month?",
    ),
    reserved=(
        "It was {month} last month, so what is it now?",
        "If I tear {month} off the calendar, which page do I see?",
        "Say the months in order, which one do you say once {month} is out?",
        "My trip starts in {month} and ends one month later, when is that?",
        "The day that follows the last of {month} belongs to which month?",
    ),
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
    more=(
        "What's the month before {month}?",
        "Can you tell me which month comes before {month}?",
        "Before {month}, which month do we have?",
        "If it is {month} now, what was last month?",
        "Please name the month that precedes {month}.",
        "{month} comes straight after which month?",
    ),
    reserved=(
        "It will be {month} next month, so what is it now?",
        "Which month has to end so that {month} can start?",
        "Turn the calendar back one page from {month}, what do you see?",
        "My trip ended in {month} and started one month earlier, when was that?",
        "Go one step back in the year from {month}, where are you?",
    ),
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
    more=(
        "What's the number of days in {month}?",
        "Can you tell me how many days {month} has?",
        "Do you know how many days there are in {month}?",
        "How many days long is {month}?",
        "Please count the days of {month}.",
        "In {month}, how many days do we get?",
    ),
    reserved=(
        "How many dates are on the calendar page of {month}?",
        "I can't remember the length of {month}, how many days is it?",
        "If I work every single day of {month}, how many days is that?",
        "From the first of {month} to its end, what is the count of days?",
        "What number does the last day of {month} carry?",
    ),
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
    more=(
        "What's the {ordinal} month of the year called?",
        "Can you tell me the {ordinal} month of the year?",
        "Which month is {ordinal} on the calendar?",
        "Do you know which month is the {ordinal} of twelve?",
        "In a year, which month comes {ordinal}?",
        "Please say the name of the {ordinal} month.",
    ),
    reserved=(
        "Say the months in order, which one do you say {ordinal}?",
        "Counting from New Year, what is the {ordinal} month named?",
        "Open a calendar at its {ordinal} page, what month do you see?",
        "When we reach the {ordinal} month, which one is it?",
        "Of all the months, what do you call the {ordinal} to arrive?",
    ),
)


@functools.cache
def written_ways() -> dict[str, list[str]]:
    """Return the phrasings that are trained in writing alone, by template."""
    phrasings: dict[str, list[str]] = {}
    for line in text_lines("ways.txt"):
        template, phrasing = line.split("\t")
        phrasings.setdefault(template, []).append(phrasing)
    return phrasings


@functools.cache
def all_facts() -> tuple[Fact, ...]:
    """Return every fact of the demo corpus, in a fixed order."""
    # The order is part of the recorded corpora: `splits` draws by it.
    small = (*capitals(), *sums(), *differences(), *days(), *months(), *general_knowledge())
    return (*small, *rare_capitals(), *numbers())


def capitals() -> Iterator[Fact]:
    """Yield countries (and some of their parts) and their capitals.

    Names are left out that the recogniser of the scores spells otherwise even for the recording
    ("Kiev", "Valetta", "keto"): their answers could not be found right, however well synthesized.
    """
    for line in text_lines("capitals.txt"):
        country, city = line.split("\t")
        yield CAPITAL.fact(f"capital-{slug(country)}", city, country=country)


def rare_capitals() -> Iterator[Fact]:
    """Yield the countries that `capitals` leaves out.

    Their answers accept other spellings and second capitals beside the usual name.
    """
    for line in text_lines("rare_capitals.txt"):
        country, city, *others = line.split("\t")
        fact = CAPITAL.fact(f"capital-{slug(country)}", city, country=country)
        yield replace(fact, kind="rare_capital", answer=" | ".join([city, *others]))


def sums() -> Iterator[Fact]:
    """Yield the sums of two numbers from one to twelve."""
    # Both orders of the operands: they are other questions, of the same topic.
    for a in range(1, LARGEST_OPERAND + 1):
        for b in range(1, LARGEST_OPERAND + 1):
            yield plus(a, b)


def differences() -> Iterator[Fact]:
    """Yield the differences of two numbers from one to twelve that are not negative."""
    for a in range(1, LARGEST_OPERAND + 1):
        for b in range(1, a + 1):
            yield minus(a, b)


def numbers() -> Iterator[Fact]:
    """Yield the sums up to a hundred, and the differences of numbers up to a hundred.

    Those of `sums` and `differences` are left out; the order is random, but fixed.
    """
    pairs = [
        (plus, a, b)
        for a in range(1, HUNDRED)
        for b in range(1, HUNDRED - a + 1)
        if max(a, b) > LARGEST_OPERAND
    ]
    pairs += [
        (minus, a, b) for a in range(LARGEST_OPERAND + 1, HUNDRED + 1) for b in range(1, a + 1)
    ]
    # Shuffled, so that a share of them has small and large numbers of both operations.
    for make, a, b in random.Random("numbers").sample(pairs, len(pairs)):
        yield replace(make(a, b), kind="number")


def plus(a: int, b: int) -> Fact:
    """Return the fact of a sum of two numbers."""
    return PLUS.fact(f"plus-{a}-{b}", number_words(a + b), a=number_words(a), b=number_words(b))


def minus(a: int, b: int) -> Fact:
    """Return the fact of a difference of two numbers."""
    return MINUS.fact(f"minus-{a}-{b}", number_words(a - b), a=number_words(a), b=number_words(b))


def days() -> Iterator[Fact]:
    """Yield the days of the week and their neighbours."""
    for place, day in enumerate(DAYS):
        yield DAY_AFTER.fact(f"dayafter-{slug(day)}", DAYS[(place + 1) % 7], day=day)
        # The day before the first is index -1: Sunday.
        yield DAY_BEFORE.fact(f"daybefore-{slug(day)}", DAYS[place - 1], day=day)


def months() -> Iterator[Fact]:
    """Yield the months of the year: neighbours, lengths and numbers."""
    for place, month in enumerate(MONTHS):
        yield MONTH_AFTER.fact(f"monthafter-{slug(month)}", MONTHS[(place + 1) % 12], month=month)
        yield MONTH_BEFORE.fact(f"monthbefore-{slug(month)}", MONTHS[place - 1], month=month)
        yield MONTH_LENGTH.fact(
            f"monthlength-{slug(month)}", number_words(DAYS_OF_MONTHS[place]), month=month
        )
        yield MONTH_NUMBER.fact(f"monthnumber-{place + 1}", month, ordinal=ORDINALS[place])


def general_knowledge() -> Iterator[Fact]:
    """Yield general knowledge from `texts/facts.txt`."""
    for number, line in enumerate(text_lines("facts.txt"), start=1):
        question, others, answer, sentence = line.split("\t")
        phrasings = (question, *others.split(" | "))
        yield Fact(f"general-{number}", "general", phrasings, answer, sentence)


def slug(name: str) -> str:
    """Convert a name to a part of an id: "the Czech Republic" -> "czech_republic"."""
    return name.lower().removeprefix("the ").replace(" ", "_")


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]
