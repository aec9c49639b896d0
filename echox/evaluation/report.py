"""The report of a finished run: scores with their protocols, as JSON, as a page, and as wavs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from echox.core import checkpoint
from echox.core.config import to_plain
from echox.core.device import multiplies_bf16_fast
from echox.core.errors import CheckpointError, ConfigError, ManifestError
from echox.core.files import atomic_write, json_hash
from echox.core.number_format import FILE as NUMBER_FORMAT
from echox.core.number_format import kept_in, name_of, number_format
from echox.core.packages import require
from echox.core.progress import print_message, skip
from echox.data.manifest import manifest_fingerprint
from echox.evaluation.config import EvaluateConfig
from echox.evaluation.evaluated_run import EvaluatedRun
from echox.evaluation.own_sections import answers_file
from echox.evaluation.page import page_of, summary_of
from echox.evaluation.records import Record
from echox.evaluation.sections import SECTIONS, Section, sections_of
from echox.inference.load import ANSWERS, USES, finished_stage, finished_stages
from echox.tasks.base import Use

__all__ = ["EvaluateConfig", "evaluate"]

# Raised when what a section measures changes, so that its stored records are made again.
REVISION = 2
# What a stage must be used for to have a section; the recipe of the first that is there counts.
SCORED = (*ANSWERS, Use.synthesize)
# Fields of the config that do not change a section's records: what they name is in the key by its
# content, or was moved. `batch_size` is among them, because rows of a batch do not influence each
# other.
_UNMEASURED = (
    "run",
    "corpus",
    "manifests",
    "answers",
    "allow_outside",
    "out_dir",
    "overwrite",
    "plugin_dirs",
    "batch_size",
    "device",
    "codec_folder",
    "encoder_folder",
    "backbone_folder",
)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a run or answers, write `report.json` and `report.md`, and print a summary.

    Sections whose records are stored are not made again.

    Args:
        config: run or answers, corpus or manifests, and numbers of rows.

    Returns:
        the content of `report.json`.

    Raises:
        CheckpointError: the run has no finished checkpoint that is scored.
        ConfigError: there is no corpus, or the run's codec has no vocoder.
        ManifestError: a manifest or the answers cannot be read, or nothing in them can be scored.
        AssetError: the recogniser cannot be had.
        PackageError: a package that scoring needs is not installed.
    """
    # Cheap checks first: a report takes hours, and what is missing should be named before.
    require(config.packages())
    began_s = time.monotonic()
    sections = sections_of(config)
    folder = Path(config.run) if config.answers is None else answers_file(config.answers).parent
    fingerprints = _fingerprints(config, folder)
    corpus = _corpus(config, folder, sections)
    out_dir = Path(config.out_dir) if config.out_dir else folder / "report"
    run = EvaluatedRun(config, folder, corpus, out_dir)
    # A run that keeps no number format, such as one trained on a GPU, is left as it is.
    with kept_in(folder if (folder / NUMBER_FORMAT).is_file() else out_dir, run.device):
        report, records = _scored_sections(config, run, sections, fingerprints)
    if not report["sections"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report["skipped"].items())
        raise ManifestError(
            f"nothing was scored ({reasons}); add what is missing, or name other data by "
            "manifests=[FILE.jsonl]"
        )
    report["seconds"] = round(time.monotonic() - began_s, 1)
    _write(out_dir / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _write(out_dir / "report.md", page_of(report, records))
    print(summary_of(report, out_dir))
    return report


def _scored_sections(
    config: EvaluateConfig,
    run: EvaluatedRun,
    sections: Sequence[Section],
    fingerprints: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, list[Record]]]:
    """The report, and the records of each of its sections."""
    report: dict[str, Any] = {
        "run": run.run.name if config.answers is None else config.answers,
        "checkpoints": dict(fingerprints),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": to_plain(config),
        "versions": _versions(),
        # On a CPU it is chosen by measurement, so another machine may compute otherwise.
        "number_format": str(number_format()) if run.device.type == "cpu" else None,
        "sections": {},
        "skipped": {},
    }
    records: dict[str, list[Record]] = {}
    for number, section in enumerate(sections, 1):
        if reason := _reason_to_skip(section, run):
            report["skipped"][section.name] = reason
            continue
        print_message(f"part {number} of {len(sections)} of the report: {section.title}")
        stored = _stored_section(section, run, records, _key(section, run, fingerprints))
        records[section.name] = stored["records"]
        # Scores are computed from the records each time, which takes seconds.
        scored = _scored_section(section, stored)
        # Headings without numbers would look like a result.
        if any(scored["scores"].values()):
            report["sections"][section.name] = scored
        else:
            source = "the answers" if section.manifest is None else section.manifest
            report["skipped"][section.name] = f"no row of {source} has {section.wants}"
    return report, records


