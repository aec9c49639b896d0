"""Two processes under torchrun: every stage, a vocoder against its discriminators among them, Echo with labels made online and cached,
and resumptions that end with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from echo_home import WITHOUT_CORPUS
from train_twice import AGAIN

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
        "echo.task.online={}",
        "t2c.task.decoder.max_words_per_token=2",  # what has learned nothing never stops by itself
    ]


def train_twice(run, words):
    """What the first training and the second, of Echo's last step, say; their checkpoints of Echo are to have the same bits."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, str(run), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert done.returncode == 0, done.stderr
    first, again = done.stderr.split(AGAIN)
    assert "resuming" not in first and "echo: resuming after step 1" in again, done.stderr
    assert again.count("finished after 2 steps") == 1, again
    assert checkpoint.fingerprint(run / "echo" / "final") == checkpoint.fingerprint(run / "echo" / "before")
    return first, again


def test_two_processes_train_every_stage_and_resume_to_the_same_bits(words):
    run, told = words
    first, _ = train_twice(run, told)
    assert first.count("finished after 2 steps") == len(ALL_STAGES), first
    assert checkpoint.load(checkpoint.step_folder(run / "echo" / "checkpoints", 1)).state["random"][1], (
        "the second rank's random state is kept"
    )


def test_cached_labels_are_made_once_and_read_by_both(words):
    run, told = words
    assert (run / "t2c" / "final").exists(), "the stages before are those of the test above"
    folder = run.with_name("cached")
    folder.mkdir()
    for stage in ("s2t", "t2c"):
        (folder / stage).symlink_to(run / stage)
    own = [word for word in told if word != "echo.task.online={}"] + [f"run_dir={folder}", "stage=echo", f"cache_dir={folder / 'cache'}"]
    first, _ = train_twice(folder, own)
    assert first.count("label audit") + first.count("a batch of 2 rows as the loss sees it") == 1, "the main rank alone audits"
    kept = [path for path in (folder / "cache" / "pseudo_labels").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert kept, "labels are kept"
    assert max(path.stat().st_mtime_ns for path in kept) < (folder / "again").stat().st_mtime_ns, "nothing was labelled again"
