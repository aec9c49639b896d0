"""What the scripts `echox-train`, `echox-info` and so on call.

A command's own module imports every part of echox, PyTorch and transformers with them, which takes seconds. So what can be
answered without it is answered first: what is the same everywhere, and what was answered before and has not changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TextIO

from echox.errors import ConfigError
from echox.registry import KINDS
from echox_cli.answer_cache import AnswerCache
from echox_cli.arguments import split
from echox_cli.completion import Offers, complete
from echox_cli.guard import guarded
from echox_cli.texts import INFO, fixed_answer

# Topics of `echox-info` that are known from files alone.
_IN_FILES = (*KINDS, "recipe", "asset")
# Device files of the GPUs that PyTorch computes on: CUDA, that of small boards, ROCm, and CUDA under Windows.
_GPUS = ("nvidia*", "nvgpu*", "nvhost*", "kfd", "dxg")


def train() -> int:
    return _start("echox-train")


def generate() -> int:
    return _start("echox-generate")


def prepare() -> int:
    return _start("echox-prepare")


def evaluate() -> int:
    return _start("echox-evaluate")


def info() -> int:
    return _start(INFO)


def bench() -> int:
    return _start("echox-bench")


def _start(program: str) -> int:
    return guarded(program, lambda: _answer(program, sys.argv[1:]))


def _answer(program: str, argv: list[str]) -> int:
    if (text := fixed_answer(program, argv)) is not None:
        print(text)
        return 0
    if argv[:1] == ["--complete"] and len(argv) == 2:
        print("\n".join(_completions(program, argv[1])))
        return 0
    return _told(program, argv) if _only_tells(program, argv) else _module(program).main(argv)


def _module(program: str) -> ModuleType:
    return importlib.import_module(f"echox_cli.{program.removeprefix('echox-')}")


def _only_tells(program: str, argv: Sequence[str]) -> bool:
    """Whether a command line only asks for a text that stays the same while no file changes."""
    if program == INFO:
        # Without a topic it shows the GPUs, too, whose state is in no file.
        topics = [word.partition("=")[0] for word in argv if not word.startswith("plugin_dirs=")]
        return topics[0] in _IN_FILES if topics else not _has_gpu()
    try:
        return "--help" in split(argv, takes_recipe=True).options
    except ConfigError:
        return False


def _has_gpu() -> bool:
    return any(any(Path("/dev").glob(name)) for name in _GPUS)


def _told(program: str, argv: Sequence[str]) -> int:
    """Print the text that was kept, or print it by the command itself and keep it."""
    cache, question = AnswerCache(), (program, *argv)
    if (kept := cache.get(question)) is not None:
        for stream, text in kept:
            print(text, end="", file=getattr(sys, stream))
        return 0
    with _recorded() as printed:
        status = _module(program).main(argv)
    if status == 0:
        cache.put(question, printed)
    return status


@contextlib.contextmanager
def _recorded() -> Iterator[list[tuple[str, str]]]:
    """What is printed inside, which is printed nevertheless: (stream, text) in order. A plugin may print, too."""
    printed: list[tuple[str, str]] = []
    with (
        contextlib.redirect_stdout(_Recorder("stdout", printed)),
        contextlib.redirect_stderr(_Recorder("stderr", printed)),
    ):
        yield printed


class _Recorder:
    """A text stream that passes everything on, and notes what was written."""

    def __init__(self, name: str, printed: list[tuple[str, str]]) -> None:
        self._name, self._printed = name, printed
        self._stream: TextIO = getattr(sys, name)

    def write(self, text: str) -> int:
        self._printed.append((self._name, text))
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _completions(program: str, line: str) -> list[str]:
    cache = AnswerCache()

    def offers_after(words: Sequence[str]) -> Offers:
        question = (program, "--complete", *words)
        if (kept := cache.get(question)) is None:
            # What a plugin prints is not offered.
            with contextlib.redirect_stdout(sys.stderr):
                found = _module(program).offers(words)
            if not found.faulty:
                cache.put(question, dataclasses.asdict(found))
            return found
        return Offers(**kept)

    return complete(line, offers_after)
