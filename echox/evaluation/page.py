"""A report as a page for people, and in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = 8
# Metrics that are no shares, by how their names end.
_PLAIN = {"MOS": "{:.2f}", "PESQ": "{:.2f}", "STOI": "{:.3f}", "/s": "{:.1f}", "length": "{:.3f}"}


def page_of(report: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The report in Markdown: a table per section, how each number is counted, and answers to listen to."""
    return "\n".join(_page(report, records)) + "\n"


def _page(report: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    yield from (f"# Report: {report['run']}", "", f"`{report['command']}`", "")
    yield (
        "In brackets the 95 % interval: Wilson's for shares, by bootstrap over rows for all else. "
        "`n` is the number of rows behind a number."
    )
    for name, section in report["sections"].items():
        yield from ("", f"## {section['title']}", "", f"{section['about']} Records of `{section['manifest']}`: {section['rows']}.", "")
        yield from table_lines(section["scores"])
        yield from ("", *protocol_lines(section["scores"]))
        yield from _examples(name, records.get(name, ()))
    for name, reason in report["skipped"].items():
        yield from ("", f"Not scored: {name}, for {reason}.")
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    checkpoints = ", ".join(f"{stage} `{print_[:12]}`" for stage, print_ in report["checkpoints"].items())
    multiplied = f"; {report['number_format']}" if report.get("number_format") else ""
    yield from ("", f"Seed {report['config']['seed']}; {versions}; checkpoints {checkpoints}{multiplied}.")


def table_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Groups down, metrics across; a column nobody has is not there."""
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    yield f"| | {' | '.join(metrics)} |"
    yield "|---" * (len(metrics) + 1) + "|"
    for group, row in scores.items():
        cells = [_cell(metric, row[metric]) if metric in row else "" for metric in metrics]
        yield f"| {group} | {' | '.join(cells)} |"


def _cell(metric: str, score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "none"
    interval = "" if score["low"] is None else f" [{_value(metric, score['low'])}, {_value(metric, score['high'])}]"
    return f"{_value(metric, score['value'])}{interval} n={score['count']}"


def _value(metric: str, value: float) -> str:
    plain = next((form for ending, form in _PLAIN.items() if metric.endswith(ending)), None)
    return plain.format(value) if plain else f"{100 * value:.1f} %"


def protocol_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """How each number is counted, once."""
    seen = {}
    for row in scores.values():
        for metric, score in row.items():
            seen.setdefault((score["protocol"], score["scorer"]), []).append(metric)
    for (protocol, scorer), metrics in seen.items():
        judge = f", by {scorer}" if scorer else ""
        yield f"- {', '.join(dict.fromkeys(metrics))}: `{protocol}`{judge}"


def _examples(name: str, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    spoken = [record for record in records if (record.get("spoken") or {}).get("audio")][:EXAMPLES]
    if not spoken:
        return
    yield from ("", "| question | answer in text | what the recogniser heard | listen |", "|---|---|---|---|")
    for record in spoken:
        side = record["spoken"]
        yield f"| {_plain(record['question'])} | {_plain(record['text'])} | {_plain(side['transcript'])} | [{name}]({side['audio']}) |"


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def summary_of(report: Mapping[str, Any], folder: Path) -> str:
    """The scores over all rows, a line each, and where the rest lies."""
    lines = []
    for section in report["sections"].values():
        lines.append(section["title"])
        for group, row in section["scores"].items():
            if " " in group and group.split()[0] in ("kind", "voice"):
                continue
            prefix = "" if group == "all" else f"{group}: "
            lines += [f"  {prefix + metric:<48} {_cell(metric, score)}" for metric, score in row.items()]
    lines += [f"not scored: {name}, for {reason}" for name, reason in report["skipped"].items()]
    return "\n".join([*lines, f"report: {folder / 'report.md'}; answers to listen to: {folder / 'wavs'}"])
