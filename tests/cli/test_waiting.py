"""How threads of PyTorch wait is set before OpenMP is loaded, which reads it only then."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
OPENMP = sorted((Path(importlib.util.find_spec("torch").origin).parent / "lib").glob("libgomp*"))

# PyTorch's OpenMP by itself, which loads much faster than all of PyTorch.
LOADS_OPENMP = """
import ctypes, echox_cli, sys
assert "torch" not in sys.modules
ctypes.CDLL(sys.argv[1])
"""


def spins_read_by_openmp(**users: str) -> str:
    """Returns the spins of a waiting thread, as OpenMP of a new process with these variables."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    result = subprocess.run(
        [sys.executable, "-c", LOADS_OPENMP, str(OPENMP[0])],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | users,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.search(r"GOMP_SPINCOUNT = '(\w+)'", result.stderr)[1]


@pytest.mark.skipif(not OPENMP, reason="this PyTorch comes with another OpenMP than GNU's")
@pytest.mark.parametrize(
    ("users", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(users, spins):
    assert spins_read_by_openmp(**users) == spins
