"""What a manifest holds, as one page of HTML that needs nothing else: tables, and histograms as drawings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from echox.data.histogram import Histogram
from echox.data.manifest_report import ManifestReport

WIDTH, HEIGHT, MARGIN = 420, 150, 22
SHOWN_EXAMPLES = 20
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; background: #fff }
h2 { margin-top: 1.6em; font-size: 1.15em } table { border-collapse: collapse; margin: .5em 0 }
td, th { padding: .15em .9em .15em 0; text-align: left; vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
.drawings { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0 } figcaption { font-size: .9em }
rect { fill: #3c78b4 } line { stroke: #999 } svg text { font: 11px system-ui, sans-serif; fill: #555 } .good { color: #276a2c } .bad { color: #a02020 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181a1b } svg text { fill: #aaa } rect { fill: #6aa3da } }
"""


def page_of(report: ManifestReport, command: str) -> str:
    """The report as HTML.

    Args:
        command: what makes the page again.
    """
    return "\n".join(_page(report, command)) + "\n"


def _page(report: ManifestReport, command: str) -> Iterator[str]:
    title = f"Manifest {report.path}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1><p><code>{escape(command)}</code></p>"
    verdict = "bad" if report.fatal else "good"
    yield f'<p class="{verdict}">{report.rows:,} good rows; {report.left_out:,} rows have something against them, {report.fatal:,} cannot be used.</p>'
    hours = [("questions, hours", f"{report.question_s / 3600:,.2f}"), ("answers, hours", f"{report.answer_s / 3600:,.2f}")]
    yield from _table("What it holds", [*hours, ("speakers", report.speakers.names), ("units", f"{report.units:,}"), ("highest unit", str(report.highest_unit))])
    yield from _table("Sampling rates, Hz: clips", [(f"{rate:,}", f"{count:,}") for rate, count in sorted(report.rates_hz.items())])
    yield from _table("Channels: clips", [(str(channels), f"{count:,}") for channels, count in sorted(report.channels.items())])
    yield from _table("Kinds: rows", [(name, f"{count:,}") for name, count in report.kinds.most()])
    yield from _table("Speakers: rows", [(name, f"{count:,}") for name, count in report.speakers.most()])
    yield from _findings(report)
    yield '<h2>Distributions</h2><div class="drawings">'
    yield from (_drawing(name, found) for name, found in report.histograms.items() if found.count)
    yield "</div></body></html>"


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f"<h2>{escape(title)}</h2><table>"
        yield from (f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in rows)
        yield "</table>"


def _findings(report: ManifestReport) -> Iterator[str]:
    if not report.findings:
        return
    yield from _table("Against rows", [(kind, f"{count:,}") for kind, count in report.findings.most_common()])
    for kind, examples in report.examples.items():
        yield f"<details><summary>{escape(kind)}: the first {min(SHOWN_EXAMPLES, len(examples))} of {report.findings[kind]:,}</summary><table>"
        for one in examples[:SHOWN_EXAMPLES]:
            yield f'<tr><td class="number">{one.line}</td><td>{escape(str(one.row_id or ""))}</td><td>{escape(one.reason)}</td></tr>'
        yield "</table></details>"


def _drawing(name: str, found: Histogram) -> str:
    """Bars over the bins that are used; bins of equal ratio are drawn equally wide, as those of equal width are."""
    used = [number for number, count in enumerate(found.counts) if count]
    first, last = max(used[0] - 1, 0), min(used[-1] + 1, len(found.counts) - 1)
    counts, edges = found.counts[first : last + 1], found.edges[first : last + 2]
    step, tallest = (WIDTH - 2 * MARGIN) / len(counts), max(counts)
    floor, room = HEIGHT - MARGIN, HEIGHT - 2 * MARGIN
    bars = "".join(
        f'<rect x="{MARGIN + step * number:.1f}" y="{floor - room * count / tallest:.1f}" width="{max(step - 1, 0.5):.1f}" '
        f'height="{room * count / tallest:.1f}"><title>{edges[number]:.3g} to {edges[number + 1]:.3g}: {count:,}</title></rect>'
        for number, count in enumerate(counts)
    )
    marks = {0: edges[0], len(counts) // 2: edges[len(counts) // 2], len(counts): edges[-1]}
    labels = "".join(f'<text x="{MARGIN + step * at:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{value:.3g}</text>' for at, value in marks.items())
    axis = f'<line x1="{MARGIN}" y1="{floor}" x2="{WIDTH - MARGIN}" y2="{floor}"/><text x="{MARGIN}" y="14">{tallest:,}</text>'
    caption = f"<b>{escape(name)}</b>: {found.count:,}; {_numbers({'min': found.low, 'p5': found.quantile(0.05), 'median': found.quantile(0.5), 'p95': found.quantile(0.95), 'max': found.high})}"
    drawing = f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{axis}{bars}{labels}</svg>'
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
