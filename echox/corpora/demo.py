"""The demo corpus: spoken questions with written and spoken answers, by voices that pip installs.

A built corpus is a folder with these files:

    questions.{train,valid,test}.jsonl  templates and general knowledge; the phrasings and the
                                        voices of the test are never trained
    unseen.test.jsonl                   capitals and sums that are trained in no phrasing
    reworded.test.jsonl                 trained facts in phrasings that are reserved for the test
    open.test.jsonl                     questions about the world, with answers to be scored by
    typed.train.jsonl                   facts, sums, differences and the language model's own
                                        answers, in writing
    silent.{train,test}.jsonl           silence and noise
    free.{train,valid,test}.jsonl       free English questions, with own answers of the model
    heard.train.jsonl                   for transcription alone: sentences, and words of the
                                        language model's vocabulary grouped at random
    speech.{train,valid,test}.jsonl     sentences in the answers' voice
    corpus.json                         config, voices, rows, hours and fingerprints
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from echox.core.config import to_plain
from echox.core.errors import AssetError
from echox.core.files import atomic_write, json_hash, make_folder
from echox.core.packages import OptionalPackage, require
from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.own_answers import AnswerQuestions, OwnAnswers
from echox.corpora.planner import Planner, voices_by_use
from echox.corpora.recording import REVISION, ClipRecorder
from echox.corpora.synthesis import Report
from echox.corpora.templates import all_facts
from echox.corpora.vocabulary import TokenTexts, whole_words
from echox.corpora.voices import every_voice
from echox.corpora.voices.hibari import has_pronunciation
from echox.corpora.wording import text_lines
from echox.data.audio import duration_s
from echox.data.audio_ref import audio_ref
from echox.data.manifest import Item, Row, manifest_fingerprint, write_manifest

log = logging.getLogger(__name__)

SUMMARY = "corpus.json"
# Names of the manifests, each of which has a file per use.
MANIFESTS = (
    "questions",
    "unseen",
    "reworded",
    "open",
    "typed",
    "silent",
    "free",
    "heard",
    "speech",
)
# Fields of the config that do not change the corpus, and so are no part of its fingerprint.
NEUTRAL = ("folder", "workers")
# Files that the fingerprint hashes; it hashes those of the facts by the facts.
TEXTS = ("questions.txt", "sentences.txt", "open_questions.txt", "frames.txt")


def build_demo_corpus(
    config: DemoCorpusConfig,
    answer_questions: AnswerQuestions | None = None,
    token_texts: TokenTexts | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Build the corpus, unless it is built; safe to interrupt and to call again.

    Args:
        config: what it holds and where.
        answer_questions: generates the language model's answers; None leaves the free questions'
            answers empty, so that they serve transcription alone.
        token_texts: returns the language model's tokens, whose words are spoken too; None leaves
            them out.
        overwrite: build again where the folder holds a complete corpus of other settings.

    Returns:
        the folder.

    Raises:
        AssetError: a manifest would be empty because its clips failed, the folder holds a complete
            corpus of other settings, or it cannot be written.
        ConfigError: the machine has no voice of some role, or the questions are too few.
        PackageError: a package that a voice needs is not installed.
    """
    folder = Path(config.folder)
    fingerprint = corpus_fingerprint(
        config, with_own_answers=answer_questions is not None, with_words=token_texts is not None
    )
    try:
        make_folder(folder)
        # Two runs that start together build it once.
        with FileLock(folder / ".lock"):
            # Inside the lock: another process may have built it while this one waited.
            if not is_built(folder, fingerprint):
                if not overwrite:
                    _refuse_other(folder, config)
                _build(folder, fingerprint, config, answer_questions, token_texts)
    except OSError as error:
        raise AssetError(
            f"the corpus folder {folder} could not be written: {error.strerror or error}; free "
            "some space or choose another folder, and start again: clips that are there are kept"
        ) from error
    return folder


def corpus_fingerprint(
    config: DemoCorpusConfig, *, with_own_answers: bool, with_words: bool
) -> str:
    """Return a digest of everything that the corpus depends on.

    Args:
        config: all fields but `NEUTRAL` count; beside it count all texts and this machine's voices.
        with_own_answers: the language model answers free questions.
        with_words: words of its vocabulary are spoken.

    Returns:
        16 hex digits.

    Raises:
        ConfigError: the machine has no voice of some role.
    """
    # Voices are hashed by their names alone, so `REVISION` has to stand for how they sound.
    plain = {key: value for key, value in to_plain(config).items() if key not in NEUTRAL}
    return json_hash(
        [REVISION, plain, _texts(), voices_by_use(config), with_own_answers, with_words]
    )


@functools.cache
def _texts() -> str:
    """A digest of all texts that a corpus may have."""
    return json_hash([*map(repr, all_facts()), *map(text_lines, TEXTS)])


