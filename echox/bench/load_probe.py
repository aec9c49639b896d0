"""One process that repeats a step, measured from within.

`python -m echox.bench.load_probe STEP SECONDS` prints a line when it is ready, waits for one, and then prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from echox.bench.decode_loops import Contest, LoopProblem
from echox.device import multiplies_bf16_fast

CPU = torch.device("cpu")
WIDTH, LAYERS, ROWS, FRAMES = 256, 4, 16, 100  # of a small adapter, and of a batch that it is trained with
UNITS = LoopProblem(layers=4, width=256, batch=8, words=1000, tokens=64, seed=0)  # the demo's unit decoder


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
    dtype = torch.bfloat16 if multiplies_bf16_fast(CPU) else torch.float32
    return Contest(UNITS, CPU, dtype).calls()["echox"]


STEPS = {"training": training, "speaking": speaking}


def main() -> None:
    name, seconds = sys.argv[1:]
    step = STEPS[name]()
    for _ in range(3):  # the first steps are not timed
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    steps, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began_s < float(seconds):
        step()
        steps += 1
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    print(json.dumps({"step_ms": 1e3 * wall_s / steps, "cpu_ms": 1e3 * cpu_s / steps}))


if __name__ == "__main__":
    main()
