"""The quickest hostile cases; `run_hostile.py` runs thousands, and those that take longer."""

import shutil
from pathlib import Path

import pytest
from hostile_home import write_questions
from run_hostile import WELL, Case, run_case

from echox.pipeline.plugins import discover
from echox_cli import prepare, train

# Of kinds that need no finished run, as many as the suite has time for.
CASES = {"archive": 8, "recipe": 8, "manifest": 4, "number": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    discover()
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "home").mkdir()
    write_questions(folder / "home")
    # Units that a manifest may hold, and no run: what needs one is refused in a sentence.
    (folder / "home" / "questions.units.jsonl").write_bytes(
        (folder / "home" / "questions.jsonl").read_bytes()
    )
    # What commands import when they are first run is then imported once, and not in every case.
    warm = Path(shutil.copytree(folder / "home", folder / "warm"))
    for command in ("validate", "stats", "split", "index"):
        prepare.main([command, str(warm / "questions.jsonl")])
    prepare.main(["manifest", str(warm / "clips")])
    train.main(["recipe=echo_tiny", "dry_run=true", f"run_dir={folder / 'run'}"])
    return folder


@pytest.mark.parametrize("kind", CASES)
def test_no_case_ends_in_a_traceback_or_worse(home, kind):
    wrong = []
    for seed in range(CASES[kind]):
        _, outcome = run_case(Case(kind, 10_000 + seed, home / "home", home))
        if outcome.ending not in WELL:
            wrong.append(f"{kind}:{10_000 + seed} {outcome.ending.value}: {outcome.message[-600:]}")
    assert not wrong, "\n\n".join(wrong)