def _fingerprints(config: EvaluateConfig, folder: Path) -> dict[str, str]:
    """Stage -> fingerprint of every finished checkpoint of the run; of answers, their file's."""
    if config.answers is not None:
        return {"answers": manifest_fingerprint(answers_file(config.answers))}
    fingerprints = {
        final.parent.name: checkpoint.fingerprint(final) for final in finished_stages(folder)
    }
    if finished_stage(folder, *SCORED) is None:
        raise CheckpointError(
            f"{folder} holds no finished stage that answers or synthesizes, so nothing in it can "
            "be scored; train it with echox-train, or name another run"
        )
    return fingerprints


def _corpus(config: EvaluateConfig, run: Path, sections: Sequence[Section]) -> Path:
    """The corpus that the config names, or else the recipe of a stage that is scored."""
    of_corpus = [section.manifest for section in sections if section in SECTIONS]
    if not of_corpus:
        return Path()  # manifests of one's own have paths of their own
    folder = config.corpus
    if folder is None:
        final = finished_stage(run, *SCORED)
        recipe = {} if final is None else checkpoint.verify(final)["recipe"]
        # The recipe may have no corpus, for instance one that trains on manifests alone.
        folder = (recipe.get("corpus") or {}).get("folder")
    if folder is None:
        raise ConfigError(
            f"the recipe of {run} names no corpus; set corpus=FOLDER to one that echox-prepare "
            "corpus made, or manifests=[FILE.jsonl] to any manifest"
        )
    names = sorted({name for name in of_corpus if name is not None})
    if not any((Path(folder) / name).is_file() for name in names):
        raise ConfigError(
            f"{folder} holds none of the test manifests ({', '.join(names)}); set corpus=FOLDER to "
            "one that does, or manifests=[FILE.jsonl] to any manifest"
        )
    return Path(folder)


def _reason_to_skip(section: Section, run: EvaluatedRun) -> str | None:
    if section.count is not None and not getattr(run.config, section.count):
        return f"{section.count} is 0"
    for uses in section.needs:
        if run.final(*uses) is None:
            return f"the run has no stage that {' or '.join(USES[use] for use in uses)}"
    if section.manifest is not None and not (run.corpus / section.manifest).is_file():
        return f"the corpus has no {section.manifest}"
    return None


def _key(section: Section, run: EvaluatedRun, fingerprints: Mapping[str, str]) -> str:
    """A digest of everything that a section's records depend on."""
    plain = {name: value for name, value in to_plain(run.config).items() if name not in _UNMEASURED}
    manifest = section.manifest
    content = [
        REVISION,
        section.name,
        plain,
        None if manifest is None else manifest_fingerprint(run.corpus / manifest),
        dict(fingerprints),
        name_of(multiplies_bf16_fast(run.device)),
    ]
    return json_hash(content)


def _stored_section(
    section: Section, run: EvaluatedRun, before: dict[str, list[Record]], key: str
) -> dict[str, Any]:
    """A section's records, read from the disk, or made and stored now."""
    path = run.folder / "sections" / f"{section.name}.json"
    stored = None if run.config.overwrite else _read_section(path, key)
    if stored is not None:
        # Its cost is not measured, so that the time left is not underestimated next time.
        skip()
        return stored
    if section.needs:
        run.refuse_undecodable()  # before hours are spent on what its codec should decode
    began_s = time.monotonic()
    rows = [] if section.manifest is None else run.rows(section.manifest)
    records = section.make(run, rows, before)
    stored = {
        "key": key,
        "judges": run.scorers,
        "seconds": round(time.monotonic() - began_s, 1),
        "records": records,
    }
    # Written section by section: an interrupted report goes on from here.
    _write(path, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    return stored


def _read_section(path: Path, key: str) -> dict[str, Any] | None:
    """The stored section; None where there is none, or one of other settings or a broken one."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return stored if stored.get("key") == key else None


def _scored_section(section: Section, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A section as `report.json` has it, with its scores and without its records."""
    table = section.score(stored["records"], stored["judges"])
    scores = {
        group: {metric: dataclasses.asdict(score) for metric, score in by_metric.items()}
        for group, by_metric in table.items()
    }
    return {
        "title": section.title,
        "about": section.about,
        "manifest": section.manifest,
        "rows": len(stored["records"]),
        "missing": [] if section.missing is None else section.missing(stored["records"]),
        "seconds": stored["seconds"],
        "scores": scores,
    }


def _versions() -> dict[str, str]:
    # Of what computes the numbers; other packages do not change them.
    return {name: metadata.version(name) for name in ("echox", "torch", "transformers", "jiwer")}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, "utf-8")
