"""What the scripts `echox-train`, `echox-info` and so on call.

A command's own module imports every part of echox, PyTorch and transformers with them, which
takes seconds. So what can be answered without it is answered first: texts that are the same
everywhere, and texts from the cache that are still valid.
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

from echox.core.errors import ConfigError
from echox.core.registry import KINDS
from echox_cli.answer_cache import AnswerCache
from echox_cli.arguments import split
from echox_cli.completion import Offers, complete
from echox_cli.guard import guarded
from echox_cli.texts import INFO, fixed_answer

# Topics of `echox-info` whose text depends on files alone.
_IN_FILES = (*KINDS, "recipe", "asset")
# Device files of GPUs for PyTorch: CUDA, CUDA on small boards (two), ROCm, CUDA under Windows.
# Looked for here, because asking PyTorch would take the seconds that a cached text saves.
_GPUS = ("nvidia*", "nvgpu*", "nvhost*", "kfd", "dxg")


def train() -> int:
    """Run `echox-train` with the process's arguments and return its exit code."""
    return _start("echox-train")


def generate() -> int:
    """Run `echox-generate` with the process's arguments and return its exit code."""
    return _start("echox-generate")


def prepare() -> int:
    """Run `echox-prepare` with the process's arguments and return its exit code."""
    return _start("echox-prepare")


def evaluate() -> int:
    """Run `echox-evaluate` with the process's arguments and return its exit code."""
    return _start("echox-evaluate")


def info() -> int:
    """Run `echox-info` with the process's arguments and return its exit code."""
    return _start(INFO)


def bench() -> int:
    """Run `echox-bench` with the process's arguments and return its exit code."""
    return _start("echox-bench")


def serve() -> int:
    """Run `echox-serve` with the process's arguments and return its exit code."""
    return _start("echox-serve")


def _start(program: str) -> int:
    return guarded(program, lambda: _answer(program, sys.argv[1:]))


def _answer(program: str, argv: list[str]) -> int:
    if (text := fixed_answer(program, argv)) is not None:
        print(text)
        return 0
    # Only the completion scripts use this option, so no help lists it.
    if argv[:1] == ["--complete"] and len(argv) == 2:
        print("\n".join(_completions(program, argv[1])))
        return 0
    if _is_cacheable(program, argv):
        return _print_cached(program, argv)
    return _module(program).main(argv)


def _module(program: str) -> ModuleType:
    return importlib.import_module(f"echox_cli.{program.removeprefix('echox-')}")


def _is_cacheable(program: str, argv: Sequence[str]) -> bool:
    """Return whether a command line only asks for a text that depends on files alone."""
    if program == INFO:
        # Without a topic it shows the GPUs, too, whose state is in no file.
        topics = [word.partition("=")[0] for word in argv if not word.startswith("plugin_dirs=")]
        return topics[0] in _IN_FILES if topics else not _has_gpu()
    try:
        # With the options of recipes, which other commands reject when they are run.
        return "--help" in split(argv, takes_recipe=True).options
    except ConfigError:
        return False


def _has_gpu() -> bool:
    return any(any(Path("/dev").glob(name)) for name in _GPUS)


def _print_cached(program: str, argv: Sequence[str]) -> int:
    """Print a command's text from the cache, or run the command and cache what it prints."""
    cache, question = AnswerCache(), (program, *argv)
    if (printed := cache.get(question)) is not None:
        for stream, text in printed:
            print(text, end="", file=getattr(sys, stream))
        return 0
    with _recorded_output() as printed:
        status = _module(program).main(argv)
    # An error may be mended by something that is in no file.
    if status == 0:
        cache.put(question, printed)
    return status


@contextlib.contextmanager
def _recorded_output() -> Iterator[list[tuple[str, str]]]:
    """Record what is printed within a block, which is printed nevertheless.

    Yields (stream, text) in the order of printing, from both streams, as a plugin may print too.
    """
    printed: list[tuple[str, str]] = []
    with (
        contextlib.redirect_stdout(_Recorder("stdout", printed)),
        contextlib.redirect_stderr(_Recorder("stderr", printed)),
    ):
        yield printed


class _Recorder:
    """A text stream that passes everything on and records what was written."""

    def __init__(self, name: str, printed: list[tuple[str, str]]) -> None:
        self._name, self._printed = name, printed
        self._stream: TextIO = getattr(sys, name)

    def write(self, text: str) -> int:
        self._printed.append((self._name, text))
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        # The stream's own method would write past `write`.
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    # The rest, such as `isatty` and `encoding`, is the stream's own.
    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _completions(program: str, line: str) -> list[str]:
    cache = AnswerCache()

    def offers_after(words: Sequence[str]) -> Offers:
        question = (program, "--complete", *words)
        if (entry := cache.get(question)) is not None:
            return Offers(**entry)
        # What a plugin prints is not offered.
        with contextlib.redirect_stdout(sys.stderr):
            offers = _module(program).offers(words)
        # A faulty word may be mended by a file that does not exist yet.
        if not offers.faulty:
            cache.put(question, dataclasses.asdict(offers))
        return offers

    return complete(line, offers_after)
