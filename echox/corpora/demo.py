"""The demo corpus: spoken questions with written and spoken answers, made on the spot by voices that pip installs.

    folder/questions.{train,valid,test}.jsonl   templates and general knowledge; test phrasings and test voices are never trained
    folder/unseen.test.jsonl                    capitals and sums that are trained in no phrasing
    folder/free.{train,valid,test}.jsonl        free English questions, with the language model's own answers
    folder/heard.train.jsonl                    for hearing alone: sentences, and the language model's words in random company
    folder/speech.{train,valid,test}.jsonl      sentences in the answers' voice
    folder/corpus.json                          config, voices, rows, hours and fingerprints
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from echox.config import near, neutral, to_plain
from echox.corpora.augmentation import AugmentConfig
from echox.corpora.own_answers import AnswerQuestions, OwnAnswers
from echox.corpora.speech_texts import Line, Pool, choose_speech
from echox.corpora.splits import Ask, Splits, evenly, split_questions, spread
from echox.corpora.studio import REVISION, Studio, cast, digest, is_program, voices_of
from echox.corpora.synthesis import Report
from echox.corpora.templates import KINDS, Fact, all_facts
from echox.corpora.vocabulary import TokenTexts, in_random_company, other_words, whole_words
from echox.corpora.voices import Role as Use
from echox.corpora.voices import every_voice
from echox.corpora.wording import NearDuplicates, clean, first_sentence, text_lines
from echox.data.audio import duration_s
from echox.data.manifest import Item, Role, Row, manifest_fingerprint, write_manifest
from echox.data.writing import appearing
from echox.errors import AssetError, ConfigError
from echox.packages import OptionalPackage, require

log = logging.getLogger(__name__)

SUMMARY = "corpus.json"


@dataclass(kw_only=True, slots=True)
class DemoCorpusConfig:
    """The spoken question-answer corpus that echox makes for itself."""

    folder: str = neutral("corpora/demo")
    """Folder of its manifests and audio."""
    seed: int = 1
    """Seed of every split, voice and augmentation."""
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    """Kinds of templates that are asked: capital, arithmetic, day, month, general."""
    facts_by_kind: dict[str, int] = field(default_factory=dict)
    """Facts of a kind at most, taken evenly from its list; kinds that are not named have all of theirs."""
    share: float = 1.0
    """Share of all texts and counts below that is used, above 0 and up to 1: small for a smoke test."""
    clips_per_question: int = 2
    """Training voices in which each training question is spoken; the synthesisers take turns."""
    clips_by_kind: dict[str, float] = field(default_factory=dict)
    """The same for the templates' questions of some kinds (capital, arithmetic, day, month, general); 0.5 speaks every second one."""
    test_questions: int = 160
    """Held-out phrasings of trained facts, asked by test voices; 0 for none."""
    valid_questions: int = 60
    """Other held-out phrasings of trained facts, asked by voices that neither train nor test."""
    unseen_facts: int = 30
    """Capitals and sums that are trained in no phrasing, asked by test voices."""
    free_questions: bool = True
    """Include free English questions, which the language model answers itself where `answer_questions` is given."""
    free_test_questions: int = 100
    """Free questions kept for the test."""
    free_valid_questions: int = 60
    """Free questions kept for validation."""
    heard_sentences: int = 2_000
    """Sentences that training voices read, at most, for hearing alone."""
    vocabulary_words: int = 10_000
    """Commonest whole words of the language model's vocabulary that are spoken for hearing alone, where its tokens are given; 0 for none."""
    vocabulary_takes: int = 2
    """Clips in which each of these words is heard, each time in other company and mostly in another voice."""
    rare_word_takes: int = 0
    """The same for the words of training questions that are not among them, such as names."""
    words_per_clip: int = 7
    """Words in such a clip."""
    backbone: str = "smollm2-135m-instruct"
    """Language model whose own answers are used; only a label here, so that another model's answers are not taken for its."""
    answered_questions: int | None = None
    """Free training questions that the language model answers at most; the others serve transcription alone. Null answers all."""
    sampled_answers: int = 0
    """Further answers sampled to each free question, for the speech manifests alone."""
    max_answer_words: int = 24
    """Words of an own answer's first sentence above which it is not used."""
    speech_hours: float = 4.5
    """Hours of training speech in the answers' voice, by estimate; fewer where the texts run out."""
    programs: bool = True
    """Use voices of installed programs (flite, festival) beside those from pip; their test rows are marked."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training questions are changed; test questions are clean."""
    workers: int | None = neutral(None)
    """Processes that speak; null for one per processor."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, and is {self.share}")
        for name in ("clips_per_question", "valid_questions", "max_answer_words", "vocabulary_takes", "words_per_clip"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}")
        not_negative = ("test_questions", "unseen_facts", "free_test_questions", "free_valid_questions", "answered_questions", "sampled_answers", "speech_hours")
        for name in (*not_negative, "heard_sentences", "vocabulary_words", "rare_word_takes"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, and is {getattr(self, name)}")
        named = {"kinds": self.kinds, "facts_by_kind": self.facts_by_kind, "clips_by_kind": self.clips_by_kind}
        for name, kinds in named.items():
            for kind in kinds:
                if kind not in KINDS:
                    raise ConfigError(f"{name} has no kind {kind!r}{near(kind, KINDS)}; kinds are {', '.join(KINDS)}")
        if not self.kinds:
            raise ConfigError(f"kinds is empty; name at least one of {', '.join(KINDS)}")
        for kind, clips in self.clips_by_kind.items():
            if not (0 < clips < 1 or clips >= 1 and clips == int(clips)):
                raise ConfigError(f"clips_by_kind.{kind} is {clips}; use a whole number, or a share between 0 and 1")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1 or null, and is {self.workers}")

    def scaled(self, count: int) -> int:
        """A count as this config's share of it."""
        return math.ceil(count * self.share)


