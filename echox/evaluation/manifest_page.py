"""The report of a manifest as one self-contained HTML page: tables, and histograms as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from echox.core.durations import duration_text
from echox.data.histogram import Histogram, number_text
from echox.data.manifest_report import ManifestReport

# Of a drawing, in pixels; the margin holds the labels of the axes.
WIDTH, HEIGHT, MARGIN = 420, 150, 22
SHOWN_EXAMPLES = 20  # of a kind of finding
# Within the page, because a page with files beside it loses them when it is sent to somebody.
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; \
color: #222; background: #fff }
h2 { margin-top: 1.6em; font-size: 1.15em } table { border-collapse: collapse; margin: .5em 0 }
td, th { padding: .15em .9em .15em 0; text-align: left; vertical-align: top } \
td.number { text-align: right; font-variant-numeric: tabular-nums }
.drawings { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0 } \
figcaption { font-size: .9em }
rect { fill: #3c78b4 } line { stroke: #999 } svg text { font: 11px system-ui, sans-serif; \
fill: #555 } .good { color: #276a2c } .bad { color: #a02020 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181a1b } \
svg text { fill: #aaa } rect { fill: #6aa3da } }
"""


def page_of(report: ManifestReport, command: str) -> str:
    """Return the report as HTML.

    Args:
        report: of a manifest's check.
        command: the command that makes the page again.
    """
    return "\n".join(_page(report, command)) + "\n"


def _page(report: ManifestReport, command: str) -> Iterator[str]:
    # Everything from the manifest is escaped: its ids, kinds and speakers may hold markup.
    title = escape(f"Manifest {report.path}")
    yield (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>"
    )
    yield f"<h1>{title}</h1><p><code>{escape(command)}</code></p>"
    verdict = "bad" if report.fatal else "good"
    yield (
        f'<p class="{verdict}">{report.rows:,} good rows; {report.left_out:,} rows have something '
        f"against them, {report.fatal:,} cannot be used.</p>"
    )
    yield from _contents(report)
    yield from _findings(report)
    yield '<h2>Distributions</h2><div class="drawings">'
    for name, histogram in report.histograms.items():
        if histogram.count:
            yield _drawing(name, histogram)
    yield "</div></body></html>"


def _contents(report: ManifestReport) -> Iterator[str]:
    totals = [
        ("questions", duration_text(report.question_s)),
        ("answers", duration_text(report.answer_s)),
        ("speakers", report.speakers.names),
        ("units", f"{report.units:,}"),
        ("highest unit", str(report.highest_unit)),
    ]
    yield from _table("What it holds", totals)
    rates = [(f"{rate:,}", f"{count:,}") for rate, count in sorted(report.rates_hz.items())]
    yield from _table("Sampling rates, Hz: clips", rates)
    channels = [(str(number), f"{count:,}") for number, count in sorted(report.channels.items())]
    yield from _table("Channels: clips", channels)
    kinds = [(name, f"{count:,}") for name, count in report.kinds.most()]
    # The most frequent ones alone: a manifest may have any number of speakers.
    yield from _table("Kinds: rows", kinds)
    speakers = [(name, f"{count:,}") for name, count in report.speakers.most()]
    yield from _table("Speakers: rows", speakers)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    # A heading without a table would be taken for a fault of the page.
    if rows:
        yield f"<h2>{escape(title)}</h2><table>"
        yield from (
            f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>'
            for name, value in rows
        )
        yield "</table>"


def _findings(report: ManifestReport) -> Iterator[str]:
    if not report.findings:
        return
    findings = [(kind, f"{count:,}") for kind, count in report.findings.most_common()]
    yield from _table("Against rows", findings)
    for kind, problems in report.examples.items():
        shown = min(SHOWN_EXAMPLES, len(problems))
        yield (
            f"<details><summary>{escape(kind)}: the first {shown} of {report.findings[kind]:,}"
            "</summary><table>"
        )
        for problem in problems[:SHOWN_EXAMPLES]:
            yield (
                f'<tr><td class="number">{problem.line}</td>'
                f"<td>{escape(str(problem.row_id or ''))}</td>"
                f"<td>{escape(problem.reason)}</td></tr>"
            )
        yield "</table></details>"


def _drawing(name: str, histogram: Histogram) -> str:
    """A bar for each bin in use, and for one empty bin at either side.

    All bars are equally wide, whether bins have equal widths or equal ratios.
    """
    # The empty bins at the sides show that the distribution ends there.
    used = [number for number, count in enumerate(histogram.counts) if count]
    first, last = max(used[0] - 1, 0), min(used[-1] + 1, len(histogram.counts) - 1)
    counts = histogram.counts[first : last + 1]
    edges = histogram.edges[first : last + 2]  # one more than there are counts
    base_y = HEIGHT - MARGIN
    axis = (
        f'<line x1="{MARGIN}" y1="{base_y}" x2="{WIDTH - MARGIN}" y2="{base_y}"/>'
        f'<text x="{MARGIN}" y="14">{max(counts):,}</text>'
    )
    drawing = (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(name)}">{axis}{_bars(counts, edges)}{_labels(edges)}</svg>'
    )
    caption = f"<b>{escape(name)}</b>: {histogram.count:,}; {_quantiles(histogram)}"
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _bars(counts: Sequence[int], edges: Sequence[float]) -> str:
    step = (WIDTH - 2 * MARGIN) / len(counts)
    # A pixel between bars; with many bins they would otherwise vanish.
    width = max(step - 1, 0.5)
    base_y, full_height = HEIGHT - MARGIN, HEIGHT - 2 * MARGIN
    bars = []
    for number, count in enumerate(counts):
        height = full_height * count / max(counts)
        # A title is what browsers show beside the pointer.
        title = f"{edges[number]:.3g} to {edges[number + 1]:.3g}: {count:,}"
        bars.append(
            f'<rect x="{MARGIN + step * number:.1f}" y="{base_y - height:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
        )
    return "".join(bars)


def _labels(edges: Sequence[float]) -> str:
    """The values at both ends of the axis and in its middle."""
    bins = len(edges) - 1
    step = (WIDTH - 2 * MARGIN) / bins
    return "".join(
        f'<text x="{MARGIN + step * number:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{edges[number]:.3g}</text>"
        for number in dict.fromkeys((0, bins // 2, bins))  # of one bin, two labels
    )


def _quantiles(histogram: Histogram) -> str:
    values = {
        "min": histogram.low,
        "p5": histogram.quantile(0.05),
        "median": histogram.quantile(0.5),
        "p95": histogram.quantile(0.95),
        "max": histogram.high,
    }
    return ", ".join(f"{name} {number_text(value)}" for name, value in values.items())
