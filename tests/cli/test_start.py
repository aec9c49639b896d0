"""Answers of the scripts, and what they import for them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from echox.core.registry import KINDS
from echox.pipeline.plugins import REGISTRIES
from echox_cli import completion, start

SCRIPT = """
import sys
from echox_cli import start
start._has_gpu = lambda: False  # with one, the overview is not cached
code = getattr(start, sys.argv.pop(1))()
heavy = {
    "torch", "torchaudio", "transformers", "transformers.modeling_utils", "peft", "hydra",
    "omegaconf", "numpy",
}
print("imported:", *sorted(heavy & {*sys.modules}), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script in an empty working folder.

    Returns its exit code, what it printed, and which heavy libraries it imported.
    """
    monkeypatch.setenv("ECHOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ECHOX_PLUGINS", raising=False)
    monkeypatch.delenv("ECHOX_RECIPES", raising=False)
    script, work = tmp_path / "bin" / "script.py", tmp_path / "work"
    for folder in (script.parent, work):
        folder.mkdir()
    script.write_text(SCRIPT)

    def run_script(name, *argv):
        result = subprocess.run(
            [sys.executable, script, name, *argv],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=work,
        )
        errors, _, imported = result.stderr.rpartition("imported:")
        return result.returncode, result.stdout + errors, imported.split()

    run_script.work = work
    return run_script


@pytest.mark.parametrize(
    ("name", "argv", "part"),
    [
        ("info", ["--help"], "usage: echox-info [KIND [NAME]]"),
        ("info", ["-h"], "usage: echox-info [KIND [NAME]]"),
        ("train", ["--version"], "echox-train 0."),
        (
            "generate",
            ["--completion", "bash"],
            "complete -o default -o nospace -F _echox_generate echox-generate",
        ),
        ("bench", ["--completion", "zsh"], "bashcompinit"),
    ],
)
def test_fixed_answers_import_nothing_heavy(run, name, argv, part):
    code, text, imported = run(name, *argv)
    assert code == 0 and part in text and imported == []


def test_a_shell_without_completion_is_one_line(run):
    assert run("train", "--completion", "fish") == (
        2,
        "echox-train: no completion for 'fish'; use --completion bash or zsh\n",
        [],
    )


EAR = """
from dataclasses import dataclass
from echox.encoders.base import ENCODERS, EncoderConfig

@dataclass(kw_only=True, slots=True)
class Config(EncoderConfig):
    width: int = 4

@ENCODERS.register("{name}", Config)
class Ear:
    \"\"\"{doc}\"\"\"

print("{name} was loaded")
"""


def test_a_text_is_cached_until_a_file_changes(run):
    for folder in ("plugins", "recipes"):
        (run.work / folder).mkdir()
    ear, recipe = run.work / "plugins" / "ear.py", run.work / "recipes" / "mine.yaml"
    ear.write_text(EAR.format(name="ear", doc="Hears."))
    recipe.write_text("doc: My own.")
    code, first, imported = run("info")
    assert code == 0 and first.startswith("ear was loaded\n")
    assert "Hears." in first and "My own." in first
    # Listing a part does not import the code of its models, which takes longer than PyTorch.
    assert "torch" in imported and "transformers.modeling_utils" not in imported
    assert run("info") == (0, first, [])

    ear.write_text(EAR.format(name="ear", doc="Hears better."))
    _, second, _ = run("info")
    assert "Hears better." in second and run("info") == (0, second, [])
    (run.work / "plugins" / "nose.py").write_text(EAR.format(name="nose", doc="Smells."))
    recipe.write_text("doc: Everyone's.")
    third = run("info")[1]
    assert "Smells." in third and "Everyone's." in third


def test_a_line_is_completed_from_cached_offers(run):
    (run.work / "recipes").mkdir()
    (run.work / "recipes" / "mine.yaml").write_text("defaults: [encoder: mel, _self_]")
    code, text, imported = run("train", "--complete", "echox-train recipe=mine encoder.b")
    assert (code, text) == (0, "encoder.bins=\n") and "torch" in imported
    for line, completions in (
        ("recipe=mine encoder=m", "encoder=mel\n"),
        ("recipe=mine seed=3 run_dir=x encoder.bins=8 device=cpu see", "seed=\n"),
        ("recipe=mine plugin_d", "plugin_dirs=\n"),
    ):
        assert run("train", "--complete", f"echox-train {line}") == (0, completions, [])
    (run.work / "recipes" / "more.yaml").write_text("doc: More.")
    assert (
        run("train", "--complete", "echox-train recipe=mine recipe=m")[1]
        == "recipe=mine\nrecipe=more\n"
    )


@pytest.mark.parametrize(
    ("program", "argv", "is_cacheable"),
    [
        ("echox-train", ["recipe=toy", "--help"], True),
        ("echox-prepare", ["plugin", "-h"], True),
        ("echox-generate", ["input=a.wav", "--output", "--help"], False),  # here it is a value
        ("echox-generate", ["input=a.wav"], False),
        ("echox-train", ["--recipe"], False),
        ("echox-info", ["encoder"], True),
        ("echox-info", ["encoder=whisper"], True),
        ("echox-info", ["plugin_dirs=[a]", "encoder"], True),
        ("echox-info", ["device"], False),
        ("echox-info", [], False),
    ],
)
def test_only_texts_are_cached(monkeypatch, program, argv, is_cacheable):
    monkeypatch.setattr(start, "_has_gpu", lambda: True)
    assert start._is_cacheable(program, argv) is is_cacheable


def test_without_a_gpu_the_overview_is_cached(monkeypatch):
    monkeypatch.setattr(start, "_has_gpu", lambda: False)
    assert start._is_cacheable("echox-info", [])
    assert start._is_cacheable("echox-info", ["plugin_dirs=[a]"])
    assert not start._is_cacheable("echox-info", ["device"])  # depends on more than files


class Memory(dict):
    """An answer cache of one process."""

    put = dict.__setitem__


@pytest.fixture
def memory(monkeypatch):
    cache = Memory()
    monkeypatch.setattr(start, "AnswerCache", lambda: cache)
    return cache


def test_cached_output_is_printed_on_the_same_streams(monkeypatch, memory, capsys):
    def main(argv):
        print("one", *argv)
        print("warned", file=sys.stderr)
        sys.stdout.writelines(["two\n", "three\n"])
        return 0

    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(main=main))
    start._print_cached("echox-info", ["encoder"])
    first = capsys.readouterr()
    monkeypatch.setattr(start, "_module", None)
    start._print_cached("echox-info", ["encoder"])
    assert capsys.readouterr() == first == ("one encoder\ntwo\nthree\n", "warned\n")


def test_errors_are_not_cached(monkeypatch, memory):
    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(main=lambda argv: 2))
    assert start._print_cached("echox-info", ["encoder"]) == 2 and not memory


@pytest.mark.parametrize("faulty", [False, True])
def test_offers_are_cached_unless_a_word_is_faulty(monkeypatch, memory, capsys, faulty):
    def offers(words):
        print("a plugin's own words")
        return completion.Offers(["encoder="], faulty=faulty)

    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(offers=offers))
    assert start._completions("echox-train", "echox-train enc") == ["encoder="]
    assert capsys.readouterr() == ("", "a plugin's own words\n") and bool(memory) is not faulty


@pytest.mark.parametrize(
    ("before", "decisive"),
    [
        (["recipe=mine", "seed=3", "--seed", "seed=4"], ["recipe=mine", "--seed", "seed=4"]),
        (["seed=3", "encoder=mel", "bins=4"], ["encoder=mel", "bins=4"]),
    ],
)
def test_words_that_set_plain_fields_are_left_out_of_the_question(before, decisive):
    questions = []
    completion.complete(
        f"echox-train {' '.join(before)} x",
        lambda words: questions.append(words) or completion.Offers([], ["seed"]),
    )
    assert questions[-1] == tuple(decisive)


def test_every_kind_has_a_registry():
    assert tuple(REGISTRIES) == KINDS
