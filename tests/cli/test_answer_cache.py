"""When a cached answer is valid. Each question is asked by its own process, as by a command."""

import os
import subprocess
import sys
import time

import pytest

ASK = """
import os, sys
from echox_cli import answer_cache
cache = answer_cache.AnswerCache()
answer = cache.get(["question", *sys.argv[2:]])
if answer is not None:
    print("cached", answer)
else:
    exec(sys.argv[1])
    cache.put(["question", *sys.argv[2:]], answer)
    print("computed", answer)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks for an answer that some code computes, in a new process."""
    monkeypatch.setenv("ECHOX_CACHE", str(tmp_path / "cache"))
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    script = tmp_path / "bin" / "script.py"
    script.write_text(ASK)
    monkeypatch.chdir(tmp_path / "work")

    def run(body, *words, options=()):
        result = subprocess.run(
            [sys.executable, *options, script, body, *words],
            capture_output=True,
            text=True,
            timeout=600,
        )
        return result.stdout.strip() or result.stderr

    return run


@pytest.fixture
def answers(tmp_path):
    """Returns the files of the cached answers."""
    return lambda: list((tmp_path / "cache" / "answers").iterdir())


READ = "answer = open('text').read()"


def write(path, text):
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def test_a_file_that_was_read_counts(ask):
    write("text", "one")
    assert [ask(READ), ask(READ)] == ["computed one", "cached one"]
    write("text", "two")  # as long as before
    assert [ask(READ), ask(READ)] == ["computed two", "cached two"]
    write("other", "no matter")
    assert ask(READ) == "cached two"
    os.unlink("text")
    assert "FileNotFoundError" in ask(READ)


def test_a_change_that_keeps_time_and_size_counts(ask):
    write("text", "one")
    ask(READ)
    before = os.stat("text")
    time.sleep(0.02)  # more than the clock's step in a file system
    write("text", "two")
    os.utime("text", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(READ) == "computed two"


def test_a_change_while_the_answer_is_computed_counts(ask):
    write("text", "one")
    assert ask(f"{READ}; open('text', 'w').write('new')") == "computed one"
    assert ask(READ) == "computed new"


LIST = "answer = sorted(name for name in os.listdir('folder') if name != '__pycache__')"


def test_a_folder_that_was_listed_counts_by_its_names(ask):
    write("folder/a.py", "")
    assert [ask(LIST), ask(LIST)] == ["computed ['a.py']", "cached ['a.py']"]
    write("folder/__pycache__/a.cpython-311.pyc", "")
    write("folder/a.py", "x = 1")
    assert ask(LIST).startswith("cached")
    write("folder/b.py", "")
    assert ask(LIST) == "computed ['a.py', 'b.py']"
    write("folder/c/data", "")
    assert ask(LIST).startswith("computed")
    write("folder/c/__init__.py", "")  # now it is a package
    assert ask(LIST).startswith("computed")


@pytest.mark.parametrize("folder", ["plugins", "recipes"])
def test_folders_of_the_working_folder_count_when_they_appear(ask, folder):
    assert [ask("answer = 1"), ask("answer = 1")] == ["computed 1", "cached 1"]
    write("runs/x", "")
    assert ask("answer = 1") == "cached 1"
    os.mkdir(folder)
    assert ask("answer = 1") == "computed 1"


def test_a_module_counts_by_its_source(ask, tmp_path):
    body = "import helper; answer = helper.x"
    write(tmp_path / "bin" / "helper.py", "x = 1")
    assert [ask(body), ask(body)] == ["computed 1", "cached 1"]
    write(tmp_path / "bin" / "helper.py", "x = 22")
    assert [ask(body), ask(body)] == ["computed 22", "cached 22"]


def test_the_question_folder_interpreter_and_environment_count(ask, monkeypatch, tmp_path):
    make = "answer = 1"
    ask(make)
    assert ask(make, "other words") == "computed 1"
    assert ask(make, options=["-OO"]) == "computed 1"  # without docstrings
    with monkeypatch.context() as context:
        context.setenv("SHLVL", "7")
        context.setenv("TERM_SESSION_ID", "another window")
        assert ask(make) == "cached 1"
        context.setenv("ECHOX_PLUGINS", "elsewhere")
        assert ask(make) == "computed 1"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ask(make) == "computed 1"


def test_an_installed_package_counts(ask, monkeypatch, tmp_path):
    site = tmp_path / "lib" / "site-packages"
    write(site / "thing-1.0.dist-info" / "METADATA", "Name: thing")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert [ask("answer = 1"), ask("answer = 1")] == ["computed 1", "cached 1"]
    (site / "thing-1.0.dist-info").rename(site / "thing-1.1.dist-info")
    assert ask("answer = 1") == "computed 1"


@pytest.mark.parametrize(
    ("files", "counts"), [("ear.py", True), ("ear/__init__.py", True), ("other.py", False)]
)
def test_files_of_installed_plugins_count_and_those_of_libraries_do_not(
    ask, monkeypatch, tmp_path, files, counts
):
    site = tmp_path / "lib" / "site-packages"
    write(site / "thing-1.0.dist-info" / "METADATA", "Name: thing")
    write(site / "thing-1.0.dist-info" / "entry_points.txt", "[echox.plugins]\near = ear\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    body = f"import {files.partition('/')[0].removesuffix('.py')} as part; answer = part.x"
    write(site / files, "x = 1")
    assert [ask(body), ask(body)] == ["computed 1", "cached 1"]
    write(site / files, "x = 22")
    assert ask(body) == ("computed 22" if counts else "cached 1")


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        '{"files": []}',
        '{"files": {}, "folders": {}}',
        '{"files": 1, "folders": {}, "answer": 2}',
    ],
)
def test_a_damaged_answer_is_computed_again(ask, answers, damaged):
    ask("answer = 1")
    (path,) = answers()
    path.write_text(damaged)
    assert [ask("answer = 1"), ask("answer = 1")] == ["computed 1", "cached 1"]


def test_a_cache_that_cannot_be_written_is_no_error(ask, tmp_path):
    (tmp_path / "cache").write_text("a file stands here")
    assert [ask("answer = 1"), ask("answer = 1")] == ["computed 1", "computed 1"]


def test_the_oldest_answers_are_deleted_first(ask, answers):
    few = "answer_cache.LIMIT = 3; answer = 1"
    for word in "abcde":
        ask(few, word)
    assert len(answers()) == 3
    assert [ask(few, word) for word in "eb"] == ["cached 1", "computed 1"]


def test_nothing_is_cached_while_a_plugin_fails(ask):
    failed = (
        "from echox.core.registry import FAILURES, Failure; "
        "FAILURES.append(Failure('x.py', 'broken')); answer = 1"
    )
    assert [ask(failed), ask("answer = 1")] == ["computed 1", "computed 1"]
