"""Durations in the unit that fits."""

import pytest

from echox.core.durations import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (2, "2.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1.0 min"),
        (600, "10.0 min"),
        (3598, "1.00 h"),
        (4_500_900, "1,250.25 h"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds, text):
    assert duration_text(seconds) == text
