"""The demo corpus: spoken questions with written and spoken answers, made on the spot by voices that pip installs.

    folder/questions.{train,valid,test}.jsonl   templates and general knowledge; test phrasings and test voices are never trained
    folder/unseen.test.jsonl                    capitals and sums that are trained in no phrasing
    folder/reworded.test.jsonl                  trained facts in phrasings of which no fact is trained in any
    folder/open.test.jsonl                      questions about the world, with answers to be scored by
    folder/typed.train.jsonl                    facts, sums, differences and the language model's own answers, in writing
    folder/silent.{train,test}.jsonl            silence and noise
    folder/free.{train,valid,test}.jsonl        free English questions, with the language model's own answers
    folder/heard.train.jsonl                    for hearing alone: sentences, and the language model's words in random company
    folder/speech.{train,valid,test}.jsonl      sentences in the answers' voice
    folder/corpus.json                          config, voices, rows, hours and fingerprints
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

from echox.config import to_plain
from echox.corpora.demo_config import DemoCorpusConfig
from echox.corpora.own_answers import AnswerQuestions, OwnAnswers
from echox.corpora.planner import Planner, voices_by_use
from echox.corpora.studio import REVISION, Studio, digest
from echox.corpora.synthesis import Report
from echox.corpora.templates import all_facts
from echox.corpora.vocabulary import TokenTexts, whole_words
from echox.corpora.voices import every_voice
from echox.corpora.wording import text_lines
from echox.data.audio import duration_s
from echox.data.manifest import Row, manifest_fingerprint, write_manifest
from echox.data.writing import appearing
from echox.errors import AssetError
from echox.packages import OptionalPackage, require

log = logging.getLogger(__name__)

SUMMARY = "corpus.json"
MANIFESTS = ("questions", "unseen", "reworded", "open", "typed", "silent", "free", "heard", "speech")  # each has a file per use
NEUTRAL = ("folder", "workers")  # fields of the config that decide nothing of what is made
TEXTS = ("questions.txt", "sentences.txt", "open_questions.txt", "frames.txt")  # facts hold those of the others


def build_demo_corpus(
    config: DemoCorpusConfig,
    answer_questions: AnswerQuestions | None = None,
    token_texts: TokenTexts | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Speak and write the corpus, or find it built; safe to kill and call again.

    Args:
        config: what it holds and where.
        answer_questions: (questions, seed or None for greedy) -> the language model's answers; None leaves the free questions'
            answers empty, so that they serve the transcription alone.
        token_texts: () -> the language model's tokens, whose words are spoken too; None leaves them out.
        overwrite: make a whole corpus again that was made otherwise.
    Returns:
        the folder.
    Raises:
        AssetError: a voice could not be had and a manifest would be empty, the folder holds a whole corpus that was made otherwise,
            or it cannot be written.
        ConfigError: the machine has no voice of some role. PackageError: what a voice needs is not installed.
    """
    folder = Path(config.folder)
    fingerprint = corpus_fingerprint(config, with_own_answers=answer_questions is not None, with_words=token_texts is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not is_built(folder, fingerprint):
                if not overwrite:
                    _refuse_other(folder, config)
                _build(folder, fingerprint, config, answer_questions, token_texts)
    except OSError as error:
        raise AssetError(f"the corpus folder {folder} could not be written: {error.strerror or error}") from error
    return folder


def corpus_fingerprint(config: DemoCorpusConfig, *, with_own_answers: bool, with_words: bool) -> str:
    """What the corpus depends on: the config but for its folder and workers, the texts, and this machine's voices."""
    plain = {key: value for key, value in to_plain(config).items() if key not in NEUTRAL}
    return digest([REVISION, plain, _texts(), voices_by_use(config), with_own_answers, with_words])


@functools.cache
def _texts() -> str:
    """A digest of all that may be said."""
    return digest([*map(repr, all_facts()), *map(text_lines, TEXTS)])


def _refuse_other(folder: Path, config: DemoCorpusConfig) -> None:
    """Leave alone a whole corpus that was made otherwise: of what runs have learned from it, nothing else could be said any more."""
    try:
        before = json.loads((folder / SUMMARY).read_text("utf-8"))["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    now = json.loads(json.dumps(to_plain(config)))
    names = [f"corpus.{name} {before.get(name)} -> {value}" for name, value in now.items() if name not in NEUTRAL and before.get(name) != value]
    raise AssetError(
        f"the corpus in {folder} was made otherwise ({', '.join(names) or 'from other texts, or by other voices'}), and runs may have learned "
        "from it; set corpus.folder to another folder, make it again with overwrite=true (outside a recipe: delete the folder), or go back to "
        "the old settings"
    )


def corpus_packages(config: DemoCorpusConfig) -> list[OptionalPackage]:
    """What its voices need beside echox."""
    return [package for names in voices_by_use(config).values() for name in names for package in every_voice()[name].packages]


def is_built(folder: Path, fingerprint: str) -> bool:
    """Whether a whole corpus of this fingerprint lies in the folder."""
    try:
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        present = all((folder / name).is_file() for name in summary["manifests"])
        return present and summary["fingerprint"] == fingerprint
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _build(
    folder: Path, fingerprint: str, config: DemoCorpusConfig, answer_questions: AnswerQuestions | None, token_texts: TokenTexts | None
) -> None:
    require(corpus_packages(config))
    own_answers = answer_questions and OwnAnswers(folder / f"own_answers.{digest(config.backbone, 8)}.jsonl", answer_questions)
    studio = Studio(folder, config.seed, config.augment)
    words = whole_words(token_texts(), config.scaled(config.vocabulary_words)) if token_texts else []
    manifests = Planner(config, studio, own_answers).manifests(words)
    report = studio.record(config.workers)
    _warn_of_failures(report)
    spoken = {name: _present(rows) for name, rows in manifests.items()}
    _refuse_empty(manifests, spoken, report)
    for name, rows in spoken.items():
        write_manifest(folder / name, rows)
    summary = {
        "fingerprint": fingerprint,
        "config": to_plain(config),
        "voices": voices_by_use(config),
        "manifests": {name: _counts(folder / name, rows) for name, rows in spoken.items()},
        "missing_clips": len(report.failures),
    }
    _clear_leftovers(folder, spoken, studio)
    # Written last: without it the corpus counts as unfinished.
    with appearing(folder / SUMMARY) as unfinished:
        unfinished.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def _clear_leftovers(folder: Path, manifests: Iterable[str], studio: Studio) -> None:
    """Delete what an earlier build with another config made and this one did not."""
    for name in MANIFESTS:
        for path in folder.glob(f"{name}.*.jsonl"):
            if path.name not in manifests:
                path.unlink()
    studio.clear_leftovers()


def _present(rows: Iterable[Row]) -> list[Row]:
    """Rows whose clips were all recorded; a spoken answer that failed costs only itself."""
    kept = []
    for row in rows:
        if row.turns[0].audio is None or row.turns[0].audio.exists():
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
    hours = sum(duration_s(row.turns[0].audio) for row in rows if row.turns[0].audio is not None) / 3600
    kinds = dict(Counter(row.extra["kind"] for row in rows))
    return {"rows": len(rows), "hours": round(hours, 3), "kinds": kinds, "fingerprint": manifest_fingerprint(path)}
