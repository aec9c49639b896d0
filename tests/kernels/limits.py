"""Limits of compiled kernels: the same of every release of Triton, and what some take beyond."""

import warnings

import triton

# Of a thread: no spilled registers anywhere.
SPILLED_BYTES = 0
# Release of Triton -> (kernel, case, sm_) -> what it takes beyond the limits. ptxas counts bytes
# that are stored and bytes that are read.
BEYOND = {
    "3.6": {},
    "3.8": {
        ("sample_kernel", "B=64 V=16384 fp16, plain", 90): {"spilled_bytes": 8},
        ("tile_statistics_kernel", "V=1024 bf16", 80): {"spilled_bytes": 572},
        ("tile_statistics_kernel", "V=4096 bf16, all terms", 80): {"spilled_bytes": 32},
    },
}


def check(kernels, capability, registers, release=triton.__version__):
    """Hold compiled kernels to the limits.

    A release that is not in the table is held to what the newest one in it takes, and reported.

    Args:
        kernels: what `compiling.resources` gives, each with its case.
        registers: kernel -> most registers of a thread; 255 is all that there are.
    """
    series = ".".join(release.split(".")[:2])
    # By numbers: as text 3.10 would come before 3.9.
    newest = max(BEYOND, key=lambda name: tuple(map(int, name.split("."))))
    beyond = BEYOND.get(series, BEYOND[newest])
    if series not in BEYOND:
        exceeding = [
            report
            for report in kernels
            if report["spilled_bytes"] > SPILLED_BYTES
            or report["registers"] > registers(report["kernel"])
        ]
        warnings.warn(
            f"Triton {release} is not in {__name__}.py and held to what {newest} takes; "
            f"beyond the limits for sm_{capability}: {exceeding}",
            stacklevel=2,
        )
    for report in kernels:
        limits = beyond.get((report["kernel"], report["case"], capability), {})
        spilled_bytes = limits.get("spilled_bytes", SPILLED_BYTES)
        assert report["spilled_bytes"] <= spilled_bytes, report
        assert report["registers"] <= limits.get("registers", registers(report["kernel"])), report
