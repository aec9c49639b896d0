"""Text normalized for comparison."""

import pytest

from echox.data.text import contains_answer


@pytest.mark.parametrize(
    "text, answer, expected",
    [
        ("The capital of Ukraine is Kiev.", "Kyiv | Kiev", True),
        ("The capital of Ukraine is Kyiv.", "Kyiv | Kiev", True),
        ("It is Lviv.", "Kyiv | Kiev", False),
        ("It is 42.", "forty two", True),
        ("It is forty-two.", "forty two", True),
        ("Twoforty", "forty", False),
        ("Thirteen plus seven is twenty three.", "twenty", False),
        ("Thirteen plus seven is twenty three.", "three", False),
        ("It is 300.", "three", False),
        ("It is 105.", "five", False),
        ("Thirteen and seven, twenty.", "twenty", True),
        ("Three plus five: eight.", "eight", True),
        ("Twenty three, no, twenty.", "twenty", True),
        ("Anything", " | ", False),
        ("", "", False),
    ],
)
def test_an_answer_is_found_by_any_of_its_spellings(text, answer, expected):
    assert contains_answer(text, answer) is expected
