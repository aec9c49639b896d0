"""Durations as people read them."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that fits: "2.0 s", "3.4 min" or "1,250.25 h"."""
    # By the rounded number, so that "60.0 s" is a minute.
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if round(seconds / 60, 1) < 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.2f} h"
