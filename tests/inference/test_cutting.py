"""Segments at pauses: at punctuation, between words where there is none, never within a number."""

import pytest
import torch

from echox.inference.cutting import PauseCutting, PauseRule, segments_of


def segments(tokens, least=12, most=24):
    """The texts of the segments of an answer that is given token by token."""
    found = list(
        segments_of(
            PauseCutting(PauseRule(least=least, most=most)),
            range(len(tokens)),
            torch.zeros(len(tokens), 1),
            lambda ids: "".join(tokens[: len(ids)]),
        )
    )
    ends = [0, *(segment.end for segment in found)]
    assert [segment.start for segment in found] == ends[:-1]
    return ["".join(tokens[segment.start : segment.end]) for segment in found]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["It", " is", " Paris", ",", " a", " city", "."], ["It is Paris,", " a city."]),
        (["Yes", ",", " it", " is", "."], ["Yes, it is."]),
        (["It", " is", " about", " 3", ".", "1", "4", "."], ["It is about 3.14."]),
        (
            ["one", " two", " three", " four", " five", " six", "ty", " seven"],
            ["one two three four five sixty", " seven"],
        ),
        (
            ["\u4f60", "\u597d", "\u5417", "\uff1f", "\u597d"],
            ["\u4f60\u597d\u5417\uff1f", "\u597d"],
        ),
        ([], []),
        # By characters, whatever the tokens are.
        ([*"Yes, it is Paris, a city"], ["Yes, it is Paris,", " a city"]),
        (["So", " it", " goes", "."], ["So it goes."]),
    ],
)
def test_segments_end_where_a_voice_pauses(tokens, expected):
    assert segments(tokens) == expected


def test_a_segment_is_known_one_token_after_its_end():
    cutting = PauseCutting(PauseRule(least=2, most=9))
    texts = ["Yes", "Yes.", "Yes. It", "Yes. It is"]
    found = [cutting.push(torch.zeros(1), text) for text in texts]
    assert [segment is not None for segment in found] == [False, False, True, False]
    assert (found[2].start, found[2].end, found[2].known) == (0, 2, 3)
    assert (cutting.flush().start, cutting.flush()) == (2, None)


def test_a_token_within_a_character_is_no_border():
    cutting = PauseCutting(PauseRule(least=1, most=2))
    assert cutting.push(torch.zeros(1), "a") is None
    assert cutting.push(torch.zeros(1), "a \ufffd") is None
    assert cutting.push(torch.zeros(1), "a \u00e9") is None
    assert cutting.push(torch.zeros(1), "a \u00e9 b").end == 3


def test_the_first_segment_may_be_shorter():
    tokens = ["It", " is", " Paris", ",", " and", " it", " is", " so", ",", " as", " you", " see"]
    texts = ["".join(tokens[:count]) for count in range(1, len(tokens) + 1)]
    cutting = PauseCutting(PauseRule(first=8, least=20))
    found = [cutting.push(torch.zeros(1), text) for text in texts]
    # "It is Paris," is long enough at the beginning, and " and it is so," is not behind it.
    assert [segment.end for segment in found if segment is not None] == [4]
