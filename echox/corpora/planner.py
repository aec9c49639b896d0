"""Which rows the demo corpus has: what is asked, in which words, by whom, and what only the tests hold."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.own_answers import OwnAnswers
from echox.corpora.speech_texts import Line, Pool, choose_speech
from echox.corpora.splits import Ask, Splits, evenly, names_of, pattern_of, split_questions, spread
from echox.corpora.studio import Studio, cast, digest, is_program, voices_of
from echox.corpora.templates import KINDS, Fact, all_facts, capitalised
from echox.corpora.vocabulary import in_random_company, other_words
from echox.corpora.voices import Role as Use
from echox.corpora.wording import NearDuplicates, clean, first_sentences, number_words, plain_words, spoken_pieces, text_lines
from echox.data.manifest import NO_SPEECH, UNFINISHED, Item, Role, Row
from echox.errors import ConfigError

HUNDRED = 100
PIECE_WORDS = 14  # some five seconds
NOTHING_HEARD = "I did not hear a question."


def voices_by_use(config: DemoCorpusConfig) -> dict[str, tuple[str, ...]]:
    """Role -> names of the voices that have it on this machine."""
    return {use.value: voices_of(use, config.programs and use is not Use.ANSWER) for use in Use}


class FreeTexts(NamedTuple):
    """Free questions by use."""

    train: list[str]
    valid: list[str]
    test: list[str]


class Names:
    """Names of countries that training is not to hear; tells which texts hold one."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        """Args: facts: those that are never trained; of capitals the country is kept out, of others nothing."""
        self._names = pattern_of(name for fact in facts if fact.template == "capital" for name in names_of(fact))

    def __contains__(self, text: str) -> bool:
        return self._names.search(text) is not None


class Planner:
    """Decides every row of every manifest, and asks the studio for its clips."""

    def __init__(self, config: DemoCorpusConfig, studio: Studio, own_answers: OwnAnswers | None) -> None:
        self.config = config
        self.studio = studio
        self.own_answers = own_answers
        self.voices = voices_by_use(config)
        self.reader = self.voices[Use.ANSWER.value][0]
        self.test_voices = [voice for voice in self.voices[Use.TEST.value] if not is_program(voice)]
        self.program_voices = [voice for voice in self.voices[Use.TEST.value] if is_program(voice)]
        self.spoken_answers: set[str] = set()
        self.hidden = Names([])

    def manifests(self, words: list[str]) -> dict[str, list[Row]]:
        """File name -> rows, whose clips are asked for but not recorded yet; `words` are spoken beside the questions."""
        config = self.config
        facts = spread_share(asked_facts(config), config)
        counts = {
            "test": config.test_questions,
            "valid": config.valid_questions,
            "unseen": config.unseen_facts,
            "reworded": config.reworded_questions,
        }
        splits = split_questions(facts, seed=config.seed, **{name: config.scaled(count) for name, count in counts.items()})
        if not splits.valid:
            raise ConfigError(
                f"the corpus would have no question to validate on: {len(facts)} facts of the kinds {', '.join(config.kinds)} are too few; "
                "add kinds, or raise facts_by_kind or share"
            )
        if config.hide_names:
            self.hidden = Names([ask.fact for ask in splits.unseen])
        words = [word for word in words if word not in self.hidden]
        free = self._free_texts(facts, words)
        manifests = self._speech(facts, splits, free)
        manifests |= self._questions(splits)
        if config.free_questions:
            clips = config.clips_per_question
            voices, answered = self.voices[Use.TRAIN.value], config.answered_questions
            manifests["free.train.jsonl"] = self._free(free.train, voices, clips=clips, answered=answered, augmented=True)
            manifests["free.valid.jsonl"] = self._free(free.valid, self.voices[Use.VALID.value], answered=0, augmented=False)
            manifests["free.test.jsonl"] = self._free(free.test, self.test_voices, augmented=False)
        manifests["open.test.jsonl"] = self._open_questions()
        manifests["typed.train.jsonl"] = [*self._typed_facts(facts, splits), *self._typed_numbers(splits), *self._typed_answers(free)]
        manifests["silent.train.jsonl"] = self._silent("train", config.scaled(config.silent_clips))
        manifests["silent.test.jsonl"] = self._silent("test", math.ceil(config.scaled(config.silent_clips) / 10))
        manifests["heard.train.jsonl"] = self._heard(words, splits, free)
        return {name: rows for name, rows in manifests.items() if rows}

    def _questions(self, splits: Splits) -> dict[str, list[Row]]:
        testing = self.test_voices
        test = self._asked("test", splits.test, testing) + self._asked("test_program", splits.test, self.program_voices)
        unseen = self._asked("unseen", splits.unseen, testing) + self._asked("unseen_program", splits.unseen, self.program_voices)
        return {
            "questions.train.jsonl": self._trained(splits.train),
            "questions.valid.jsonl": self._asked("valid", splits.valid, self.voices[Use.VALID.value]),
            "questions.test.jsonl": test,
            "reworded.test.jsonl": self._asked("reworded", splits.reworded, testing),
            "unseen.test.jsonl": [dataclasses.replace(row, extra={**row.extra, "unseen_fact": True}) for row in unseen],
        }

    def _trained(self, asks: Sequence[Ask]) -> list[Row]:
        rows = []
        for kind in dict.fromkeys(ask.fact.kind for ask in asks):
            clips = self.config.clips_by_kind.get(kind, self.config.clips_per_question)
            chosen = evenly([ask for ask in asks if ask.fact.kind == kind], min(1.0, clips))
            rows += self._asked("train", chosen, self.voices[Use.TRAIN.value], clips=math.ceil(clips), augmented=True)
        return rows

    def _asked(self, use: str, asks: Sequence[Ask], voices: Sequence[str], *, clips: int = 1, augmented: bool = False) -> list[Row]:
        """One row per question and clip, each clip in another voice as long as there are voices."""
        rows = []
        for ask in asks:
            fact, text = ask.fact, ask.text
            labels = {"kind": fact.kind, "answer": fact.answer, "fact": fact.id, "phrasing": ask.phrasing}
            for clip, voice in enumerate(cast(text, voices, clips, self.config.seed)):
                asked = self.studio.clip(text, voice, augmented=augmented, take=clip // len(voices))
                row_id = f"{use}-{fact.id}-p{ask.phrasing}" + (f"-c{clip}" if clips > 1 else "")
                rows.append(self._row(row_id, asked, text, fact.sentence, {**labels, **origin(voice)}))
        return rows

    def _open_questions(self) -> list[Row]:
        """Questions about the world with short answers, asked by test voices."""
        rows = []
        for question, answer in open_questions()[: self.config.scaled(self.config.open_questions)]:
            (voice,) = cast(question, self.test_voices, 1, self.config.seed)
            labels = {"kind": "open", "answer": answer, **origin(voice)}
            rows.append(self._row(f"open-{digest(question, 12)}", self.studio.clip(question, voice), question, "", labels))
        return rows

    def _typed_facts(self, facts: Iterable[Fact], splits: Splits) -> list[Row]:
        """Trained facts in writing, in ways to ask that no clip has, as many of each template as there are; spread over the templates."""
        hidden = {ask.fact.topic for ask in splits.unseen}
        rng = random.Random(f"{self.config.seed} typed facts")
        by_template: dict[str, list[tuple[Fact, str]]] = {}
        for fact in facts:
            if fact.topic not in hidden:
                by_template.setdefault(fact.template, []).extend((fact, way) for way in fact.written)
        in_turn = chain.from_iterable(zip_longest(*(rng.sample(pairs, len(pairs)) for pairs in by_template.values())))
        chosen = [pair for pair in in_turn if pair is not None][: self.config.scaled(self.config.typed_questions)]
        return [_typed_row(fact, way) for fact, way in chosen]

    def _typed_numbers(self, splits: Splits) -> list[Row]:
        """Sums and differences in writing, each once; a sum is no harder to hear than its numbers, but harder to know."""
        count = self.config.scaled(self.config.typed_numbers)
        hidden = {ask.fact.topic for ask in splits.unseen}
        facts = [fact.with_more() for fact in all_facts() if fact.kind == "number" and fact.topic not in hidden] if count else []
        held_out = {plain_words(ask.text) for ask in splits.held_out}
        rng = random.Random(f"{self.config.seed} typed")
        rows = []
        for fact in rng.sample(facts, min(count, len(facts))):
            ways = [way for way in (*fact.phrasings, *fact.written) if plain_words(way) not in held_out]
            rows.append(_typed_row(fact, rng.choice(ways)))
        return rows

    def _typed_answers(self, free: FreeTexts) -> list[Row]:
        """What the language model says to free training questions, as it says it, so that it goes on to."""
        if self.own_answers is None or not self.config.typed_answers:
            return []
        asked = free.train[: self.config.answered_questions][: self.config.scaled(self.config.typed_answers)]
        rows = []
        for question, answer in self.own_answers.to(asked).items():
            if answer.text.strip() and answer.text not in self.hidden:
                said = Item(Role.ASSISTANT, answer.text.strip(), extra={} if answer.is_whole else {UNFINISHED: True})
                rows.append(Row(f"typed-{digest(question, 12)}", (Item(Role.USER, question), said), {"kind": "free"}))
        return rows

    def _silent(self, use: str, count: int) -> list[Row]:
        """Clips in which nobody speaks, and the request to say it again."""
        voice = self.voices[Use.SILENCE.value][0]
        rows = []
        for number in range(count):
            turns = (
                Item(Role.USER, audio=self.studio.clip(f"{use} {number}", voice)),
                Item(Role.ASSISTANT, NOTHING_HEARD),
            )
            labels = {"kind": "silence", NO_SPEECH: True, "answer": NOTHING_HEARD, "voice": voice}
            rows.append(Row(f"silent-{use}-{number}", turns, labels))
        return rows

    def _row(self, row_id: str, asked: Path, question: str, answer: str, labels: dict[str, Any]) -> Row:
        spoken = self.studio.clip(answer, self.reader) if answer in self.spoken_answers else None
        return Row(row_id, (Item(Role.USER, audio=asked), Item(Role.ASSISTANT, answer, audio=spoken, transcription=question)), labels)

    def _free_texts(self, facts: Iterable[Fact], words: Sequence[str]) -> FreeTexts:
        """Free questions by use, nothing like a trained kind's, and no training one like one that is held out."""
        if not self.config.free_questions:
            return FreeTexts([], [], [])
        templates = NearDuplicates([phrasing for fact in facts for phrasing in fact.phrasings])
        texts = sample_share(cleaned("questions.txt"), self.config, "free questions")
        texts = [text for text in texts if text not in templates]
        wanted = [self.config.scaled(count) for count in (self.config.free_test_questions, self.config.free_valid_questions)]
        test, valid = (min(count, len(texts) // 4) for count in wanted)
        held_out = texts[: test + valid]
        others = texts[len(held_out) :]
        rng = random.Random(f"{self.config.seed} places of framed questions")
        # Between the others, so that the language model answers as large a share of them.
        for framed in self._framed(words):
            others.insert(rng.randrange(len(others) + 1), framed)
        kept_out = NearDuplicates(held_out + [question for question, _ in open_questions()])
        train = [text for text in others if text not in kept_out and text not in self.hidden]
        return FreeTexts(train, held_out[test:], held_out[:test])

    def _framed(self, words: Sequence[str]) -> list[str]:
        """Questions about words of the vocabulary, each word in a frame drawn for it; some frames take another word beside it."""
        rng = random.Random(f"{self.config.seed} frames")
        chosen = rng.sample(words, min(self.config.scaled(self.config.framed_questions), len(words)))
        frames = text_lines("frames.txt")
        return [capitalised(rng.choice(frames).format(word=word, other=rng.choice(words))) for word in chosen]

    def _heard(self, words: list[str], splits: Splits, free: FreeTexts) -> list[Row]:
        """Sentences, pieces of the language model's answers, and words in random company, each by a training voice."""
        config = self.config
        questions = [ask.text for ask in splits.train] + free.train
        texts = [("sentence", text) for text in self._sentences()[: config.scaled(config.heard_sentences)]]
        texts += [("answer", text) for text in self._answer_pieces(free) if text not in self.hidden]
        rare = other_words(questions, words) if config.rare_word_takes else []
        numbers = list(map(number_words, range(HUNDRED + 1)))
        groups = ((words, config.vocabulary_takes), (rare, config.rare_word_takes), (numbers, config.number_takes))
        for several, takes in groups:
            texts += [("words", text) for text in in_random_company(several, takes, config.words_per_clip, config.seed)]
        rows = []
        for number, (kind, text) in enumerate(texts):
            (voice,) = cast(text, self.voices[Use.TRAIN.value], 1, config.seed)
            asked = self.studio.clip(text, voice, augmented=True)
            rows.append(self._row(f"heard-{number}", asked, text, "", {"kind": kind, **origin(voice)}))
        return rows

    def _answer_pieces(self, free: FreeTexts) -> list[str]:
        """What the language model says to free training questions, whole answers, in pieces of a few seconds; each once."""
        if self.own_answers is None or not self.config.heard_answers:
            return []
        asked = free.train[: self.config.answered_questions]
        pieces = [piece for answer in self.own_answers.to(asked).values() for piece in spoken_pieces(answer.text, PIECE_WORDS)]
        return list(dict.fromkeys(pieces))[: self.config.scaled(self.config.heard_answers)]

    def _sentences(self) -> list[str]:
        return [text for text in sample_share(cleaned("sentences.txt"), self.config, "sentences") if text not in self.hidden]

    def _free(
        self, questions: Sequence[str], voices: Sequence[str], *, clips: int = 1, answered: int | None = None, augmented: bool
    ) -> list[Row]:
        """Free questions, of which the language model answers the first `answered` (None is all)."""
        answers = self._answers(questions[:answered])
        rows = []
        for question in questions:
            for clip, voice in enumerate(cast(question, voices, clips, self.config.seed)):
                asked = self.studio.clip(question, voice, augmented=augmented, take=clip // len(voices))
                row_id = f"free-{digest(question, 12)}" + (f"-c{clip}" if clips > 1 else "")
                rows.append(self._row(row_id, asked, question, answers.get(question, ""), {"kind": "free", **origin(voice)}))
        return rows

    def _answers(self, questions: Sequence[str], seed: int | None = None) -> dict[str, str]:
        """The language model's usable answers by question."""
        if self.own_answers is None:
            return {}
        said = self.own_answers.to(questions, seed)
        firsts = ((question, first_sentences(answer.text, self.config.max_answer_words)) for question, answer in said.items())
        return {question: first for question, first in firsts if first is not None and first not in self.hidden}

    def _speech(self, facts: Sequence[Fact], splits: Splits, free: FreeTexts) -> dict[str, list[Row]]:
        seeds, unseen = (None, *range(self.config.sampled_answers)), {ask.fact.topic for ask in splits.unseen}
        pool = Pool(
            answers=[fact.sentence for fact in facts if fact.topic not in unseen],
            own_answers=[answer for seed in seeds for answer in self._answers(free.train[: self.config.answered_questions], seed).values()],
            reserved_answers=list(self._answers(free.test).values()),
            sentences=self._sentences(),
            questions=free.train,
            fillers=[ask.text for ask in splits.train],
        )
        hours = self.config.speech_hours * self.config.share
        texts = choose_speech(pool, hours=hours, share=self.config.share, seed=self.config.seed)
        lines = {"train": texts.train, "valid": texts.valid, "test": texts.test}
        self.spoken_answers = {line.text for use in lines.values() for line in use}
        return {f"speech.{use}.jsonl": [self._speech_row(line) for line in chosen] for use, chosen in lines.items()}

    def _speech_row(self, line: Line) -> Row:
        said = Item(Role.ASSISTANT, line.text, audio=self.studio.clip(line.text, self.reader))
        return Row(f"{line.kind}-{digest(line.text, 12)}", (said,), {"kind": line.kind, "voice": self.reader})


def _typed_row(fact: Fact, question: str) -> Row:
    turns = (Item(Role.USER, question), Item(Role.ASSISTANT, fact.sentence))
    return Row(f"typed-{fact.id}-{digest(question, 6)}", turns, {"kind": fact.kind, "answer": fact.answer, "fact": fact.id})


def origin(voice: str) -> dict[str, str]:
    """The labels of a row that say who speaks, and whether pip alone brings that voice."""
    return {"voice": voice, "voice_source": "program" if is_program(voice) else "pip"}


def asked_facts(config: DemoCorpusConfig) -> list[Fact]:
    """The facts of the config's kinds, at most as many of each as it says, in their order."""
    found: list[Fact] = []
    for kind in KINDS:
        facts = [fact for fact in all_facts() if fact.kind == kind] if kind in config.kinds else []
        count = min(len(facts), config.facts_by_kind.get(kind, len(facts)))
        found += [facts[place * len(facts) // count] for place in range(count)]
    return [fact.with_more() for fact in found] if config.more_phrasings else found


def spread_share(facts: Sequence[Fact], config: DemoCorpusConfig) -> list[Fact]:
    """The config's share of the facts, spread over the kinds; all of them in their order where it is 1."""
    if config.share == 1:
        return list(facts)
    return spread(facts, config.scaled(len(facts)), random.Random(f"{config.seed} facts"))


def sample_share(texts: Sequence[str], config: DemoCorpusConfig, purpose: str) -> list[str]:
    """The config's share of texts, in random order."""
    return random.Random(f"{config.seed} {purpose}").sample(texts, config.scaled(len(texts)))


def cleaned(name: str) -> list[str]:
    """The lines of a text file that can be spoken, each once."""
    return list(dict.fromkeys(text for line in text_lines(name) if (text := clean(line)) is not None))


def open_questions() -> list[tuple[str, str]]:
    """Question and answer of every line of `open_questions.txt`, in a fixed random order."""
    lines = text_lines("open_questions.txt")
    return [tuple(line.split("\t")) for line in random.Random("open").sample(lines, len(lines))]
