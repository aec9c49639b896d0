"""`echox-prepare validate`: a check of every row of a manifest, with a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from echox.core.config import to_plain
from echox.core.device import device_named
from echox.core.errors import ManifestError
from echox.core.files import atomic_write
from echox.data.manifest_check import Hear, ManifestCheckConfig, check_rows
from echox.data.manifest_report import BROKEN, REPEATED_ID, ManifestReport
from echox.data.rows import folded
from echox.evaluation.manifest_page import page_of
from echox.evaluation.transcriber import Transcriber

# As many as a terminal shows; a line below says how many more there are.
SHOWN_PROBLEMS = 50
SHOWN_OF_A_KIND = 3  # examples of a finding


@dataclass(kw_only=True, slots=True)
class ValidateConfig(ManifestCheckConfig):
    """Check every row and clip of a manifest, and write a report and, optionally, the good rows."""

    recogniser: str | None = None
    """Recogniser that clips' words are compared with, a catalogue name, hub id or local folder of a
    Whisper (it transcribes English); null compares nothing, and rows are checked by the `wer` and
    `cer` that they state."""
    device: str = "auto"
    """Device the recogniser runs on: auto, cpu, cuda or cuda:N."""
    report: str | None = None
    """Where the page and the numbers go, a path without ending; null is NAME.report beside the
    manifest (.html and .json)."""


def validate(config: ValidateConfig) -> int:
    """Check a manifest, print its broken rows, findings and statistics, and write the report.

    Args:
        config: the manifest, and what is checked.

    Returns:
        the exit status: 0 when every row can be used, 1 otherwise (broken rows, ids used twice,
        units that the codec does not have).

    Raises:
        ConfigError: no path is named.
        ManifestError: the file is missing, unreadable or empty, or a report cannot be written.
        AssetError: there is no such recogniser.
    """
    report = check_rows(config, _recogniser(config))
    for sentence in folded(report.problems[:SHOWN_PROBLEMS]):
        print(f"{config.path}, {sentence}")
    if report.broken > SHOWN_PROBLEMS:
        print(f"... and {report.broken - SHOWN_PROBLEMS} more broken rows")
    for kind, count in report.findings.most_common():
        # Broken rows and repeated ids are among the problems above, with their lines.
        if kind not in (BROKEN, REPEATED_ID):
            examples = "; ".join(map(str, report.examples[kind][:SHOWN_OF_A_KIND]))
            print(f"{kind}: {count} rows, such as {examples}")
    page = _write(report, config)
    print("\n".join([*report.lines(), f"report: {page}"]))
    # Findings that leave a row usable, such as a clip that is too long, do not fail the command.
    return 1 if report.fatal else 0


def _recogniser(config: ValidateConfig) -> Hear | None:
    if config.recogniser is None:
        return None
    return Transcriber(config.recogniser, device=device_named(config.device)).transcribe


def _write(report: ManifestReport, config: ValidateConfig) -> Path:
    """Write the report as JSON and as HTML; returns the path of the page."""
    manifest = Path(config.path)
    stem = manifest.name.removesuffix(manifest.suffix)
    base = config.report or str(manifest.with_name(f"{stem}.report"))
    page = page_of(report, f"echox-prepare validate {config.path}")
    content = {"config": to_plain(config), **report.plain()}
    numbers = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        # The page last: whoever finds it finds the numbers beside it.
        for ending, text in ((".json", numbers), (".html", page)):
            with atomic_write(Path(f"{base}{ending}")) as unfinished:
                # A file's name may hold bytes that are no UTF-8, which no page could show.
                unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ManifestError(
            f"the report {base}.html could not be written: {error.strerror or error}; "
            "set report=PATH to another place"
        ) from error
    return Path(f"{base}.html")
