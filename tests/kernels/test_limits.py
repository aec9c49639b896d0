"""The limits of compiled kernels, by release of Triton."""

import pytest
from limits import BEYOND, check

# A second kernel well within the limits, so that a failure is due to the kernel under test.
SMALL = {"kernel": "sample_kernel", "case": "small", "registers": 100, "spilled_bytes": 0}


def check_kernels(release, *kernels, capability=90):
    check([*kernels, SMALL], capability, lambda name: 128, release)


@pytest.mark.parametrize("release", [f"{series}.1" for series in BEYOND])
def test_a_known_release_is_held_to_its_limits(release):
    check_kernels(release)
    for fault in ({"spilled_bytes": 4}, {"registers": 129}):
        with pytest.raises(AssertionError):
            check_kernels(release, SMALL | fault)


def test_an_exception_of_one_release_is_not_another_releases():
    spilling = SMALL | {"case": "B=64 V=16384 fp16, plain", "spilled_bytes": 8}
    check_kernels("3.8.0", spilling)
    with pytest.raises(AssertionError):
        check_kernels("3.6.0", spilling)
    with pytest.raises(AssertionError):
        check_kernels("3.8.0", spilling | {"spilled_bytes": 12})


def test_an_unknown_release_is_held_to_the_newest_and_reported():
    spilling = SMALL | {"case": "B=64 V=16384 fp16, plain", "spilled_bytes": 8}
    with pytest.warns(
        UserWarning,
        match=r"Triton 9.0.0 is not in limits.py and held to what 3.8 takes; "
        ".* for sm_90: .*sample_kernel",
    ):
        check_kernels("9.0.0", spilling)
    with pytest.warns(UserWarning), pytest.raises(AssertionError):
        check_kernels("9.0.0", SMALL | {"spilled_bytes": 4})
