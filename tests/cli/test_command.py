import errno
import io
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from echox.core.errors import SignalError
from echox.encoders.base import EncoderConfig
from echox_cli.command import run_command
from echox_cli.fields import summary
from echox_cli.guard import guarded


@dataclass(kw_only=True, slots=True)
class AnswerConfig:
    """Answer a question."""

    input: str = MISSING
    """File of the question."""
    output: Path = Path("answer.wav")
    """File of the answer."""
    batch_size: int = 4
    """Rows at once."""
    encoder: EncoderConfig | None = None
    """The encoder of the question."""
    words: list[str] = field(default_factory=list)
    """Words of the answer."""


@pytest.fixture
def answer(toy_workspace):
    """Runs a command with one config and returns its exit code and the config."""

    def run(*words, positional=None):
        configs = []
        code = run_command("echox-answer", AnswerConfig, configs.append, words, positional)
        return code, *configs

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["input=a (1), b.wav", "batch_size=2"],
        ["--input", "a (1), b.wav", "--batch-size", "2"],
        ["--input=a (1), b.wav", "batch_size=2"],
    ],
)
def test_overrides_and_options_are_equivalent(answer, words):
    code, config = answer(*words)
    assert (code, config.input, config.batch_size, config.output) == (
        0,
        "a (1), b.wav",
        2,
        Path("answer.wav"),
    )


def test_a_part_is_chosen_by_name_or_preset(answer):
    assert answer("input=a", "encoder=wide_ear", "encoder.mood=lively")[1].encoder.width == 9


def test_words_without_a_key_belong_to_one_field(answer):
    assert answer("a.wav", positional="input")[1].input == "a.wav"
    assert answer("one", "two", "input=a", positional="words")[1].words == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "input has no value; set input=..."),
        (["input=a", "outptu=b"], "no field 'outptu' in AnswerConfig; did you mean 'output'?"),
        (["input=a", "--outptu", "b"], "no field 'outptu' in AnswerConfig; did you mean 'output'?"),
        (["input=a", "batch_size=four"], "batch_size takes an integer, not 'four'"),
        (["input=a", "encoder=wisper"], "no encoder named 'wisper'; did you mean 'whisper'?"),
        (["a.wav"], "'a.wav' is not key=value"),
    ],
)
def test_a_wrong_word_is_one_line(answer, capsys, words, sentence):
    assert answer(*words) == (2,)
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("plugins run: ")
    ]
    assert len(lines) == 1 and lines[0].startswith("echox-answer: ") and sentence in lines[0]


def test_one_positional_takes_one_word(answer, capsys):
    assert answer("a", "b", positional="input") == (2,)
    assert "one input is taken, not 2: a b" in capsys.readouterr().err


def test_help_is_the_docs_of_the_config(answer, capsys):
    assert answer("--help") == (0,)
    text = capsys.readouterr().out
    assert text.startswith("Answer a question.")
    assert "input=<required>" in text and "Rows at once." in text


def test_help_of_a_field_and_of_a_command_with_its_words(answer, capsys):
    assert answer("--help", "batch_size") == (0,)
    assert capsys.readouterr().out == "batch_size=4   (an integer)\n  Rows at once.\n"
    assert answer("question.wav", "--help", positional="input") == (0,)
    assert capsys.readouterr().out.startswith("Answer a question.\n\nusage: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, ""),
        ("One line.", "One line."),
        ("A sentence that goes\n    on. Another one.\n\n    More.", "A sentence that goes on."),
        ("Of version 1.5 and e.g. mimi.\n\nArgs:", "Of version 1.5 and e.g. mimi."),
    ],
)
def test_a_summary_is_the_first_sentence(text, sentence):
    assert summary(text) == sentence


def test_the_function_may_choose_the_exit_code(toy_workspace):
    assert run_command("echox-answer", AnswerConfig, lambda config: 1, ["input=a"]) == 1


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SignalError("too quiet"), 2, "command: too quiet\n"),
        (KeyboardInterrupt(), 130, "command: interrupted\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"),
            2,
            "command: No space left on device: runs/x; free some space or choose another folder\n",
        ),
        (
            RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB."),
            2,
            "command: memory ran out (CUDA out of memory. Tried to allocate 2 GiB.); "
            "use smaller batches, or end other programs\n",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs"),
            2,
            "command: Permission denied: runs; choose a folder or file that you may use\n",
        ),
    ],
)
def test_errors_and_their_exit_codes(capsys, error, code, line):
    assert guarded("command", lambda: fail(error)) == code
    assert capsys.readouterr().err == line


def test_what_an_encoding_cannot_write_is_escaped_or_named(capsys, monkeypatch):
    name = os.fsdecode(b"m\xff.jsonl")
    assert guarded("command", name.encode) == 2
    assert "bytes that are not UTF-8, 'm\\udcff.jsonl'; rename" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert guarded("command", lambda: print(name, "é", flush=True)) == 0
    assert sys.stdout.buffer.getvalue() == b"m\\udcff.jsonl \\xe9\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded("command", lambda: 1 / 0)


def test_a_module_runs_as_its_command(toy_workspace):
    result = subprocess.run(
        [sys.executable, "-m", "echox_cli.train", "--config-name", "tyo"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("echox-train: no recipe named 'tyo'; did you mean 'toy'?")
    assert result.stderr.count("\n") == 1
