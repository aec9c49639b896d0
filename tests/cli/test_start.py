"""What the scripts answer, and what they import for it."""

import subprocess
import sys

import pytest

from echox.plugins import REGISTRIES
from echox.registry import KINDS

HEAVY = ("torch", "torchaudio", "transformers", "peft", "hydra", "omegaconf", "numpy")

@pytest.fixture
def run(tmp_path):
    """Runs a script and gives its exit code, what it printed, and which heavy libraries it imported."""

    def script(name, *argv):
        body = f"""
            import sys
            from echox_cli.start import {name}
            code = {name}()
            print("imported:", *sorted({{*{HEAVY!r}}} & {{*sys.modules}}), file=sys.stderr)
            sys.exit(code)
        """
        command = [sys.executable, "-c", "\n".join(line.strip() for line in body.splitlines()), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        told, _, imported = done.stderr.rpartition("imported:")
        return done.returncode, done.stdout + told, imported.split()

    return script


@pytest.mark.parametrize(
    ("name", "argv", "told"),
    [
        ("info", ["--help"], "usage: echox-info [KIND [NAME]]"),
        ("info", ["-h"], "usage: echox-info [KIND [NAME]]"),
        ("train", ["--version"], "echox-train 0."),
        ("generate", ["--completion", "bash"], "complete -o default -o nospace -F _echox_generate echox-generate"),
        ("bench", ["--completion", "zsh"], "bashcompinit"),
    ],
)
def test_what_is_the_same_everywhere_imports_nothing_heavy(run, name, argv, told):
    code, text, imported = run(name, *argv)
    assert code == 0 and told in text and imported == []


def test_a_shell_without_completion_is_one_line(run):
    assert run("train", "--completion", "fish") == (2, "echox-train: no completion for 'fish'; use --completion bash or zsh\n", [])


def test_every_kind_has_a_registry():
    assert tuple(REGISTRIES) == KINDS
