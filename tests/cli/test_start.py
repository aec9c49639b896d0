"""What the scripts answer, and what they import for it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from echox.plugins import REGISTRIES
from echox.registry import KINDS
from echox_cli import completion, start

SCRIPT = """
import sys
from echox_cli import start
start._has_gpu = lambda: False  # where there is one, the overview is not kept
code = getattr(start, sys.argv.pop(1))()
heavy = {"torch", "torchaudio", "transformers", "transformers.modeling_utils", "peft", "hydra", "omegaconf", "numpy"}
print("imported:", *sorted(heavy & {*sys.modules}), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script in an empty working folder and gives its exit code, what it printed, and which heavy libraries it imported."""
    monkeypatch.setenv("ECHOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ECHOX_PLUGINS", raising=False)
    monkeypatch.delenv("ECHOX_RECIPES", raising=False)
    script, work = tmp_path / "bin" / "script.py", tmp_path / "work"
    for folder in (script.parent, work):
        folder.mkdir()
    script.write_text(SCRIPT)

    def run_script(name, *argv):
        done = subprocess.run([sys.executable, script, name, *argv], capture_output=True, text=True, timeout=300, cwd=work)
        told, _, imported = done.stderr.rpartition("imported:")
        return done.returncode, done.stdout + told, imported.split()

    run_script.work = work
    return run_script


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


def test_a_text_is_kept_until_a_file_changes(run):
    for folder in ("plugins", "recipes"):
        (run.work / folder).mkdir()
    ear, recipe = run.work / "plugins" / "ear.py", run.work / "recipes" / "mine.yaml"
    ear.write_text(EAR.format(name="ear", doc="Hears."))
    recipe.write_text("doc: My own.")
    code, first, imported = run("info")
    assert code == 0 and "Hears." in first and "My own." in first and first.startswith("ear was loaded\n")
    # To know a part is not to load the code of its models, which takes longer than PyTorch.
    assert "torch" in imported and "transformers.modeling_utils" not in imported
    assert run("info") == (0, first, [])

    ear.write_text(EAR.format(name="ear", doc="Hears better."))
    _, second, _ = run("info")
    assert "Hears better." in second and run("info") == (0, second, [])
    (run.work / "plugins" / "nose.py").write_text(EAR.format(name="nose", doc="Smells."))
    recipe.write_text("doc: Everyone's.")
    third = run("info")[1]
    assert "Smells." in third and "Everyone's." in third


def test_a_line_is_completed_from_what_was_offered_before(run):
    (run.work / "recipes").mkdir()
    (run.work / "recipes" / "mine.yaml").write_text("defaults: [encoder: mel, _self_]")
    code, text, imported = run("train", "--complete", "echox-train recipe=mine encoder.b")
    assert (code, text) == (0, "encoder.bins=\n") and "torch" in imported
    for line, offered in (
        ("recipe=mine encoder=m", "encoder=mel\n"),
        ("recipe=mine seed=3 run_dir=x encoder.bins=8 device=cpu see", "seed=\n"),
        ("recipe=mine plugin_d", "plugin_dirs=\n"),
    ):
        assert run("train", "--complete", f"echox-train {line}") == (0, offered, [])
    (run.work / "recipes" / "more.yaml").write_text("doc: More.")
    assert run("train", "--complete", "echox-train recipe=mine recipe=m")[1] == "recipe=mine\nrecipe=more\n"


@pytest.mark.parametrize(
    ("program", "argv", "only_tells"),
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
def test_only_texts_are_kept(monkeypatch, program, argv, only_tells):
    monkeypatch.setattr(start, "_has_gpu", lambda: True)
    assert start._only_tells(program, argv) is only_tells


def test_where_no_gpu_can_be_lost_the_overview_is_kept(monkeypatch):
    monkeypatch.setattr(start, "_has_gpu", lambda: False)
    assert start._only_tells("echox-info", []) and start._only_tells("echox-info", ["plugin_dirs=[a]"])
    assert not start._only_tells("echox-info", ["device"])  # what is not in files is told anew


class Memory(dict):
    """An answer cache of one process."""

    put = dict.__setitem__


@pytest.fixture
def memory(monkeypatch):
    cache = Memory()
    monkeypatch.setattr(start, "AnswerCache", lambda: cache)
    return cache


def test_what_was_printed_is_printed_again_on_the_same_streams(monkeypatch, memory, capsys):
    def main(argv):
        print("one", *argv)
        print("warned", file=sys.stderr)
        sys.stdout.writelines(["two\n", "three\n"])
        return 0

    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(main=main))
    start._told("echox-info", ["encoder"])
    first = capsys.readouterr()
    monkeypatch.setattr(start, "_module", None)
    start._told("echox-info", ["encoder"])
    assert capsys.readouterr() == first == ("one encoder\ntwo\nthree\n", "warned\n")


def test_what_went_wrong_is_not_kept(monkeypatch, memory):
    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(main=lambda argv: 2))
    assert start._told("echox-info", ["encoder"]) == 2 and not memory


@pytest.mark.parametrize("faulty", [False, True])
def test_offers_are_kept_where_every_word_could_be_read(monkeypatch, memory, capsys, faulty):
    def offers(words):
        print("a plugin's own words")
        return completion.Offers(["encoder="], faulty=faulty)

    monkeypatch.setattr(start, "_module", lambda program: SimpleNamespace(offers=offers))
    assert start._completions("echox-train", "echox-train enc") == ["encoder="]
    assert capsys.readouterr() == ("", "a plugin's own words\n") and bool(memory) is not faulty


@pytest.mark.parametrize(
    ("before", "telling"),
    [
        (["recipe=mine", "seed=3", "--seed", "seed=4"], ["recipe=mine", "--seed", "seed=4"]),
        (["seed=3", "encoder=mel", "bins=4"], ["encoder=mel", "bins=4"]),
    ],
)
def test_words_that_set_plain_fields_are_not_asked_about(before, telling):
    asked = []
    completion.complete(f"echox-train {' '.join(before)} x", lambda words: asked.append(words) or completion.Offers([], ["seed"]))
    assert asked[-1] == tuple(telling)


def test_every_kind_has_a_registry():
    assert tuple(REGISTRIES) == KINDS
