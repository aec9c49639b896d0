"""One process that repeats a step, measured from within.

`python -m echox.bench.load_probe STEP` prints a line when it is ready, and one JSON object for each line of seconds that it is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from echox.device import multiplies_bf16_fast

CPU = torch.device("cpu")
WIDTH, LAYERS, ROWS, FRAMES = 256, 4, 16, 100  # of a small adapter, and of a batch that it is trained with


def training() -> Callable[[], object]:
    """A step of a small transformer: forward, backward, AdamW."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, WIDTH // 64, 4 * WIDTH, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, LAYERS)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(ROWS, FRAMES, WIDTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16_fast(CPU)):
            loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def speaking() -> Callable[[], object]:
    """The units of some answers, decoded together."""
    # Imported here because transformers comes with it, which takes seconds.
    from echox.bench.decode_loops import Contest, LoopProblem

    dtype = torch.bfloat16 if multiplies_bf16_fast(CPU) else torch.float32
    units = LoopProblem(layers=4, width=256, batch=8, words=1000, tokens=64, seed=0)  # of the demo's unit decoder
    return Contest(units, CPU, dtype).calls()["echox"]


STEPS = {"training": training, "speaking": speaking}


def main() -> None:
    step = STEPS[sys.argv[1]]()
    for _ in range(3):  # the first steps are not timed
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(repeated(step, float(line))), flush=True)


def repeated(step: Callable[[], object], seconds: float) -> dict[str, float]:
    """Mean time of a step, by the clock and of all this process's threads."""
    steps, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began_s < seconds:
        step()
        steps += 1
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return {"step_ms": 1e3 * wall_s / steps, "cpu_ms": 1e3 * cpu_s / steps}


if __name__ == "__main__":
    main()