def _refuse_other(folder: Path, config: DemoCorpusConfig) -> None:
    """Refuse to replace a complete corpus of other settings.

    Runs may have been trained on it, and their scores could not be reproduced without it.
    """
    try:
        before = json.loads((folder / SUMMARY).read_text("utf-8"))["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # Unfinished or of no known form: no run can have been trained on it.
        return
    # Through JSON as `before` was, which turns tuples into lists.
    now = json.loads(json.dumps(to_plain(config)))
    changes = [
        f"corpus.{name} {before.get(name)} -> {value}"
        for name, value in now.items()
        if name not in NEUTRAL and before.get(name) != value
    ]
    difference = ", ".join(changes) or "from other texts, or by other voices"
    raise AssetError(
        f"the corpus in {folder} was made otherwise ({difference}), and runs may have learned "
        "from it; set corpus.folder to another folder, make it again with overwrite=true "
        "(outside a recipe: delete the folder), or go back to the old settings"
    )


def corpus_packages(config: DemoCorpusConfig) -> list[OptionalPackage]:
    """Return the optional packages that the voices of a corpus need.

    Raises:
        ConfigError: the machine has no voice of some role.
    """
    return [
        package
        for names in voices_by_use(config).values()
        for name in names
        for package in every_voice()[name].packages
    ]


def is_built(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder holds a complete corpus of this fingerprint."""
    try:
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        # Manifests may have been deleted since; clips are too many to look for.
        present = all((folder / name).is_file() for name in summary["manifests"])
        return present and summary["fingerprint"] == fingerprint
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _build(
    folder: Path,
    fingerprint: str,
    config: DemoCorpusConfig,
    answer_questions: AnswerQuestions | None,
    token_texts: TokenTexts | None,
) -> None:
    # Before any clip: a missing package is one sentence here, and would be a failure of each clip.
    require(corpus_packages(config))
    # One file per language model, so that a change of models and back generates nothing again.
    answers_path = folder / f"own_answers.{json_hash(config.backbone, 8)}.jsonl"
    own_answers = answer_questions and OwnAnswers(answers_path, answer_questions)
    recorder = ClipRecorder(folder, config.seed, config.augment)
    most_words = config.scaled(config.vocabulary_words)
    words = whole_words(token_texts(), most_words, has_pronunciation) if token_texts else []
    planned = Planner(config, recorder, own_answers).manifests(words)
    report = recorder.record(config.workers)
    _warn_of_failures(report)
    recorded = {name: _recorded_rows(rows) for name, rows in planned.items()}
    _refuse_empty(planned, recorded, report)
    for name, rows in recorded.items():
        write_manifest(folder / name, rows)
    summary = {
        "fingerprint": fingerprint,
        "config": to_plain(config),
        "voices": voices_by_use(config),
        "manifests": {name: _counts(folder / name, rows) for name, rows in recorded.items()},
        "missing_clips": len(report.failures),
    }
    # After everything that may fail: clips that were deleted would have to be synthesized again.
    _delete_leftovers(folder, recorded, recorder)
    # Written last: without it the corpus counts as unfinished.
    with atomic_write(folder / SUMMARY) as unfinished:
        unfinished.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def _delete_leftovers(folder: Path, manifests: Iterable[str], recorder: ClipRecorder) -> None:
    """Delete manifests and clips of an earlier build that are no part of this one."""
    for name in MANIFESTS:
        for path in folder.glob(f"{name}.*.jsonl"):
            if path.name not in manifests:
                path.unlink()
    recorder.delete_unused()


def _recorded_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows whose first clip was recorded; a failed clip of an answer costs only itself."""
    return [
        dataclasses.replace(row, turns=tuple(map(_without_missing_audio, row.turns)))
        for row in rows
        if not _lacks_audio(row.turns[0])
    ]


def _without_missing_audio(item: Item) -> Item:
    return dataclasses.replace(item, audio=None) if _lacks_audio(item) else item


def _lacks_audio(item: Item) -> bool:
    """Whether an item names a clip that was not recorded."""
    return item.audio is not None and not audio_ref(item.audio).file.exists()


def _warn_of_failures(report: Report) -> None:
    counts = Counter((job.voice, reason) for job, reason in report.failures)
    # One line per cause, not per clip: a voice that is missing fails thousands of times.
    for (voice, reason), count in counts.most_common(5):
        log.warning(
            "%d clips of voice %s could not be made and their rows are left out: %s",
            count,
            voice,
            reason,
        )


def _refuse_empty(
    planned: dict[str, list[Row]], recorded: dict[str, list[Row]], report: Report
) -> None:
    for name, rows in planned.items():
        if not recorded[name]:
            reason = report.failures[0][1] if report.failures else "no clip was made"
            raise AssetError(
                f"{name} would be empty, for none of its {len(rows)} clips could be spoken: "
                f"{reason}"
            )


def _counts(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows, hours of their first clips, kinds, and the manifest's fingerprint."""
    clips = [row.turns[0].audio for row in rows if row.turns[0].audio is not None]
    hours = sum(map(duration_s, clips)) / 3600
    return {
        "rows": len(rows),
        "hours": round(hours, 3),
        "kinds": dict(Counter(row.extra["kind"] for row in rows)),
        "fingerprint": manifest_fingerprint(path),
    }
