"""The commands of echox: thin entry points of the command line; all work happens in `echox`.

Importing this package sets how threads of PyTorch wait for each other, in this process and in
those it starts. OpenMP reads that when PyTorch is loaded, so `import echox_cli` comes before
`import torch`.
"""

import os

# The threads of a product wait at its end for the last, and by default they spin: with GNU's
# OpenMP for milliseconds, with LLVM's for 200 of them. Where others want the cores too, the last
# thread is often off its core, kept from it by those that spin for it. After some 30
# microseconds, which is what waits take on a quiet machine, a thread sleeps instead;
# `echox-bench load` measures both.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # in milliseconds, the least that is not none
