"""The limits of compiled kernels, by release of Triton."""

import pytest
from limits import BEYOND, check

ROOMY = {"kernel": "sample_kernel", "case": "small", "registers": 100, "spilled_bytes": 0}


def taken(release, *kernels, capability=90):
    check([*kernels, ROOMY], capability, lambda name: 128, release)


@pytest.mark.parametrize("release", [f"{series}.1" for series in BEYOND])
def test_a_known_release_takes_what_it_is_known_to_take_and_no_more(release):
    taken(release)
    for fault in ({"spilled_bytes": 4}, {"registers": 129}):
        with pytest.raises(AssertionError):
            taken(release, ROOMY | fault)


def test_what_one_release_may_take_another_may_not():
    expand = {"kernel": "expand_kernel", "case": "durations", "registers": 168, "spilled_bytes": 0}
    taken("3.8.0", expand)
    with pytest.raises(AssertionError):
        taken("3.6.0", expand)
    with pytest.raises(AssertionError):
        taken("3.8.0", expand | {"registers": 169})


def test_an_unknown_release_is_held_to_the_newest_and_reported():
    expand = {"kernel": "expand_kernel", "case": "durations", "registers": 150, "spilled_bytes": 0}
    with pytest.warns(UserWarning, match=r"Triton 9.0.0 is not in limits.py and held to what 3.8 takes; .* for sm_90: .*expand_kernel"):
        taken("9.0.0", expand)
    with pytest.warns(UserWarning), pytest.raises(AssertionError):
        taken("9.0.0", ROOMY | {"spilled_bytes": 4})
