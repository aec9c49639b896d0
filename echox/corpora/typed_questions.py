"""Typed questions of the demo corpus: rows without audio, which train the answers alone."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Sequence
from itertools import chain, zip_longest

from echox.core.files import json_hash
from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.own_answers import OwnAnswers
from echox.corpora.splits import Splits
from echox.corpora.templates import Fact, all_facts
from echox.corpora.wording import plain_words
from echox.data.manifest import UNFINISHED, Item, Role, Row


def typed_facts(config: DemoCorpusConfig, facts: Iterable[Fact], splits: Splits) -> list[Row]:
    """Return trained facts in phrasings that no clip has, spread over the templates.

    Args:
        config: counts and seed.
        facts: of the corpus, of which the unseen ones are left out.
        splits: of their questions.
    """
    # Topics, not facts: four plus three would give three plus four away.
    hidden = {question.fact.topic for question in splits.unseen}
    rng = random.Random(f"{config.seed} typed facts")
    by_template: dict[str, list[tuple[Fact, str]]] = {}
    for fact in facts:
        if fact.topic not in hidden:
            pairs = [(fact, phrasing) for phrasing in fact.written]
            by_template.setdefault(fact.template, []).extend(pairs)
    rounds = zip_longest(*(rng.sample(pairs, len(pairs)) for pairs in by_template.values()))
    # Templates with fewer pairs leave gaps in the later rounds.
    chosen = [pair for pair in chain.from_iterable(rounds) if pair is not None]
    return [
        _row(fact, phrasing) for fact, phrasing in chosen[: config.scaled(config.typed_questions)]
    ]


def typed_numbers(config: DemoCorpusConfig, splits: Splits) -> list[Row]:
    """Return sums and differences up to a hundred, each once.

    A sum is no harder to transcribe than its numbers, but harder to answer.

    Args:
        config: counts and seed.
        splits: whose unseen facts and held-out questions are left out.
    """
    count = config.scaled(config.typed_numbers)
    # Thousands of facts, which are not worth making for none.
    facts = _number_facts(splits) if count else []
    # By their words, because held-out questions may be of the same facts.
    held_out = {plain_words(question.text) for question in splits.held_out}
    rng = random.Random(f"{config.seed} typed")
    rows = []
    for fact in rng.sample(facts, min(count, len(facts))):
        phrasings = [
            phrasing
            for phrasing in (*fact.phrasings, *fact.written)
            if plain_words(phrasing) not in held_out
        ]
        rows.append(_row(fact, rng.choice(phrasings)))
    return rows


def _number_facts(splits: Splits) -> list[Fact]:
    hidden = {question.fact.topic for question in splits.unseen}
    return [
        fact.with_more()
        for fact in all_facts()
        if fact.kind == "number" and fact.topic not in hidden
    ]


def typed_answers(
    config: DemoCorpusConfig,
    questions: Sequence[str],
    own_answers: OwnAnswers | None,
    hidden: Container[str],
) -> list[Row]:
    """Return free questions with the language model's own answers as they are.

    They keep the model from forgetting how it answers in writing.

    Args:
        config: counts.
        questions: free training questions that the language model answers.
        own_answers: of the language model; None gives no rows.
        hidden: contains the texts that training must not have.
    """
    if own_answers is None or not config.typed_answers:
        return []
    rows = []
    # As they are, not cleaned: no voice has to read them.
    for question, answer in own_answers.to(
        questions[: config.scaled(config.typed_answers)]
    ).items():
        text = answer.text.strip()
        if text and answer.text not in hidden:
            # An end of the answer is trained only where the model itself ended it.
            extra = {} if answer.is_whole else {UNFINISHED: True}
            turns = (Item(Role.USER, question), Item(Role.ASSISTANT, text, extra=extra))
            rows.append(Row(f"typed-{json_hash(question, 12)}", turns, {"kind": "free"}))
    return rows


def _row(fact: Fact, question: str) -> Row:
    # The digest tells phrasings of one fact apart.
    turns = (Item(Role.USER, question), Item(Role.ASSISTANT, fact.sentence))
    labels = {"kind": fact.kind, "answer": fact.answer, "fact": fact.id}
    return Row(f"typed-{fact.id}-{json_hash(question, 6)}", turns, labels)
