"""A report as a Markdown page, and as a summary of a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = 8  # of each section, with links to their wavs
# Metrics that are not shares: ending of the name -> format.
_FORMATS = {"MOS": "{:.2f}", "PESQ": "{:.2f}", "STOI": "{:.3f}", "/s": "{:.1f}", "length": "{:.3f}"}


def page_of(report: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the report in Markdown.

    Args:
        report: the content of `report.json`.
        records: section -> records, for examples of answers.

    Returns:
        a page with a table per section, the protocols of its numbers, and answers to listen to.
    """
    return "\n".join(_page(report, records)) + "\n"


def _page(
    report: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[str]:
    yield from (f"# Report: {report['run']}", "", f"`{report['command']}`", "")
    yield (
        "In brackets the 95 % interval: Wilson's for shares, by bootstrap over rows for all else. "
        "`n` is the number of rows behind a number."
    )
    for name, section in report["sections"].items():
        yield from _section(section)
        yield from _examples(name, records.get(name, ()))
    for name, reason in report["skipped"].items():
        yield from ("", f"Not scored: {name}, for {reason}.")
    yield from ("", _provenance(report))


def _section(section: Mapping[str, Any]) -> Iterator[str]:
    source = f" of `{section['manifest']}`" if section["manifest"] else ""
    about = f"{section['about']} Records{source}: {section['rows']}."
    yield from ("", f"## {section['title']}", "", about, "")
    yield from table_lines(section["scores"])
    yield from ("", *protocol_lines(section["scores"]))
    yield from (f"- {sentence}" for sentence in section["missing"])


def _provenance(report: Mapping[str, Any]) -> str:
    """By which seed, versions, checkpoints and number format the scores can be computed again."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    checkpoints = ", ".join(
        f"{stage} `{fingerprint[:12]}`" for stage, fingerprint in report["checkpoints"].items()
    )
    number_format = f"; {report['number_format']}" if report.get("number_format") else ""
    seed = report["config"]["seed"]
    return f"Seed {seed}; {versions}; checkpoints {checkpoints}{number_format}."


def table_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row per group and a column per metric.

    Args:
        scores: group -> metric -> `Score` as a mapping.
    """
    # All metrics of any group, in the order in which they first appear.
    metrics = list(dict.fromkeys(metric for by_metric in scores.values() for metric in by_metric))
    yield f"| | {' | '.join(metrics)} |"
    yield "|---" * (len(metrics) + 1) + "|"
    for group, by_metric in scores.items():
        cells = [
            _cell(metric, by_metric[metric]) if metric in by_metric else "" for metric in metrics
        ]
        yield f"| {group} | {' | '.join(cells)} |"


def _cell(metric: str, score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "none"
    interval = ""
    # Counts, such as units per second, have no interval.
    if score["low"] is not None:
        interval = f" [{_value(metric, score['low'])}, {_value(metric, score['high'])}]"
    return f"{_value(metric, score['value'])}{interval} n={score['count']}"


def _value(metric: str, value: float) -> str:
    form = next((form for ending, form in _FORMATS.items() if metric.endswith(ending)), None)
    return form.format(value) if form else f"{100 * value:.1f} %"


def protocol_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line per protocol and scorer, with the metrics that are counted so.

    Args:
        scores: group -> metric -> `Score` as a mapping.
    """
    metrics_by_protocol: dict[tuple[str, str | None], list[str]] = {}
    for by_metric in scores.values():
        for metric, score in by_metric.items():
            key = score["protocol"], score["scorer"]
            metrics_by_protocol.setdefault(key, []).append(metric)
    for (protocol, scorer), metrics in metrics_by_protocol.items():
        suffix = f", by {scorer}" if scorer else ""
        # Each metric once, though every group has it.
        yield f"- {', '.join(dict.fromkeys(metrics))}: `{protocol}`{suffix}"


def _examples(name: str, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    # Records of text alone have no speech, and of some sections not even the key.
    spoken = [record for record in records if (record.get("spoken") or {}).get("audio")][:EXAMPLES]
    if not spoken:
        return
    yield from (
        "",
        "| question | answer in text | what the recogniser heard | listen |",
        "|---|---|---|---|",
    )
    for record in spoken:
        speech = record["spoken"]
        cells = map(_cell_text, (record["question"], record["text"], speech["transcript"]))
        yield f"| {' | '.join(cells)} | [{name}]({speech['audio']}) |"


def _cell_text(text: str) -> str:
    # Bars and line breaks would end the cell.
    return " ".join(text.replace("|", "/").split())


def summary_of(report: Mapping[str, Any], folder: Path) -> str:
    """Return the scores over all rows, a line each, and the paths of the report's files.

    Args:
        report: the content of `report.json`.
        folder: of the report.
    """
    lines = []
    for section in report["sections"].values():
        lines.append(section["title"])
        for group, by_metric in section["scores"].items():
            # Groups of some rows alone are left to the page.
            if " " in group and group.split()[0] in ("kind", "voice"):
                continue
            prefix = "" if group == "all" else f"{group}: "
            lines += [
                f"  {prefix + metric:<48} {_cell(metric, score)}"
                for metric, score in by_metric.items()
            ]
        lines += [f"  {sentence}" for sentence in section["missing"]]
    lines += [f"not scored: {name}, for {reason}" for name, reason in report["skipped"].items()]
    # Wavs of answers that were there before lie where they were.
    wavs = f"; answers to listen to: {folder / 'wavs'}" if (folder / "wavs").is_dir() else ""
    return "\n".join([*lines, f"report: {folder / 'report.md'}{wavs}"])
