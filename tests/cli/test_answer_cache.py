"""When a kept answer is given again. Each question is put by a process of its own, as the commands do."""

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
    print("kept", answer)
else:
    exec(sys.argv[1])
    cache.put(["question", *sys.argv[2:]], answer)
    print("made", answer)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks for an answer that some code computes."""
    monkeypatch.setenv("ECHOX_CACHE", str(tmp_path / "cache"))
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    script = tmp_path / "bin" / "script.py"
    script.write_text(ASK)
    monkeypatch.chdir(tmp_path / "work")

    def run(body, *words, options=()):
        done = subprocess.run([sys.executable, *options, script, body, *words], capture_output=True, text=True, timeout=600)
        return done.stdout.strip() or done.stderr

    return run


@pytest.fixture
def answers(tmp_path):
    """Gives the files of the answers that are kept."""
    return lambda: list((tmp_path / "cache" / "answers").iterdir())


READ = "answer = open('text').read()"


def write(path, text):
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def test_a_file_that_was_read_counts(ask):
    write("text", "one")
    assert [ask(READ), ask(READ)] == ["made one", "kept one"]
    write("text", "two")  # as long as before
    assert [ask(READ), ask(READ)] == ["made two", "kept two"]
    write("other", "no matter")
    assert ask(READ) == "kept two"
    os.unlink("text")
    assert "FileNotFoundError" in ask(READ)


def test_a_change_counts_that_keeps_time_and_size(ask):
    write("text", "one")
    ask(READ)
    before = os.stat("text")
    time.sleep(0.02)  # more than the clock's step in a file system
    write("text", "two")
    os.utime("text", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(READ) == "made two"


def test_a_change_while_the_answer_is_made_counts(ask):
    write("text", "one")
    assert ask(f"{READ}; open('text', 'w').write('new')") == "made one"
    assert ask(READ) == "made new"


LIST = "answer = sorted(name for name in os.listdir('folder') if name != '__pycache__')"


def test_a_folder_that_was_listed_counts_by_its_names(ask):
    write("folder/a.py", "")
    assert [ask(LIST), ask(LIST)] == ["made ['a.py']", "kept ['a.py']"]
    write("folder/__pycache__/a.cpython-311.pyc", "")
    write("folder/a.py", "x = 1")
    assert ask(LIST).startswith("kept")
    write("folder/b.py", "")
    assert ask(LIST) == "made ['a.py', 'b.py']"
    write("folder/c/data", "")
    assert ask(LIST).startswith("made")
    write("folder/c/__init__.py", "")  # now it is a package
    assert ask(LIST).startswith("made")


@pytest.mark.parametrize("folder", ["plugins", "recipes"])
def test_folders_of_the_working_folder_count_when_they_appear(ask, folder):
    assert [ask("answer = 1"), ask("answer = 1")] == ["made 1", "kept 1"]
    write("runs/x", "")
    assert ask("answer = 1") == "kept 1"
    os.mkdir(folder)
    assert ask("answer = 1") == "made 1"


def test_a_module_counts_by_its_source(ask, tmp_path):
    body = "import helper; answer = helper.x"
    write(tmp_path / "bin" / "helper.py", "x = 1")
    assert [ask(body), ask(body)] == ["made 1", "kept 1"]
    write(tmp_path / "bin" / "helper.py", "x = 22")
    assert [ask(body), ask(body)] == ["made 22", "kept 22"]


def test_where_and_how_it_is_asked_counts(ask, monkeypatch, tmp_path):
    make = "answer = 1"
    ask(make)
    assert ask(make, "other words") == "made 1"
    assert ask(make, options=["-OO"]) == "made 1"  # without docstrings
    with monkeypatch.context() as context:
        context.setenv("SHLVL", "7")
        context.setenv("TERM_SESSION_ID", "another window")
        assert ask(make) == "kept 1"
        context.setenv("ECHOX_PLUGINS", "elsewhere")
        assert ask(make) == "made 1"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ask(make) == "made 1"


def test_an_installed_package_counts(ask, monkeypatch, tmp_path):
    site = tmp_path / "lib" / "site-packages"
    write(site / "thing-1.0.dist-info" / "METADATA", "Name: thing")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert [ask("answer = 1"), ask("answer = 1")] == ["made 1", "kept 1"]
    (site / "thing-1.0.dist-info").rename(site / "thing-1.1.dist-info")
    assert ask("answer = 1") == "made 1"


@pytest.mark.parametrize(("files", "counts"), [("ear.py", True), ("ear/__init__.py", True), ("other.py", False)])
def test_among_libraries_the_files_of_plugins_count(ask, monkeypatch, tmp_path, files, counts):
    site = tmp_path / "lib" / "site-packages"
    write(site / "thing-1.0.dist-info" / "METADATA", "Name: thing")
    write(site / "thing-1.0.dist-info" / "entry_points.txt", "[echox.plugins]\near = ear\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    body = f"import {files.partition('/')[0].removesuffix('.py')} as part; answer = part.x"
    write(site / files, "x = 1")
    assert [ask(body), ask(body)] == ["made 1", "kept 1"]
    write(site / files, "x = 22")
    assert ask(body) == ("made 22" if counts else "kept 1")


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"files": []}', '{"files": {}, "folders": {}}', '{"files": 1, "folders": {}, "answer": 2}'])
def test_a_damaged_answer_is_made_again(ask, answers, damaged):
    ask("answer = 1")
    (path,) = answers()
    path.write_text(damaged)
    assert [ask("answer = 1"), ask("answer = 1")] == ["made 1", "kept 1"]


def test_a_cache_that_cannot_be_written_is_no_error(ask, tmp_path):
    (tmp_path / "cache").write_text("a file stands here")
    assert [ask("answer = 1"), ask("answer = 1")] == ["made 1", "made 1"]


def test_the_oldest_answers_go_first(ask, answers):
    few = "answer_cache.LIMIT = 3; answer = 1"
    for word in "abcde":
        ask(few, word)
    assert len(answers()) == 3
    assert [ask(few, word) for word in "eb"] == ["kept 1", "made 1"]


def test_nothing_is_kept_while_a_plugin_fails(ask):
    failed = "from echox.registry import FAILURES, Failure; FAILURES.append(Failure('x.py', 'broken')); answer = 1"
    assert [ask(failed), ask("answer = 1")] == ["made 1", "made 1"]
