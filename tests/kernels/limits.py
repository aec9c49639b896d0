"""What compiled kernels may take: the same of every release of Triton, and what some releases are known to take beyond it."""

import warnings

import triton

# Of a thread: no spilled registers anywhere.
SPILLED_BYTES = 0
# Release of Triton -> (kernel, case, sm_) -> what it takes beyond the limits. ptxas counts bytes that are stored and bytes that are read.
BEYOND = {
    "3.6": {},
    "3.8": {
        ("expand_kernel", "assembly", 80): {"registers": 168},
        ("expand_kernel", "assembly", 90): {"registers": 168},
        ("expand_kernel", "durations", 80): {"registers": 168},
        ("expand_kernel", "durations", 90): {"registers": 168},
        ("sample_kernel", "B=64 V=16384 fp16, plain", 90): {"spilled_bytes": 8},
        ("tile_statistics_kernel", "V=1024 bf16", 80): {"spilled_bytes": 572},
        ("tile_statistics_kernel", "V=4096 bf16, all terms", 80): {"spilled_bytes": 32},
    },
}


def check(kernels, capability, registers, release=triton.__version__):
    """Hold compiled kernels to the limits; a release that is not in the table is held to what the newest that is takes, and reported.

    Args:
        kernels: what `compiling.resources` gives, each with its case.
        registers: kernel -> most registers of a thread; 255 is all that there are.
    """
    series = ".".join(release.split(".")[:2])
    newest = max(BEYOND, key=lambda known: tuple(map(int, known.split("."))))
    beyond = BEYOND.get(series, BEYOND[newest])
    if series not in BEYOND:
        more = [found for found in kernels if found["spilled_bytes"] > SPILLED_BYTES or found["registers"] > registers(found["kernel"])]
        warnings.warn(f"Triton {release} is not in {__name__}.py and held to what {newest} takes; beyond the limits for sm_{capability}: {more}", stacklevel=2)
    for found in kernels:
        known = beyond.get((found["kernel"], found["case"], capability), {})
        assert found["spilled_bytes"] <= known.get("spilled_bytes", SPILLED_BYTES), found
        assert found["registers"] <= known.get("registers", registers(found["kernel"])), found
