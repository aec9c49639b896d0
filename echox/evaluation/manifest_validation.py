"""`echox-prepare validate`: a manifest checked in every row, as a page, as numbers, and as what is left of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from echox.config import to_plain
from echox.data.manifest_check import Hear, ManifestCheckConfig, check_rows
from echox.data.manifest_report import BROKEN, REPEATED_ID, ManifestReport
from echox.data.writing import appearing
from echox.device import device_named
from echox.errors import ManifestError
from echox.evaluation.manifest_page import page_of
from echox.evaluation.transcriber import Transcriber

# A terminal's worth; the count says how many more there are.
SHOWN_PROBLEMS = 50
SHOWN_OF_A_KIND = 3


@dataclass(kw_only=True, slots=True)
class ValidateConfig(ManifestCheckConfig):
    """Check a manifest: every row and clip, units, words, duplicates; with a report as a page, and optionally what is left of it."""

    recogniser: str | None = None
    """Recogniser that clips' words are compared with, a catalogue name, hub id or local folder of a Whisper (English is heard); null
    compares nothing, and rows are judged by the `wer` and `cer` that they state."""
    device: str = "auto"
    """Device the recogniser runs on: auto, cpu, cuda or cuda:N."""
    report: str | None = None
    """Where the page and the numbers go, a path without ending; null is NAME.report beside the manifest (.html and .json)."""


def validate(config: ValidateConfig) -> int:
    """Print every broken row by line and reason, what else speaks against rows, and the statistics.

    Returns:
        the exit status: 0 when every row can be used, 1 otherwise (broken rows, ids used twice, units that the codec does not have).
    Raises:
        ConfigError: no path. ManifestError: the file is missing, unreadable or empty, or a report cannot be written.
        AssetError: there is no such recogniser.
    """
    report = check_rows(config, _ear(config))
    for problem in report.problems[:SHOWN_PROBLEMS]:
        print(f"{config.path}, {problem}")
    if report.broken > SHOWN_PROBLEMS:
        print(f"... and {report.broken - SHOWN_PROBLEMS} more broken rows")
    for kind, count in report.findings.most_common():
        if kind not in (BROKEN, REPEATED_ID):
            print(f"{kind}: {count} rows, such as " + "; ".join(map(str, report.examples[kind][:SHOWN_OF_A_KIND])))
    page = _write(report, config)
    print("\n".join([*report.lines(), f"report: {page}"]))
    return 1 if report.fatal else 0


def _ear(config: ValidateConfig) -> Hear | None:
    if config.recogniser is None:
        return None
    transcriber = Transcriber(config.recogniser, device=device_named(config.device))

    def hear(clips: Sequence[Tensor], rate_hz: int) -> list[str]:
        return transcriber.transcribe(clips, rate_hz)

    return hear


def _write(report: ManifestReport, config: ValidateConfig) -> Path:
    manifest = Path(config.path)
    base = config.report or str(manifest.with_name(manifest.name.removesuffix(manifest.suffix) + ".report"))
    page = page_of(report, f"echox-prepare validate {config.path}")
    numbers = json.dumps({"config": to_plain(config), **report.plain()}, indent=1, ensure_ascii=False) + "\n"
    try:
        for ending, text in ((".json", numbers), (".html", page)):
            with appearing(Path(f"{base}{ending}")) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"the report {base}.html could not be written: {error.strerror or error}; set report=PATH to another place") from error
    return Path(f"{base}.html")
