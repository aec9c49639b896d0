"""Configuration of the demo corpus."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from echox.core.config import left_out, near, neutral
from echox.core.errors import ConfigError
from echox.corpora.augmentation import AugmentConfig
from echox.corpora.templates import KINDS

# Counts and hours that may be 0, which leaves their rows out.
NOT_NEGATIVE = (
    "test_questions",
    "unseen_facts",
    "typed_numbers",
    "typed_questions",
    "typed_answers",
    "reworded_questions",
    "open_questions",
    "silent_clips",
    "free_test_questions",
    "free_valid_questions",
    "framed_questions",
    "heard_sentences",
    "heard_answers",
    "vocabulary_words",
    "rare_word_takes",
    "number_takes",
    "answered_questions",
    "sampled_answers",
    "speech_hours",
)
# Counts without which the corpus would be empty.
AT_LEAST_ONE = (
    "clips_per_question",
    "valid_questions",
    "max_answer_words",
    "vocabulary_takes",
    "words_per_clip",
)


@dataclass(kw_only=True, slots=True)
class DemoCorpusConfig:
    """The spoken question-answer corpus that echox makes for itself.

    Raises:
        ConfigError: a number is out of range, or a kind does not exist.
    """

    folder: str = neutral("corpora/demo")
    """Folder of its manifests and audio."""
    seed: int = 1
    """Seed of every split, voice and augmentation."""
    kinds: list[str] = field(
        default_factory=lambda: ["capital", "arithmetic", "day", "month", "general"]
    )
    """Kinds of templates that are asked: capital (103 countries and states whose names a recogniser
    writes as they are spelt), rare_capital (all other countries), arithmetic (numbers to twelve),
    number (sums and differences up to a hundred), day, month, general."""
    facts_by_kind: dict[str, int] = field(default_factory=dict)
    """Facts of a kind at most, taken evenly from its list; kinds that are not named have all of
    theirs."""
    more_phrasings: bool = False
    """Ask in about twice as many phrasings, so that a question in other words is understood too."""
    share: float = 1.0
    """Share of all texts and counts below that is used, above 0 and up to 1: small for a smoke
    test."""
    clips_per_question: int = 2
    """Training voices in which each training question is spoken; the synthesisers alternate."""
    clips_by_kind: dict[str, float] = field(default_factory=dict)
    """The same for the templates' questions of some `kinds`; 0.5 speaks every second one."""
    test_questions: int = 160
    """Held-out phrasings of trained facts, asked by test voices; 0 for none."""
    valid_questions: int = 60
    """Other held-out phrasings of trained facts, asked by voices that neither train nor test."""
    unseen_facts: int = 30
    """Capitals and sums that are trained in no phrasing, asked by test voices."""
    hide_names: bool = False
    """Leave out every text for training, spoken answers included, that names a country of
    `unseen_facts`."""
    typed_numbers: int = 0
    """Sums and differences up to a hundred that are asked in writing only, for the answers; those
    of `unseen_facts` are not among them."""
    typed_questions: int = 0
    """Trained facts that are asked in writing only, in further phrasings, spread over the
    templates."""
    typed_answers: int = 0
    """Free training questions in writing only, with the language model's own answer as it gives
    it, at most `answered_questions`."""
    reworded_questions: int = 0
    """Trained facts that test voices ask in phrasings of which no fact is trained in any; 0 for
    none."""
    open_questions: int = 0
    """Questions about the world, of no trained kind, with answers to be scored by, that test voices
    ask; 320 at most."""
    silent_clips: int = 0
    """Clips of silence and noise without speech, answered by a request to repeat; a tenth as many
    again for the test."""
    free_questions: bool = True
    """Include free English questions, which the language model answers itself where
    `answer_questions` is given."""
    free_test_questions: int = 100
    """Free questions kept for the test."""
    free_valid_questions: int = 60
    """Free questions kept for validation."""
    framed_questions: int = 0
    """Further free training questions, each about a word of the language model's vocabulary, where
    its tokens are given."""
    heard_sentences: int = 2_000
    """Sentences that training voices read, at most, for transcription alone."""
    heard_answers: int = 0
    """Pieces of the language model's own answers to free training questions that training voices
    read, at most, for transcription alone."""
    vocabulary_words: int = 10_000
    """Most frequent whole words of the language model's vocabulary that training voices are to
    speak, where its tokens are given; 0 for none. The dictionary of the answers' voice says which
    tokens are words."""
    vocabulary_takes: int = 2
    """Times that each of these words is spoken at least: what training questions, sentences and
    answers lack is added in clips of words alone, each time among others and mostly in another
    voice."""
    rare_word_takes: int = 0
    """Clips of words alone that have each word of training questions that is not among them, such
    as names."""
    number_takes: int = 0
    """The same for the numbers from zero to a hundred, among other numbers."""
    words_per_clip: int = 7
    """Words in such a clip."""
    words_lead: str = left_out("")
    """Text before the words of such a clip. Without one the first word is learned as the token that
    begins a text, which is another than that after a space."""
    backbone: str = "smollm2-135m-instruct"
    """Language model whose own answers and words are used; only a label here, so that another
    model's are not taken for its. A recipe that may run with several sets `${backbone.weights}`."""
    answered_questions: int | None = None
    """Free training questions that the language model answers at most; the others serve
    transcription alone. Null answers all."""
    sampled_answers: int = 0
    """Further answers sampled to each free question, for the speech manifests alone."""
    max_answer_words: int = 24
    """Words of the first sentences of an own answer that are used at most; none is where the first
    has more."""
    speech_hours: float = 4.5
    """Hours of training speech in the answers' voice, by estimate; fewer where the texts run
    out."""
    programs: bool = True
    """Use voices of installed programs (flite, festival) beside those from pip; their test rows are
    marked."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training questions are changed; test questions are clean."""
    workers: int | None = neutral(None)
    """Processes that synthesize; null for one per processor."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, and is {self.share}")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            # Null stands for all, in `answered_questions`.
            if not (getattr(self, name) or 0) >= 0:
                raise ConfigError(f"{name} must not be negative, and is {getattr(self, name)}")
        self._refuse_kinds()
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1 or null, and is {self.workers}")

    def _refuse_kinds(self) -> None:
        """Refuse kinds that do not exist, and counts that are none."""
        for name in ("kinds", "facts_by_kind", "clips_by_kind"):
            for kind in getattr(self, name):
                if kind not in KINDS:
                    raise ConfigError(
                        f"{name} has no kind {kind!r}{near(kind, KINDS)}; "
                        f"kinds are {', '.join(KINDS)}"
                    )
        if not self.kinds:
            raise ConfigError(f"kinds is empty; name at least one of {', '.join(KINDS)}")
        for kind, count in self.facts_by_kind.items():
            if count < 1:
                raise ConfigError(
                    f"facts_by_kind.{kind} must be at least 1, and is {count}; "
                    "leave the kind out of kinds to have none"
                )
        for kind, clips in self.clips_by_kind.items():
            # 0.5 speaks every second question once; 1.5 would leave open which ones twice.
            if not (0 < clips < 1 or clips >= 1 and clips == int(clips)):
                raise ConfigError(
                    f"clips_by_kind.{kind} is {clips}; "
                    "use a whole number, or a share between 0 and 1"
                )

    def scaled(self, count: int) -> int:
        """Return the config's share of a count, rounded up."""
        return math.ceil(count * self.share)
