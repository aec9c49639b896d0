"""Two processes under torchrun: every stage, a vocoder against its discriminators among them, Echo with labels made online and cached,
and resumptions that end with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from echo_home import WITHOUT_CORPUS
from train_twice import AGAIN, NEXT, THEN

from echox import checkpoint
from echox.recipe import ALL_STAGES
from echox_cli import prepare

TIMEOUT_S = 900  # it takes twenty seconds where the processors are free
SCRIPT = str(Path(__file__).with_name("train_twice.py"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """What the door is told: two steps of each stage on clips of noise, a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("torchrun")
    questions = tiny_run.write_questions(folder, "questions", 6)
    speech = tiny_run.write_speech(folder, "speech", ["Yes.", "No.", "It is.", "So it goes."])
    assert prepare.main(["units", str(speech), "codec=kmeans", "codec.folder=random", f"cache_dir={folder / 'cache'}"]) == 0
    units = speech.with_name("speech.units.jsonl")
    data = {**{f"{stage}.task.data": questions for stage in ("align", "s2t", "echo")}, "t2c.task": units, "vocoder.task.data": speech}
    lists = [f"{key}.{split}=[{path}]" for key, path in data.items() for split in ("train", "valid")]
    brief = [f"{stage}.train.{setting}" for stage in ALL_STAGES for setting in ("steps=2", "batch_size=2", "save_every=1", "validate_every=2")]
    return folder / "run", [
        "recipe=echo_tiny",
        "device=cpu",
        *WITHOUT_CORPUS,
        "codec.folder=random",
        "units=[]",
        f"stages=[{','.join(ALL_STAGES)}]",
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
        *lists,
        *brief,
        "t2c.task.decoder.max_words_per_token=2",  # what has learned nothing never stops by itself
    ]


@pytest.fixture(scope="module")
def trained(words):
    """Two runs, and what the first training of each and the second, of Echo's last step, say; both by the same two processes.

    The first run has every stage, with labels made online; the second goes on from its stages with cached labels.
    """
    run, told = words
    cached = run.with_name("cached")
    cached.mkdir()
    for stage in ("s2t", "t2c"):
        (cached / stage).symlink_to(run / stage)
    own = [*told, f"run_dir={cached}", "stage=echo", f"cache_dir={cached / 'cache'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    runs = [str(run), *told, "echo.task.online={}", THEN, str(cached), *own]
    done = subprocess.run([*launcher, *runs], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert done.returncode == 0, done.stderr
    return [(folder, *said.split(AGAIN)) for folder, said in zip((run, cached), done.stderr.split(NEXT), strict=True)]


@pytest.mark.parametrize("which", [0, 1], ids=["online labels", "cached labels"])
def test_two_processes_resume_to_the_same_bits(trained, which):
    run, first, again = trained[which]
    assert "resuming" not in first and "echo: resuming after step 1" in again
    assert again.count("finished after 2 steps") == 1, again
    assert checkpoint.fingerprint(run / "echo" / "final") == checkpoint.fingerprint(run / "echo" / "before")


def test_two_processes_train_every_stage(trained):
    run, first, _ = trained[0]
    assert first.count("finished after 2 steps") == len(ALL_STAGES), first
    assert checkpoint.load(checkpoint.step_folder(run / "echo" / "checkpoints", 1)).state["random"][1], (
        "the second rank's random state is kept"
    )


def test_cached_labels_are_made_once_and_read_by_both(trained):
    folder, first, _ = trained[1]
    assert first.count("label audit") + first.count("a batch of 2 rows as the loss sees it") == 1, "the main rank alone audits"
    kept = [path for path in (folder / "cache" / "pseudo_labels").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert kept, "labels are kept"
    assert max(path.stat().st_mtime_ns for path in kept) < (folder / "again").stat().st_mtime_ns, "nothing was labelled again"
