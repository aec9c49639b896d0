"""Import this first: it sets what PyTorch and Triton read when they are imported."""

import os
import sys
from pathlib import Path

# A thread for each process, of which there is one for each core.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")
# Where the tests' own modules are, as pytest finds them too.
sys.path.insert(0, str(Path(__file__).parents[1]))
