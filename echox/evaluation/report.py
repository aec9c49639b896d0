"""The report of a finished run: every score with its protocol, as JSON, as a page, and as wavs to listen to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from echox import checkpoint
from echox.config import to_plain
from echox.data.manifest import manifest_fingerprint
from echox.data.writing import appearing
from echox.device import multiplies_bf16_fast
from echox.errors import CheckpointError, ConfigError
from echox.evaluation.bench import Bench
from echox.evaluation.config import EvaluateConfig
from echox.evaluation.page import page_of, summary_of
from echox.evaluation.sections import SECTIONS, Section
from echox.number_format import FILE as NUMBER_FORMAT, kept_in, name_of, number_format
from echox.packages import require
from echox.progress import say, skip

__all__ = ["EvaluateConfig", "evaluate"]

# Raised when what a section measures changes, so that its stored records are made again.
REVISION = 2
SCORED = {"echo", "s2t", "t2c"}
_UNMEASURED = ("run", "corpus", "out_dir", "overwrite", "plugin_dirs", "batch_size", "device", "codec_folder")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a run, write `report.json` and `report.md`, and print a summary; sections that are done already are not done again.

    Returns:
        what `report.json` holds.
    Raises:
        CheckpointError: the run has no finished checkpoint that hears or speaks.
        ConfigError: the corpus is not there, or the run's codec has nothing to speak with.
        AssetError: the recogniser cannot be had. PackageError: what scores is not installed.
    """
    require(config.packages())
    began_s = time.monotonic()
    run = Path(config.run)
    fingerprints = _fingerprints(run)
    corpus = _corpus(config, run)
    folder = Path(config.out_dir) if config.out_dir else run / "report"
    bench = Bench(config, run, corpus, folder)
    # A run that keeps no number format, such as one trained on a GPU, is left as it is.
    with kept_in(run if (run / NUMBER_FORMAT).is_file() else folder, bench.device):
        report, records = _scored_sections(config, bench, fingerprints)
    report["seconds"] = round(time.monotonic() - began_s, 1)
    _write(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _write(folder / "report.md", page_of(report, records))
    print(summary_of(report, folder))
    return report


def _scored_sections(
    config: EvaluateConfig, bench: Bench, fingerprints: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The report, and the records of each of its sections."""
    report: dict[str, Any] = {
        "run": bench.run.name,
        "checkpoints": dict(fingerprints),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": to_plain(config),
        "versions": _versions(),
        "number_format": str(number_format()) if bench.device.type == "cpu" else None,
        "sections": {},
        "skipped": {},
    }
    records: dict[str, list[dict[str, Any]]] = {}
    for number, section in enumerate(SECTIONS, 1):
        if reason := _reason_to_skip(section, bench):
            report["skipped"][section.name] = reason
            continue
        say(f"part {number} of {len(SECTIONS)} of the report: {section.title}")
        stored = _section(section, bench, records, _key(section, bench, fingerprints))
        records[section.name] = stored["records"]
        report["sections"][section.name] = _scored(section, stored)
    return report, records


def _fingerprints(run: Path) -> dict[str, str]:
    """Stage -> fingerprint of every finished checkpoint of the run."""
    found = {
        stage: checkpoint.fingerprint(run / stage / "final")
        for stage in ("align", "s2t", "t2c", "echo")
        if (run / stage / "final").exists()
    }
    if not SCORED & found.keys():
        raise CheckpointError(
            f"{run} holds none of echo/final, s2t/final and t2c/final, so nothing in it can be scored; "
            "train it with echox-train, or name another run"
        )
    return found


def _corpus(config: EvaluateConfig, run: Path) -> Path:
    folder = config.corpus
    if folder is None:
        stage = next(stage for stage in ("echo", "s2t", "t2c") if (run / stage / "final").exists())
        folder = (checkpoint.verify(run / stage / "final")["recipe"].get("corpus") or {}).get("folder")
    if folder is None:
        raise ConfigError(f"the recipe of {run} names no corpus; set corpus=FOLDER to one that echox-prepare corpus made")
    if not any((Path(folder) / section.manifest).is_file() for section in SECTIONS):
        names = ", ".join(sorted({section.manifest for section in SECTIONS}))
        raise ConfigError(f"{folder} holds none of the test manifests ({names}); set corpus=FOLDER to one that does")
    return Path(folder)


def _reason_to_skip(section: Section, bench: Bench) -> str | None:
    if section.count is not None and not getattr(bench.config, section.count):
        return f"{section.count} is 0"
    for stages in section.needs:
        if not any(bench.final(stage).exists() for stage in stages.split("|")):
            return f"the run has no {stages.replace('|', ' or ')} checkpoint"
    return None if (bench.corpus / section.manifest).is_file() else f"the corpus has no {section.manifest}"


def _key(section: Section, bench: Bench, fingerprints: Mapping[str, str]) -> str:
    """What a section's records depend on."""
    plain = {name: value for name, value in to_plain(bench.config).items() if name not in _UNMEASURED}
    content = [REVISION, section.name, plain, manifest_fingerprint(bench.corpus / section.manifest), dict(fingerprints)]
    content.append(name_of(multiplies_bf16_fast(bench.device)))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _section(section: Section, bench: Bench, before: dict[str, list[dict[str, Any]]], key: str) -> dict[str, Any]:
    """A section's records, from the disk or made now."""
    path = bench.folder / "sections" / f"{section.name}.json"
    stored = None if bench.config.overwrite else _stored(path, key)
    if stored is not None:
        skip()
        return stored
    bench.refuse_mute()
    began_s = time.monotonic()
    records = section.make(bench, bench.rows(section.manifest), before)
    made = {"key": key, "judges": bench.judges, "seconds": round(time.monotonic() - began_s, 1), "records": records}
    _write(path, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return stored if stored.get("key") == key else None


def _scored(section: Section, stored: Mapping[str, Any]) -> dict[str, Any]:
    table = section.score(stored["records"], stored["judges"])
    scores = {group: {name: dataclasses.asdict(score) for name, score in row.items()} for group, row in table.items()}
    return {
        "title": section.title,
        "about": section.about,
        "manifest": section.manifest,
        "rows": len(stored["records"]),
        "seconds": stored["seconds"],
        "scores": scores,
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("echox", "torch", "transformers", "jiwer")}


def _write(path: Path, text: str) -> None:
    with appearing(path) as unfinished:
        unfinished.write_text(text, "utf-8")
