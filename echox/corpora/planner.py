"""Rows of the demo corpus: the questions of each manifest, their voices and their answers."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from echox.core.errors import ConfigError
from echox.core.files import json_hash
from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.free_questions import (
    FreeQuestions,
    cleaned,
    free_questions,
    open_questions,
    sample_share,
)
from echox.corpora.own_answers import OwnAnswers
from echox.corpora.recording import ClipRecorder, assign_voices, is_program, voices_of
from echox.corpora.speech_texts import Line, Pool, choose_speech
from echox.corpora.splits import HiddenNames, Question, Splits, every_nth, split_questions, spread
from echox.corpora.templates import HUNDRED, KINDS, Fact, all_facts
from echox.corpora.typed_questions import typed_answers, typed_facts, typed_numbers
from echox.corpora.vocabulary import missing_takes, other_words, random_word_texts
from echox.corpora.voices import Role as VoiceRole
from echox.corpora.wording import first_sentences, spoken_pieces
from echox.data.manifest import NO_SPEECH, Item, Role, Row
from echox.data.text import number_words

PIECE_WORDS = 14  # about five seconds of speech
# The answer to silence, and what the test of silence counts as right.
NOTHING_HEARD = "I did not hear a question."


def voices_by_use(config: DemoCorpusConfig) -> dict[str, tuple[str, ...]]:
    """Return role -> names of the voices that have it on this machine.

    Raises:
        ConfigError: there is no voice for a role.
    """
    return {
        # All answers have one voice, which must not depend on what is installed.
        role.value: voices_of(role, config.programs and role is not VoiceRole.ANSWER)
        for role in VoiceRole
    }


class Planner:
    """Decides every row of every manifest, and requests the clips of the rows.

    Args:
        config: what the corpus holds.
        recorder: of its clips.
        own_answers: of the language model; None leaves free questions without answers.

    Raises:
        ConfigError: there is no voice for a role.
    """

    def __init__(
        self, config: DemoCorpusConfig, recorder: ClipRecorder, own_answers: OwnAnswers | None
    ) -> None:
        self.config = config
        self.recorder = recorder
        self.own_answers = own_answers
        voices = voices_by_use(config)
        self.answer_voice = voices[VoiceRole.ANSWER.value][0]
        self.silence = voices[VoiceRole.SILENCE.value][0]
        self.train_voices = voices[VoiceRole.TRAIN.value]
        self.valid_voices = voices[VoiceRole.VALID.value]
        # Programs have rows of their own, because not every machine has them: the other rows are
        # the same everywhere, and their scores compare.
        test_voices = voices[VoiceRole.TEST.value]
        self.test_voices = [voice for voice in test_voices if not is_program(voice)]
        self.program_voices = [voice for voice in test_voices if is_program(voice)]
        # Set by `_speech_manifests`: the texts that have a clip in the answers' voice.
        self.spoken_answers: set[str] = set()
        self.hidden = HiddenNames([])

    def manifests(self, words: list[str]) -> dict[str, list[Row]]:
        """Plan all rows.

        Args:
            words: of the language model's vocabulary, which are spoken beside the questions.

        Returns:
            file name -> rows, whose clips are requested but not recorded yet.

        Raises:
            ConfigError: there are too few facts for a validation question.
        """
        config = self.config
        facts = spread_share(selected_facts(config), config)
        splits = self._splits(facts)
        if config.hide_names:
            self.hidden = HiddenNames([question.fact for question in splits.unseen])
        # A hidden name leaves every text for training, single words included.
        words = [word for word in words if word not in self.hidden]
        free = free_questions(config, facts, words, self.hidden)
        # First, because it decides which answers are spoken, in the rows of all other manifests.
        manifests = self._speech_manifests(facts, splits, free)
        manifests |= self._question_manifests(splits)
        if config.free_questions:
            manifests |= self._free_manifests(free)
        silent_clips = config.scaled(config.silent_clips)
        manifests |= {
            "open.test.jsonl": self._open_rows(),
            "typed.train.jsonl": self._typed_rows(facts, splits, free),
            "silent.train.jsonl": self._silent_rows("train", silent_clips),
            "silent.test.jsonl": self._silent_rows("test", math.ceil(silent_clips / 10)),
        }
        spoken = [
            row.turns[-1].transcription
            for name in ("questions.train.jsonl", "free.train.jsonl")
            for row in manifests.get(name, ())
        ]
        manifests["heard.train.jsonl"] = self._transcription_rows(words, splits, free, spoken)
        # A manifest without rows could not be read again.
        return {name: rows for name, rows in manifests.items() if rows}

    def _splits(self, facts: Sequence[Fact]) -> Splits:
        config = self.config
        splits = split_questions(
            facts,
            test=config.scaled(config.test_questions),
            valid=config.scaled(config.valid_questions),
            unseen=config.scaled(config.unseen_facts),
            reworded=config.scaled(config.reworded_questions),
            seed=config.seed,
        )
        if not splits.valid:
            raise ConfigError(
                f"the corpus would have no question to validate on: {len(facts)} facts of the "
                f"kinds {', '.join(config.kinds)} are too few; "
                "add kinds, or raise facts_by_kind or share"
            )
        return splits

    def _question_manifests(self, splits: Splits) -> dict[str, list[Row]]:
        """Rows of the templates' questions, by manifest."""
        test = self._question_rows("test", splits.test, self.test_voices)
        test += self._question_rows("test_program", splits.test, self.program_voices)
        unseen = self._question_rows("unseen", splits.unseen, self.test_voices)
        unseen += self._question_rows("unseen_program", splits.unseen, self.program_voices)
        return {
            "questions.train.jsonl": self._trained_rows(splits.train),
            "questions.valid.jsonl": self._question_rows("valid", splits.valid, self.valid_voices),
            "questions.test.jsonl": test,
            "reworded.test.jsonl": self._question_rows(
                "reworded", splits.reworded, self.test_voices
            ),
            "unseen.test.jsonl": [
                dataclasses.replace(row, extra={**row.extra, "unseen_fact": True}) for row in unseen
            ],
        }

    def _trained_rows(self, questions: Sequence[Question]) -> list[Row]:
        rows = []
        # Kinds in the order of the questions; a set would have another order in every process.
        for kind in dict.fromkeys(question.fact.kind for question in questions):
            clips = self.config.clips_by_kind.get(kind, self.config.clips_per_question)
            of_kind = [question for question in questions if question.fact.kind == kind]
            # A fraction below 1 speaks so many of the questions, each once.
            rows += self._question_rows(
                "train",
                every_nth(of_kind, min(1.0, clips)),
                self.train_voices,
                clips=math.ceil(clips),
                augmented=True,
            )
        return rows

    def _question_rows(
        self,
        use: str,
        questions: Sequence[Question],
        voices: Sequence[str],
        *,
        clips: int = 1,
        augmented: bool = False,
    ) -> list[Row]:
        """One row per question and clip, each clip in another voice as long as there are voices."""
        rows = []
        for question in questions:
            fact, text, phrasing = question.fact, question.text, question.phrasing
            for number, voice, path in self._clips(text, voices, clips, augmented):
                labels = {
                    "kind": fact.kind,
                    "answer": fact.answer,
                    "fact": fact.id,
                    "phrasing": phrasing,
                    **voice_labels(voice),
                }
                # Made of the row's contents, so that ids stay the same when other rows come or go.
                row_id = f"{use}-{fact.id}-p{phrasing}" + (f"-c{number}" if clips > 1 else "")
                rows.append(self._row(row_id, path, text, fact.sentence, labels))
        return rows

    def _clips(
        self, text: str, voices: Sequence[str], clips: int, augmented: bool
    ) -> Iterator[tuple[int, str, Path]]:
        """Number, voice and path of each clip of a text."""
        chosen = assign_voices(text, voices, clips, self.config.seed)
        for number, voice in enumerate(chosen):
            # With more clips than voices a voice comes again, and then in another rendition.
            take = number // len(voices)
            yield number, voice, self.recorder.clip(text, voice, augmented=augmented, take=take)

    def _free_manifests(self, free: FreeQuestions) -> dict[str, list[Row]]:
        config = self.config
        return {
            "free.train.jsonl": self._free_rows(
                free.train,
                self.train_voices,
                clips=config.clips_per_question,
                answered=config.answered_questions,
                augmented=True,
            ),
            "free.valid.jsonl": self._free_rows(
                free.valid, self.valid_voices, answered=0, augmented=False
            ),
            "free.test.jsonl": self._free_rows(free.test, self.test_voices, augmented=False),
        }

    def _free_rows(
        self,
        questions: Sequence[str],
        voices: Sequence[str],
        *,
        clips: int = 1,
        answered: int | None = None,
        augmented: bool,
    ) -> list[Row]:
        """Free questions, the first `answered` of them (None is all) with own answers."""
        answers = self._answers(questions[:answered])
        rows = []
        for question in questions:
            for number, voice, path in self._clips(question, voices, clips, augmented):
                # By the text, for the number of a free question changes with the share.
                row_id = f"free-{json_hash(question, 12)}" + (f"-c{number}" if clips > 1 else "")
                labels = {"kind": "free", **voice_labels(voice)}
                rows.append(self._row(row_id, path, question, answers.get(question, ""), labels))
        return rows

    def _open_rows(self) -> list[Row]:
        """Questions about the world with short answers, in test voices."""
        # Without an assistant's text: the answer is to be scored by, not to be learned.
        rows = []
        for question, answer in open_questions()[: self.config.scaled(self.config.open_questions)]:
            ((_, voice, path),) = self._clips(question, self.test_voices, 1, augmented=False)
            labels = {"kind": "open", "answer": answer, **voice_labels(voice)}
            rows.append(self._row(f"open-{json_hash(question, 12)}", path, question, "", labels))
        return rows

    def _typed_rows(self, facts: Sequence[Fact], splits: Splits, free: FreeQuestions) -> list[Row]:
        config = self.config
        answered = free.train[: config.answered_questions]
        return [
            *typed_facts(config, facts, splits),
            *typed_numbers(config, splits),
            *typed_answers(config, answered, self.own_answers, self.hidden),
        ]

    def _silent_rows(self, use: str, count: int) -> list[Row]:
        """Clips without speech, answered by a request to repeat the question."""
        rows = []
        for number in range(count):
            # The text only names the clip: other numbers are other silences.
            turns = (
                Item(Role.USER, audio=self.recorder.clip(f"{use} {number}", self.silence)),
                Item(Role.ASSISTANT, NOTHING_HEARD),
            )
            labels = {
                "kind": "silence",
                NO_SPEECH: True,
                "answer": NOTHING_HEARD,
                "voice": self.silence,
            }
            rows.append(Row(f"silent-{use}-{number}", turns, labels))
        return rows

    def _transcription_rows(
        self, words: list[str], splits: Splits, free: FreeQuestions, spoken: list[str]
    ) -> list[Row]:
        """Rows without an answer, which train transcription alone, each in one training voice.

        They hold sentences, pieces of the language model's answers, and words grouped at random,
        each as often as it takes beside these and the texts `spoken` in other rows.
        """
        rows = []
        texts = self._transcription_texts(words, splits, free, spoken)
        # The numbers are part of the ids: the kinds keep their order.
        for number, (kind, text) in enumerate(texts):
            ((_, voice, path),) = self._clips(text, self.train_voices, 1, augmented=True)
            labels = {"kind": kind, **voice_labels(voice)}
            rows.append(self._row(f"heard-{number}", path, text, "", labels))
        return rows

    def _transcription_texts(
        self, words: list[str], splits: Splits, free: FreeQuestions, spoken: list[str]
    ) -> list[tuple[str, str]]:
        """Kind and text of each row that trains transcription alone."""
        config = self.config
        sentences = self._sentences()[: config.scaled(config.heard_sentences)]
        pieces = [text for text in self._answer_pieces(free) if text not in self.hidden]
        texts = [("sentence", text) for text in sentences] + [("answer", text) for text in pieces]
        questions = [question.text for question in splits.train] + free.train
        # Words that the vocabulary splits into several tokens, such as names.
        rare = other_words(questions, words) if config.rare_word_takes else []
        numbers = list(map(number_words, range(HUNDRED + 1)))
        for takes in (
            missing_takes(words, config.vocabulary_takes, [*spoken, *sentences, *pieces]),
            dict.fromkeys(rare, config.rare_word_takes),
            dict.fromkeys(numbers, config.number_takes),
        ):
            grouped = random_word_texts(takes, config.words_per_clip, config.seed)
            texts += [("words", f"{config.words_lead} {text}".strip()) for text in grouped]
        return texts

    def _answer_pieces(self, free: FreeQuestions) -> list[str]:
        """Distinct pieces of a few seconds of the language model's whole answers."""
        if self.own_answers is None or not self.config.heard_answers:
            return []
        answers = self.own_answers.to(free.train[: self.config.answered_questions])
        pieces = [
            piece
            for answer in answers.values()
            for piece in spoken_pieces(answer.text, PIECE_WORDS)
        ]
        return list(dict.fromkeys(pieces))[: self.config.scaled(self.config.heard_answers)]

    def _sentences(self) -> list[str]:
        sentences = sample_share(cleaned("sentences.txt"), self.config, "sentences")
        return [text for text in sentences if text not in self.hidden]

    def _answers(self, questions: Sequence[str], seed: int | None = None) -> dict[str, str]:
        """The language model's usable answers by question."""
        if self.own_answers is None:
            return {}
        answers = {}
        # Those of other questions are dropped, and the questions serve transcription alone.
        for question, answer in self.own_answers.to(questions, seed).items():
            text = first_sentences(answer.text, self.config.max_answer_words)
            if text is not None and text not in self.hidden:
                answers[question] = text
        return answers

    def _speech_manifests(
        self, facts: Sequence[Fact], splits: Splits, free: FreeQuestions
    ) -> dict[str, list[Row]]:
        """Sentences in the voice of the answers; also sets `spoken_answers`."""
        config = self.config
        pool = self._speech_pool(facts, splits, free)
        hours = config.speech_hours * config.share
        texts = choose_speech(pool, hours=hours, share=config.share, seed=config.seed)
        lines = {"train": texts.train, "valid": texts.valid, "test": texts.test}
        self.spoken_answers = {line.text for of_use in lines.values() for line in of_use}
        return {
            f"speech.{use}.jsonl": [self._speech_row(line) for line in of_use]
            for use, of_use in lines.items()
        }

    def _speech_pool(self, facts: Sequence[Fact], splits: Splits, free: FreeQuestions) -> Pool:
        config = self.config
        unseen = {question.fact.topic for question in splits.unseen}
        answered = free.train[: config.answered_questions]
        own_answers = [
            answer
            for seed in (None, *range(config.sampled_answers))  # greedy, then samples
            for answer in self._answers(answered, seed).values()
        ]
        return Pool(
            answers=[fact.sentence for fact in facts if fact.topic not in unseen],
            own_answers=own_answers,
            reserved_answers=list(self._answers(free.test).values()),
            sentences=self._sentences(),
            questions=free.train,
            fillers=[question.text for question in splits.train],
        )

    def _speech_row(self, line: Line) -> Row:
        path = self.recorder.clip(line.text, self.answer_voice)
        turns = (Item(Role.ASSISTANT, line.text, audio=path),)
        labels = {"kind": line.kind, "voice": self.answer_voice}
        return Row(f"{line.kind}-{json_hash(line.text, 12)}", turns, labels)

    def _row(
        self, row_id: str, question_audio: Path, question: str, answer: str, labels: dict[str, Any]
    ) -> Row:
        # The same clip as in the speech manifests: no answer is synthesized for its question alone.
        is_spoken = answer in self.spoken_answers
        answer_audio = self.recorder.clip(answer, self.answer_voice) if is_spoken else None
        turns = (
            Item(Role.USER, audio=question_audio),
            Item(Role.ASSISTANT, answer, audio=answer_audio, transcription=question),
        )
        return Row(row_id, turns, labels)


def voice_labels(voice: str) -> dict[str, str]:
    """Return the labels of a row about its voice, and whether pip alone installs that voice."""
    return {"voice": voice, "voice_source": "program" if is_program(voice) else "pip"}


def selected_facts(config: DemoCorpusConfig) -> list[Fact]:
    """Return the facts of the config's kinds in their order, at most `facts_by_kind` of each."""
    selected: list[Fact] = []
    for kind in KINDS:
        facts = [fact for fact in all_facts() if fact.kind == kind] if kind in config.kinds else []
        count = min(len(facts), config.facts_by_kind.get(kind, len(facts)))
        # At even distances: the lists are in alphabetical or numerical order.
        selected += [facts[place * len(facts) // count] for place in range(count)]
    return [fact.with_more() for fact in selected] if config.more_phrasings else selected


def spread_share(facts: Sequence[Fact], config: DemoCorpusConfig) -> list[Fact]:
    """Return the config's share of the facts, spread over the kinds."""
    # All of them stay in their order, on which the draws of the splits depend.
    if config.share == 1:
        return list(facts)
    return spread(facts, config.scaled(len(facts)), random.Random(f"{config.seed} facts"))
