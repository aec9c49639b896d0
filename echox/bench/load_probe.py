"""A process that repeats a step and measures it from within.

`python -m echox.bench.load_probe STEP` prints a line when it is ready, and then one JSON object for
each number of seconds that it reads, a line each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from echox.core.device import multiplies_bf16_fast

CPU = torch.device("cpu")
WIDTH, LAYERS = 256, 4  # of a small adapter
ROWS, FRAMES = 16, 100  # of a batch that it is trained with
WARMUP_STEPS = 3  # not timed: they allocate, and start the threads


def training() -> Callable[[], object]:
    """Return a training step of a small transformer: forward, backward, AdamW."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, WIDTH // 64, 4 * WIDTH, dropout=0.0, batch_first=True
    )
    model = torch.nn.TransformerEncoder(layer, LAYERS)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(ROWS, FRAMES, WIDTH)  # [B, F, D]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16_fast(CPU)):
            loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def speaking() -> Callable[[], object]:
    """Return a call that decodes the units of eight answers together."""
    # Imported here because transformers comes with it, which takes seconds.
    from echox.bench.decode_loops import LoopComparison, LoopProblem

    dtype = torch.bfloat16 if multiplies_bf16_fast(CPU) else torch.float32
    # The size of the demo's unit decoder.
    problem = LoopProblem(layers=4, width=256, batch=8, words=1000, tokens=64, seed=0)
    return LoopComparison(problem, CPU, dtype).calls()["echox"]


# The names stand in the tables of `echox-bench load`.
STEPS = {"training": training, "speaking": speaking}


def main() -> None:
    """Run the probe: warm up, then measure until standard input ends."""
    step = STEPS[sys.argv[1]]()
    for _ in range(WARMUP_STEPS):
        step()
    # Flushed, because the parent waits for the line before it loads the machine.
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(repeated(step, float(line))), flush=True)


def repeated(step: Callable[[], object], seconds: float) -> dict[str, float]:
    """Repeat a step.

    Args:
        step: the call that is repeated.
        seconds: how long at least.

    Returns:
        mean milliseconds of a step: "step_ms" by the clock, "cpu_ms" of all this process's threads.
    """
    steps, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began_s < seconds:
        step()
        steps += 1
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return {"step_ms": 1e3 * wall_s / steps, "cpu_ms": 1e3 * cpu_s / steps}


if __name__ == "__main__":
    main()
