"""Two processes under torchrun train every stage, and resume to the same bits.

The stages include a vocoder with its discriminators, and Echo with labels made online and
with cached labels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from echo_home import WITHOUT_CORPUS
from train_twice import AGAIN, NEXT, THEN

from echox.core import checkpoint
from echox_cli import prepare

STAGES = ("vocoder", "align", "s2t", "t2c", "echo")
TIMEOUT_S = 900  # it takes twenty seconds where the processors are free
SCRIPT = str(Path(__file__).with_name("train_twice.py"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The run folder and overrides: two steps of each stage on noise, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("torchrun")
    questions = tiny_run.write_questions(folder, "questions", 6)
    speech = tiny_run.write_speech(folder, "speech", ["Yes.", "No.", "It is.", "So it goes."])
    codec = ["codec=kmeans", "codec.folder=random", f"cache_dir={folder / 'cache'}"]
    assert prepare.main(["units", str(speech), *codec]) == 0
    units = speech.with_name("speech.units.jsonl")
    data = {
        **{f"{stage}.task.data": questions for stage in ("align", "s2t", "echo")},
        "t2c.task": units,
        "vocoder.task.data": speech,
    }
    lists = [
        f"{key}.{split}=[{path}]" for key, path in data.items() for split in ("train", "valid")
    ]
    settings = [
        f"{stage}.train.{setting}"
        for stage in STAGES
        for setting in ("steps=2", "batch_size=2", "save_every=1", "validate_every=2")
    ]
    return folder / "run", [
        "recipe=echo_tiny",
        "device=cpu",
        *WITHOUT_CORPUS,
        "codec.folder=random",
        "units=[]",
        f"only=[{','.join(STAGES)}]",
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
        *lists,
        *settings,
        "t2c.task.decoder.max_words_per_token=2",  # an untrained decoder never stops by itself
    ]


@pytest.fixture(scope="module")
def trained(words):
    """Two runs by the same two processes: folder, stderr of the first and the second training.

    The first run has every stage, with labels made online; the second continues from its stages
    with cached labels. The second training of each repeats Echo's last step.
    """
    run, overrides = words
    cached = run.with_name("cached")
    cached.mkdir()
    for stage in ("s2t", "t2c"):
        (cached / stage).symlink_to(run / stage)
    cached_words = [
        *overrides,
        f"run_dir={cached}",
        "stage=echo",
        f"cache_dir={cached / 'cache'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        SCRIPT,
    ]
    online_words = [*overrides, "echo.task.online={}"]
    runs = [str(run), *online_words, THEN, str(cached), *cached_words]
    result = subprocess.run(
        [*launcher, *runs], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
    )
    assert result.returncode == 0, result.stderr
    return [
        (folder, *output.split(AGAIN))
        for folder, output in zip((run, cached), result.stderr.split(NEXT), strict=True)
    ]


@pytest.mark.parametrize("which", [0, 1], ids=["online labels", "cached labels"])
def test_two_processes_resume_to_the_same_bits(trained, which):
    run, first, again = trained[which]
    assert "resuming" not in first and "echo: resuming after step 1" in again
    assert again.count("finished after 2 steps") == 1, again
    assert checkpoint.fingerprint(run / "echo" / "final") == checkpoint.fingerprint(
        run / "echo" / "before"
    )


def test_two_processes_train_every_stage(trained):
    run, first, _ = trained[0]
    assert first.count("finished after 2 steps") == len(STAGES), first
    assert checkpoint.load(checkpoint.step_folder(run / "echo" / "checkpoints", 1)).state["random"][
        1
    ], "the second rank's random state is kept"


def test_cached_labels_are_made_once_and_read_by_both(trained):
    folder, first, _ = trained[1]
    assert first.count("label audit") + first.count("a batch of 2 rows as the loss sees it") == 1, (
        "the main rank alone audits"
    )
    labels = [
        path
        for path in (folder / "cache" / "pseudo_labels").rglob("*")
        if path.is_file() and path.suffix != ".json"
    ]
    assert labels, "labels are kept"
    assert (
        max(path.stat().st_mtime_ns for path in labels) < (folder / "again").stat().st_mtime_ns
    ), "nothing was labelled again"