def build_demo_corpus(
    config: DemoCorpusConfig, answer_questions: AnswerQuestions | None = None, token_texts: TokenTexts | None = None
) -> Path:
    """Speak and write the corpus, or find it built; safe to kill and call again.

    Args:
        config: what it holds and where.
        answer_questions: (questions, seed or None for greedy) -> the language model's whole answers; None leaves the free
            questions' answers empty, so that they serve the transcription alone.
        token_texts: () -> the language model's tokens, whose words are spoken too; None leaves them out.
    Returns:
        the folder.
    Raises:
        AssetError: a voice could not be had and a manifest would be empty, or the folder cannot be written.
        ConfigError: the machine has no voice of some role. PackageError: what a voice needs is not installed.
    """
    folder = Path(config.folder)
    fingerprint = corpus_fingerprint(config, with_own_answers=answer_questions is not None, with_words=token_texts is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not is_built(folder, fingerprint):
                _build(folder, fingerprint, config, answer_questions, token_texts)
    except OSError as error:
        raise AssetError(f"the corpus folder {folder} could not be written: {error.strerror or error}") from error
    return folder


def corpus_fingerprint(config: DemoCorpusConfig, *, with_own_answers: bool, with_words: bool) -> str:
    """What the corpus depends on: the config but for its folder and workers, the texts, and this machine's voices."""
    plain = {key: value for key, value in to_plain(config).items() if key not in ("folder", "workers")}
    texts = [[dataclasses.astuple(fact) for fact in all_facts()], text_lines("questions.txt"), text_lines("sentences.txt")]
    return digest([REVISION, plain, texts, _voices(config), with_own_answers, with_words])


def corpus_packages(config: DemoCorpusConfig) -> list[OptionalPackage]:
    """What its voices need beside echox."""
    return [package for names in _voices(config).values() for name in names for package in every_voice()[name].packages]


def is_built(folder: Path, fingerprint: str) -> bool:
    """Whether a whole corpus of this fingerprint lies in the folder."""
    try:
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        present = all((folder / name).is_file() for name in summary["manifests"])
        return present and summary["fingerprint"] == fingerprint
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _voices(config: DemoCorpusConfig) -> dict[str, tuple[str, ...]]:
    return {use.value: voices_of(use, config.programs and use is not Use.ANSWER) for use in Use}


def _build(
    folder: Path, fingerprint: str, config: DemoCorpusConfig, answer_questions: AnswerQuestions | None, token_texts: TokenTexts | None
) -> None:
    require(corpus_packages(config))
    own_answers = answer_questions and OwnAnswers(folder / f"own_answers.{digest(config.backbone, 8)}.jsonl", answer_questions)
    studio = Studio(folder, config.seed, config.augment)
    words = whole_words(token_texts(), config.scaled(config.vocabulary_words)) if token_texts else []
    manifests = _Planner(config, studio, own_answers).manifests(words)
    report = studio.record(config.workers)
    _warn_of_failures(report)
    spoken = {name: _present(rows) for name, rows in manifests.items()}
    _refuse_empty(manifests, spoken, report)
    for name, rows in spoken.items():
        write_manifest(folder / name, rows)
    summary = {
        "fingerprint": fingerprint,
        "config": to_plain(config),
        "voices": _voices(config),
        "manifests": {name: _counts(folder / name, rows) for name, rows in spoken.items()},
        "missing_clips": len(report.failures),
    }
    _clear_leftovers(folder, spoken, studio)
    # Written last: without it the corpus counts as unfinished.
    with appearing(folder / SUMMARY) as unfinished:
        unfinished.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def _clear_leftovers(folder: Path, manifests: Iterable[str], studio: Studio) -> None:
    """Delete what an earlier build with another config made and this one did not."""
    for pattern in ("questions.*.jsonl", "unseen.*.jsonl", "free.*.jsonl", "heard.*.jsonl", "speech.*.jsonl"):
        for path in folder.glob(pattern):
            if path.name not in manifests:
                path.unlink()
    studio.clear_leftovers()


class FreeTexts(NamedTuple):
    """Free questions by use."""

    train: list[str]
    valid: list[str]
    test: list[str]


class _Planner:
    """Decides every row of every manifest, and asks the studio for its clips."""

    def __init__(self, config: DemoCorpusConfig, studio: Studio, own_answers: OwnAnswers | None) -> None:
        self.config = config
        self.studio = studio
        self.own_answers = own_answers
        self.voices = _voices(config)
        self.reader = self.voices[Use.ANSWER.value][0]
        self.test_voices = [voice for voice in self.voices[Use.TEST.value] if not is_program(voice)]
        self.program_voices = [voice for voice in self.voices[Use.TEST.value] if is_program(voice)]
        self.spoken_answers: set[str] = set()

    def manifests(self, words: list[str]) -> dict[str, list[Row]]:
        """File name -> rows, whose clips are asked for but not recorded yet; `words` are spoken beside the questions."""
        config = self.config
        facts = spread_share(asked_facts(config), config)
        counts = {"test": config.test_questions, "valid": config.valid_questions, "unseen": config.unseen_facts}
        splits = split_questions(facts, seed=config.seed, **{name: config.scaled(count) for name, count in counts.items()})
        free = self._free_texts(facts)
        manifests = self._speech(facts, splits, free)
        manifests |= self._questions(splits)
        if config.free_questions:
            clips = config.clips_per_question
            voices, answered = self.voices[Use.TRAIN.value], config.answered_questions
            manifests["free.train.jsonl"] = self._free(free.train, voices, clips=clips, answered=answered, augmented=True)
            manifests["free.valid.jsonl"] = self._free(free.valid, self.voices[Use.VALID.value], answered=0, augmented=False)
            manifests["free.test.jsonl"] = self._free(free.test, self.test_voices, augmented=False)
        manifests["heard.train.jsonl"] = self._heard(words, [ask.text for ask in splits.train] + free.train)
        return {name: rows for name, rows in manifests.items() if rows}

    def _questions(self, splits: Splits) -> dict[str, list[Row]]:
        testing = self.test_voices
        test = self._asked("test", splits.test, testing) + self._asked("test_program", splits.test, self.program_voices)
        unseen = self._asked("unseen", splits.unseen, testing) + self._asked("unseen_program", splits.unseen, self.program_voices)
        return {
            "questions.train.jsonl": self._trained(splits.train),
            "questions.valid.jsonl": self._asked("valid", splits.valid, self.voices[Use.VALID.value]),
            "questions.test.jsonl": test,
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
        for fact, phrasing in asks:
            labels = {"kind": fact.kind, "answer": fact.answer, "fact": fact.id, "phrasing": phrasing}
            for clip, voice in enumerate(cast(fact.phrasings[phrasing], voices, clips, self.config.seed)):
                asked = self.studio.clip(fact.phrasings[phrasing], voice, augmented=augmented, take=clip // len(voices))
                row_id = f"{use}-{fact.id}-p{phrasing}" + (f"-c{clip}" if clips > 1 else "")
                rows.append(self._row(row_id, asked, fact.phrasings[phrasing], fact.sentence, {**labels, **origin(voice)}))
        return rows

    def _row(self, row_id: str, asked: Path, question: str, answer: str, labels: dict[str, Any]) -> Row:
        spoken = self.studio.clip(answer, self.reader) if answer in self.spoken_answers else None
        return Row(row_id, (Item(Role.USER, audio=asked), Item(Role.ASSISTANT, answer, audio=spoken, transcription=question)), labels)

    def _free_texts(self, facts: Iterable[Fact]) -> FreeTexts:
        """Free questions by use, nothing like a trained kind's, and no training one like one that is held out."""
        if not self.config.free_questions:
            return FreeTexts([], [], [])
        templates = NearDuplicates([phrasing for fact in facts for phrasing in fact.phrasings])
        texts = sample_share(_cleaned("questions.txt"), self.config, "free questions")
        texts = [text for text in texts if text not in templates]
        wanted = [self.config.scaled(count) for count in (self.config.free_test_questions, self.config.free_valid_questions)]
        test, valid = (min(count, len(texts) // 4) for count in wanted)
        held_out = texts[: test + valid]
        kept_out = NearDuplicates(held_out)
        return FreeTexts([text for text in texts[len(held_out) :] if text not in kept_out], held_out[test:], held_out[:test])

    def _heard(self, words: list[str], questions: list[str]) -> list[Row]:
        """Sentences, and words in random company, each by a training voice."""
        config = self.config
        texts = [("sentence", text) for text in self._sentences()[: config.scaled(config.heard_sentences)]]
        rare = other_words(questions, words) if config.rare_word_takes else []
        for several, takes in ((words, config.vocabulary_takes), (rare, config.rare_word_takes)):
            texts += [("words", text) for text in in_random_company(several, takes, config.words_per_clip, config.seed)]
        rows = []
        for number, (kind, text) in enumerate(texts):
            (voice,) = cast(text, self.voices[Use.TRAIN.value], 1, config.seed)
            asked = self.studio.clip(text, voice, augmented=True)
            rows.append(self._row(f"heard-{number}", asked, text, "", {"kind": kind, **origin(voice)}))
        return rows

    def _sentences(self) -> list[str]:
        return sample_share(_cleaned("sentences.txt"), self.config, "sentences")

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
        whole = self.own_answers.to(questions, seed)
        firsts = ((question, first_sentence(answer, self.config.max_answer_words)) for question, answer in whole.items())
        return {question: first for question, first in firsts if first is not None}

    def _speech(self, facts: Sequence[Fact], splits: Splits, free: FreeTexts) -> dict[str, list[Row]]:
        seeds = (None, *range(self.config.sampled_answers))
        pool = Pool(
            answers=[fact.sentence for fact in facts],
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
    return found


def spread_share(facts: Sequence[Fact], config: DemoCorpusConfig) -> list[Fact]:
    """The config's share of the facts, spread over the kinds; all of them in their order where it is 1."""
    if config.share == 1:
        return list(facts)
    return spread(facts, config.scaled(len(facts)), random.Random(f"{config.seed} facts"))


def sample_share(texts: Sequence[str], config: DemoCorpusConfig, purpose: str) -> list[str]:
    """The config's share of texts, in random order."""
    return random.Random(f"{config.seed} {purpose}").sample(texts, config.scaled(len(texts)))


def _cleaned(name: str) -> list[str]:
    """The lines of a text file that can be spoken, each once."""
    return list(dict.fromkeys(text for line in text_lines(name) if (text := clean(line)) is not None))


def _present(rows: Iterable[Row]) -> list[Row]:
    """Rows whose clips were all recorded; a spoken answer that failed costs only itself."""
    kept = []
    for row in rows:
        if row.turns[0].audio.exists():
            turns = [item if item.audio is None or item.audio.exists() else dataclasses.replace(item, audio=None) for item in row.turns]
            kept.append(dataclasses.replace(row, turns=tuple(turns)))
    return kept


def _warn_of_failures(report: Report) -> None:
    for (voice, reason), count in Counter((job.voice, reason) for job, reason in report.failures).most_common(5):
        log.warning("%d clips of voice %s could not be made and their rows are left out: %s", count, voice, reason)


def _refuse_empty(planned: dict[str, list[Row]], spoken: dict[str, list[Row]], report: Report) -> None:
    for name, rows in planned.items():
        if not spoken[name]:
            reason = report.failures[0][1] if report.failures else "no clip was made"
            raise AssetError(f"{name} would be empty, for none of its {len(rows)} clips could be spoken: {reason}")


def _counts(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows, hours of the rows' own clips, kinds, and the manifest's fingerprint."""
    hours = sum(duration_s(row.turns[0].audio) for row in rows) / 3600
    kinds = dict(Counter(row.extra["kind"] for row in rows))
    return {"rows": len(rows), "hours": round(hours, 3), "kinds": kinds, "fingerprint": manifest_fingerprint(path)}
