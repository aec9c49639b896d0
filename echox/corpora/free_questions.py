"""Free questions of the demo corpus: English questions of no template, by use."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.templates import Fact, capitalised
from echox.corpora.wording import NearDuplicates, clean, text_lines


class FreeQuestions(NamedTuple):
    """Free questions by use."""

    train: list[str]
    valid: list[str]
    test: list[str]


def free_questions(
    config: DemoCorpusConfig,
    facts: Iterable[Fact],
    words: Sequence[str],
    hidden: Container[str],
) -> FreeQuestions:
    """Choose the free questions of each use.

    None is a near duplicate of a template's question, and none for training one of a held-out or an
    open question.

    Args:
        config: counts and seed.
        facts: whose questions are left out.
        words: of the language model's vocabulary, for framed questions.
        hidden: contains the texts that training must not have.

    Returns:
        questions of each use; none at all where `config.free_questions` is off.
    """
    if not config.free_questions:
        return FreeQuestions([], [], [])
    # A free question like a template's would have another answer than the template has.
    templates = NearDuplicates([phrasing for fact in facts for phrasing in fact.phrasings])
    texts = sample_share(cleaned("questions.txt"), config, "free questions")
    texts = [text for text in texts if text not in templates]
    # However few there are, at least half of them train.
    test = min(config.scaled(config.free_test_questions), len(texts) // 4)
    valid = min(config.scaled(config.free_valid_questions), len(texts) // 4)
    # The texts are in random order already, so slices are random samples.
    held_out, others = texts[: test + valid], texts[test + valid :]
    rng = random.Random(f"{config.seed} places of framed questions")
    # Between the others, so that the language model answers as large a share of them.
    for question in _framed_questions(config, words):
        others.insert(rng.randrange(len(others) + 1), question)
    # Framed questions go through the same filter: their words may be those of a held-out question.
    excluded = NearDuplicates(held_out + [question for question, _ in open_questions()])
    train = [text for text in others if text not in excluded and text not in hidden]
    return FreeQuestions(train, held_out[test:], held_out[:test])


def _framed_questions(config: DemoCorpusConfig, words: Sequence[str]) -> list[str]:
    """Questions about words of the vocabulary, each word in a frame drawn for it.

    Some frames take another word beside it.
    """
    rng = random.Random(f"{config.seed} frames")
    chosen = rng.sample(words, min(config.scaled(config.framed_questions), len(words)))
    frames = text_lines("frames.txt")
    # A second word is drawn for frames without a place for it too: every question costs two draws.
    return [
        capitalised(rng.choice(frames).format(word=word, other=rng.choice(words)))
        for word in chosen
    ]


def open_questions() -> list[tuple[str, str]]:
    """Return question and answer of each line of `open_questions.txt`, in a fixed random order."""
    # By a seed of its own: the first so many are the same in every corpus.
    lines = text_lines("open_questions.txt")
    shuffled = random.Random("open").sample(lines, len(lines))
    return [(question, answer) for question, answer in (line.split("\t") for line in shuffled)]


def cleaned(name: str) -> list[str]:
    """Return the distinct lines of a file in `texts/` that have a spoken form, cleaned."""
    # A dict, because a set would have another order in every process.
    texts = (clean(line) for line in text_lines(name))
    return list(dict.fromkeys(text for text in texts if text is not None))


def sample_share(texts: Sequence[str], config: DemoCorpusConfig, purpose: str) -> list[str]:
    """Return the config's share of texts in random order; `purpose` separates the draws."""
    return random.Random(f"{config.seed} {purpose}").sample(texts, config.scaled(len(texts)))
