"""What the scripts `echox-train`, `echox-info` and so on call.

A command's own module imports every part of echox, PyTorch and transformers with them, which takes seconds. So what can be
answered without it is answered first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from echox_cli.guard import guarded
from echox_cli.texts import INFO, fixed_answer


def train() -> int:
    return _start("echox-train", "echox_cli.train")


def generate() -> int:
    return _start("echox-generate", "echox_cli.generate")


def prepare() -> int:
    return _start("echox-prepare", "echox_cli.prepare")


def evaluate() -> int:
    return _start("echox-evaluate", "echox_cli.evaluate")


def info() -> int:
    return _start(INFO, "echox_cli.info")


def bench() -> int:
    return _start("echox-bench", "echox_cli.bench")


def _start(program: str, module: str) -> int:
    return guarded(program, lambda: _answer(program, module, sys.argv[1:]))


def _answer(program: str, module: str, argv: Sequence[str]) -> int:
    if (text := fixed_answer(program, argv)) is not None:
        print(text)
        return 0
    return importlib.import_module(module).main(argv)
