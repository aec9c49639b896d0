"""The commands on the pages work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_run import RATE_HZ, noise, write_run

from echox.data.audio import save_audio
from echox.data.manifest import read_manifest
from echox.pipeline.plugins import discover
from echox.pipeline.recipe_files import list_recipes
from echox_cli import evaluate, info, prepare, train

ROOT = Path(__file__).parent.parent


def commands(page):
    """The lines of a page's bash blocks that call a command."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [
        shlex.split(line)
        for block in blocks
        for line in block.splitlines()
        if line.startswith("echox-")
    ]


def test_the_plugin_page_can_be_followed(workspace):
    for command, *words in commands("plugins/README.md"):
        if command == "echox-prepare":
            assert prepare.main(words) == 0
        elif command == "echox-info":
            assert info.main(words) == 0
        elif list_recipes():
            assert train.main([*words, "--cfg"]) == 0
    assert discover().files == (Path("plugins/sharp_ear_encoder.py"),)


def test_the_plugin_page_names_the_test_that_is_written(workspace):
    assert "python -m pytest plugins/test_sharp_ear_encoder.py" in (
        ROOT / "plugins/README.md"
    ).read_text(encoding="utf-8")


def test_the_example_plugin_fits_on_a_page():
    lines = (ROOT / "plugins/mel_encoder.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) <= 40


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_test_command_is_the_same_everywhere(page):
    assert (
        '.venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/python -m pytest -q'
        in (ROOT / page).read_text(encoding="utf-8")
    )


def blocks(page, language):
    """The code blocks of a page that are marked by a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def recipe_on_the_page(name):
    """The text of the recipe of that name in recipes/README.md."""
    (recipe,) = (
        block
        for block in blocks("recipes/README.md", "yaml")
        if block.startswith(f"# echox-train recipe={name}\n")
    )
    return recipe


def test_the_page_s_recipe_composes(workspace, write):
    write("recipes/my_run.yaml", recipe_on_the_page("my_run"))
    assert train.main(["recipe=my_run", "--cfg"]) == 0


def test_the_switches_to_the_paper_compose(workspace):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Differences from the paper\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    switches = [re.findall(r"`([^`]+)`", cells[4])[0] for cells in rows]
    assert len(switches) == len(rows) >= 10
    overrides = [word for switch in switches for word in switch.split()]
    assert train.main(["recipe=echo_small", *overrides, "--cfg"]) == 0


def write_own_data(folder):
    """Questions of six speakers and the answers to them, as recipes/README.md lays them out."""
    tones = np.sin(np.arange(16_000) / 9) * np.linspace(0.01, 0.5, 16_000)
    (folder / "answers").mkdir(parents=True)
    for number in range(12):
        questions = folder / "questions" / f"speaker{number % 6}"
        questions.mkdir(parents=True, exist_ok=True)
        for clip, text in (
            (questions / f"{number:04d}.wav", f"what is number {number}"),
            (folder / "answers" / f"{number:04d}.wav", f"that number is {number}"),
        ):
            soundfile.write(clip, tones, 16_000)
            clip.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    (questions / "0011.key").write_text("eleven\n", encoding="utf-8")


def test_own_data_can_be_prepared_as_the_page_says(workspace, write):
    write_own_data(workspace / "mydata")
    write("recipes/mine.yaml", recipe_on_the_page("mine"))
    (script,) = blocks("recipes/README.md", "python")
    exec(compile(script, "recipes/README.md", "exec"), {})
    composed = []
    for command, *words in commands("recipes/README.md"):
        if command == "echox-prepare" and any("mydata" in word for word in words):
            assert prepare.main(words) == 0, words
        elif command == "echox-train" and words[0] == "recipe=mine":
            assert train.main([*words, "--cfg"]) == 0, words
            composed.append(words)
        elif command == "echox-evaluate":
            assert evaluate.main([*words, "--cfg"]) == 0, words
    assert len(composed) == 3
    parts = [
        row
        for part in ("train", "valid", "test")
        for row in read_manifest(f"mydata/questions.{part}.jsonl").rows
    ]
    assert {row.id: row.extra["answer"] for row in parts}["speaker5-0011"] == "eleven"
    assert len(parts) == 12 and all(row.answer.transcription for row in parts)
    assert read_manifest("mydata/speech.train.jsonl").rows[0].answer.audio.is_file()


PACKAGES = sorted(path.parent.name for path in ROOT.glob("echox/*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_page(package):
    lines = (ROOT / f"echox/{package}/README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {package}: ")
    assert any(line.startswith("To add") for line in lines), "where is a part added?"


def test_the_map_names_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in PACKAGES if f"(echox/{name}/README.md)" not in text] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_modules_that_a_page_names_exist(package):
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("echox", "echox_cli", "plugins", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    text = (ROOT / f"echox/{package}/README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert [
        name for name in named if not any(f"/{module}".endswith(f"/{name}") for module in modules)
    ] == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A working folder with a finished run, a question, and the page's names for both."""
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "runs/echo_mini")
    save_audio(folder / "question.wav", noise(1, 0.8), RATE_HZ)
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_the_code_of_a_package_s_page_runs(package, run_folder, workspace, monkeypatch):
    monkeypatch.chdir(run_folder)
    page = f"echox/{package}/README.md"
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    assert names


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    # `build` is left by an installation, a copy of the packages without what they link to.
    if not any(
        part.startswith(".") or part in ("build", "runs") for part in path.relative_to(ROOT).parts
    )
)


def anchors(page):
    """The anchors of a page's headings, as they are on the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target, anchor in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor[1:] in anchors(path), f"{page} links to {target}{anchor}"
