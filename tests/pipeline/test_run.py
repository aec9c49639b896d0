"""Smoke test: a run of echo_tiny, which answers aloud the questions that it was trained on."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import echox
from echox.assets.sources import Source, allowed_sources
from echox.core import checkpoint, number_format
from echox.core.errors import CheckpointError, ManifestError
from echox.data.audio import load_audio
from echox.data.manifest import read_manifest
from echox.data.text import edit_distance
from echox.engine.own_process import in_own_process
from echox.pipeline import run as pipeline_run
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe, to_dict
from echox.pipeline.run import run_recipe
from echox.pipeline.steps import StepKind, steps_of
from echox.vocoders.mel import MelRecipe, MelSpectrogram
from echox_cli import generate, train

STAGES = ("align", "s2t", "t2c", "echo")
RATE_HZ = 16_000
RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of echo_tiny."""
    folder = tmp_path_factory.mktemp("tiny")
    overrides = [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}", "device=cpu"]
    assert train.main(["recipe=echo_tiny", *overrides]) == 0
    return folder, overrides


@pytest.fixture(scope="module")
def brief(tiny):
    """A run of a few steps a stage, on the corpus and with the codec of the other."""
    folder = tiny[0]
    few = [
        f"{stage}.train.{setting}"
        for stage in STAGES
        for setting in ("steps=12", "batch_size=4", "save_every=6", "validate_batches=1")
    ]
    overrides = [
        *tiny[1],
        f"run_dir={folder / 'brief'}",
        f"codec.folder={folder / 'run' / 'codec'}",
        "example=null",
        *few,
    ]
    run_recipe(load_recipe("echo_tiny", overrides))
    return folder, overrides


@pytest.fixture(scope="module")
def answers(tiny):
    """What the run answers to the questions that it was trained on: (row, record of its answer)."""
    folder, manifest = tiny[0], tiny[0] / "cache" / "corpora" / "tiny" / "questions.train.jsonl"
    words = [
        f"checkpoint={folder / 'run' / 'echo' / 'final'}",
        f"manifest={manifest}",
        f"out_dir={folder / 'answers'}",
        "device=cpu",
    ]
    assert generate.main(words) == 0
    records = {
        record["id"]: record
        for record in map(
            json.loads, (folder / "answers" / "answers.jsonl").read_text().splitlines()
        )
    }
    return [(row, records[row.id]) for row in read_manifest(manifest).rows]


def test_it_transcribes_each_question_and_answers_with_the_trained_text(answers):
    assert len(answers) > 8
    for row, record in answers:
        assert record["heard"] == row.answer.transcription
        assert record["text"] == row.answer.text


def test_its_units_are_those_of_the_answer(tiny, answers):
    written = read_manifest(
        tiny[0] / "cache" / "corpora" / "tiny" / "speech.train.units.jsonl"
    ).rows
    units_of = {row.answer.text: row.answer.units for row in written}
    for row, record in answers:
        wanted = units_of[row.answer.text]
        assert edit_distance(list(map(int, record["units"].split())), wanted) < 0.1 * len(wanted), (
            row.id
        )


def test_its_speech_is_like_the_recording_of_its_answer(tiny, answers):
    recordings = {row.answer.text: load_audio(row.answer.audio, RATE_HZ) for row, _ in answers}
    for row, record in answers:
        spoken, recorded = (
            load_audio(tiny[0] / "answers" / record["audio"], RATE_HZ),
            recordings[row.answer.text],
        )
        assert 0.7 < len(spoken) / len(recorded) < 1.4
        assert 0.5 < float(spoken.square().sum() / recorded.square().sum()) ** 0.5 < 2
        others = [
            correlation(spoken, other)
            for text, other in recordings.items()
            if text != row.answer.text
        ]
        assert correlation(spoken, recorded) > max(0.85, *others), row.id


def correlation(one, other):
    """Correlation of two clips' log mels, frame by frame as far as both reach."""
    mels = [MelSpectrogram(MelRecipe())(clip) for clip in (one, other)]
    frames = min(map(len, mels))
    return float(torch.stack([mel[:frames].flatten() for mel in mels]).corrcoef()[0, 1])


def test_the_example_holds_a_question_and_its_answer(tiny, answers, tmp_path, capsys):
    example = tiny[0] / "run" / "example"
    words = [
        f"checkpoint={tiny[0] / 'run' / 'echo' / 'final'}",
        f"input={example / 'question.wav'}",
        f"output={tmp_path / 'answer.wav'}",
        "device=cpu",
    ]
    assert generate.main(words) == 0
    row = answers[0][0]
    assert (
        f"heard:    {row.answer.transcription}\nanswered: {row.answer.text}\nspoken:"
        in capsys.readouterr().out
    )
    assert (example / "answer.wav").read_bytes() == (tmp_path / "answer.wav").read_bytes()


def test_an_example_must_be_a_spoken_question(tiny):
    silent = tiny[0] / "cache" / "corpora" / "tiny" / "speech.train.jsonl"
    with pytest.raises(
        ManifestError,
        match="asks anything aloud; set example to a manifest of spoken questions, or to null",
    ):
        run_recipe(load_recipe("echo_tiny", [*tiny[1], f"example={silent}"]))


def test_every_checkpoint_records_its_parents(tiny):
    run = tiny[0] / "run"
    prints = {stage: checkpoint.fingerprint(run / stage / "final") for stage in STAGES}
    lineage = {stage: checkpoint.verify(run / stage / "final")["lineage"] for stage in prints}
    assert lineage["s2t"]["parents"] == {"align": prints["align"]}
    assert lineage["echo"]["parents"] == {"s2t": prints["s2t"], "t2c": prints["t2c"]}
    assert lineage["t2c"]["data"]["codec"] == lineage["echo"]["data"]["codec"]
    assert checkpoint.verify(run / "echo" / "final")["recipe"]["name"] == "echo_tiny"
    kept = json.loads((run / number_format.FILE).read_text())
    assert [lineage[stage]["number_format"] for stage in prints] == [kept] * len(prints)


def test_every_stage_learns(tiny):
    for stage in STAGES:
        lines = [
            json.loads(line)
            for line in (tiny[0] / "run" / stage / "metrics.jsonl").read_text().splitlines()
        ]
        losses = [line["loss"] for line in lines if line["split"] == "train"]
        assert losses[-1] < losses[0], stage


def test_the_quickstart_notebook_runs(tiny, answers, tmp_path):
    notebook = json.loads((RECIPES / "quickstart.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "strip the outputs"
    # The run of this file's other tests, in the place of the one that the notebook trains.
    (tmp_path / "runs").mkdir()
    for place, name in (("echo_tiny", "run"), ("cache", "cache")):
        (tmp_path / "runs" / place).symlink_to(tiny[0] / name)
    source = {"train": 'run = __import__("pathlib").Path("runs/echo_tiny")'}
    if importlib.util.find_spec("matplotlib") is None:
        source["plot"] = ""
    tags = [(*cell["metadata"].get("tags", ()), "")[0] for cell in cells]
    code = [source.get(tag, "".join(cell["source"])) for tag, cell in zip(tags, cells)]
    # A fresh process, as a notebook's kernel is: nothing is loaded or discovered yet.
    environment = {**os.environ, "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    answer = answers[0][0].answer
    assert f"heard:    {answer.transcription}\nanswered: {answer.text}\n" in ended.stdout
    first, last = map(
        float, re.search(r"loss (\S+) at .*, (\S+) at step 30", ended.stdout).groups()
    )
    assert last < first / 2
    assert (tmp_path / "answer.wav").is_file()


def test_a_finished_run_is_left_alone(tiny, capsys):
    before = checkpoint.fingerprint(tiny[0] / "run" / "echo" / "final")
    run_recipe(load_recipe("echo_tiny", tiny[1]))
    assert "finished already" in "".join(capsys.readouterr())
    assert checkpoint.fingerprint(tiny[0] / "run" / "echo" / "final") == before


def test_steps_in_their_own_processes_give_the_same_bits_and_two_share_a_stage(
    brief, tmp_path, monkeypatch, capfd
):
    steps = []

    def run_elsewhere(function, *arguments, ranks):
        """Run training in its own process, and the other steps, which are finished, in this one."""
        step = arguments[-1]
        steps.append((step.name, ranks))
        if step.kind is StepKind.stage:
            in_own_process(function, *arguments, ranks=ranks)
        else:
            function(*arguments)

    monkeypatch.setattr(pipeline_run, "in_own_process", run_elsewhere)
    apart = [
        *brief[1],
        f"run_dir={tmp_path}",
        "own_processes=true",
        "s2t.cpu_processes=2",
        "only=[align,s2t]",
        "report=null",
    ]
    run_recipe(load_recipe("echo_tiny", apart))
    assert steps == [("corpus", 1), ("align data", 1), ("align", 1), ("s2t data", 1), ("s2t", 2)]
    assert "warning" not in capfd.readouterr().err.lower()
    assert checkpoint.fingerprint(tmp_path / "align" / "final") == checkpoint.fingerprint(
        brief[0] / "brief" / "align" / "final"
    )
    state, alone = (
        checkpoint.load(run / "s2t" / "checkpoints" / "step_000000006").state
        for run in (tmp_path, brief[0] / "brief")
    )
    assert len(state["random"]) == 2
    assert state["position"] == alone["position"], (
        "a step takes as many rows as that of one process"
    )


def test_a_recipe_sets_the_number_of_threads(tmp_path, monkeypatch):
    discover()
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        pipeline_run, "run_step", lambda recipe, step: seen.append(torch.get_num_threads())
    )
    for words in (["cpu_threads=null"], ["cpu_threads=3"]):
        run_recipe(
            load_recipe(
                "echo_tiny",
                [
                    f"run_dir={tmp_path}",
                    f"cache_dir={tmp_path}",
                    "device=cpu",
                    "stage=align",
                    *words,
                ],
            )
        )
    assert seen == [before, before, 3, 3] and torch.get_num_threads() == before


def test_a_stage_without_its_parents_names_them(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="train the stage 'align' first"):
        run_recipe(load_recipe("echo_tiny", [*tiny[1], f"run_dir={tmp_path}", "stage=s2t"]))


def test_a_stage_trained_on_those_of_another_run_answers_without_it(brief, tmp_path):
    run, other = tmp_path / "run", brief[0] / "brief"
    overrides = [
        *brief[1],
        f"run_dir={run}",
        "only=[echo]",
        f"echo.after={{s2t: {other / 's2t'}, t2c: {other / 't2c' / 'final'}}}",
        "echo.train.steps=1",
    ]
    run_recipe(load_recipe("echo_tiny", overrides))
    other.rename(brief[0] / "away")
    try:
        heard = echox.load(run, device="cpu", answer_silence=True)(
            torch.zeros(RATE_HZ), rate_hz=RATE_HZ
        )
    finally:
        (brief[0] / "away").rename(other)
    assert isinstance(heard.text, str)
    # Called again, it is compared with the settings that it recorded, and left alone.
    before = checkpoint.fingerprint(run / "echo" / "final")
    run_recipe(load_recipe("echo_tiny", overrides))
    assert checkpoint.fingerprint(run / "echo" / "final") == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_killed_half_way_ends_with_the_same_bits(brief, stage):
    folder = brief[0] / "brief" / stage
    before = checkpoint.fingerprint(folder / "final")
    shutil.rmtree(folder / "final")
    for late in checkpoint.step_folders(folder / "checkpoints")[1:]:
        shutil.rmtree(late)
    assert [path.name for path in checkpoint.step_folders(folder / "checkpoints")] == [
        "step_000000006"
    ]
    run_recipe(load_recipe("echo_tiny", [*brief[1], f"stage={stage}"]))
    assert checkpoint.fingerprint(folder / "final") == before


def test_a_run_takes_assets_from_the_sources_that_its_recipe_names(monkeypatch, tmp_path):
    sources = []
    monkeypatch.delenv("ECHOX_ASSET_SOURCE", raising=False)
    for function in ("_run_steps", "run_step"):
        monkeypatch.setattr(
            pipeline_run, function, lambda *_, **__: sources.append(allowed_sources())
        )
    monkeypatch.setattr(pipeline_run, "step_of", nullcontext)
    discover()
    for word, expected in (("false", (Source.hub, Source.packages)), ("true", (Source.packages,))):
        overrides = [f"run_dir={tmp_path}", "device=cpu", f"assets.packages={word}"]
        recipe = load_recipe("echo_tiny", overrides)
        run_recipe(recipe)
        # A process of a step's own begins without the choice.
        pipeline_run._run_step_elsewhere(to_dict(recipe), None, None)
        assert sources[-2:] == [expected] * 2
    assert allowed_sources() == (Source.hub, Source.packages)


def test_the_pace_of_the_steps_before_counts_in_the_forecast_of_a_step(monkeypatch, tmp_path):
    overrides = [f"run_dir={tmp_path}", "device=cpu", "own_processes=false"]
    discover()
    recipe, finished = load_recipe("echo_tiny", overrides), []
    clock_of = pipeline_run.clock_of

    def noted(*arguments, done):
        finished.append(done)
        return clock_of(*arguments, done=done)

    monkeypatch.setattr(pipeline_run, "clock_of", noted)
    monkeypatch.setattr(pipeline_run, "run_step", lambda *_: None)
    monkeypatch.setattr(pipeline_run, "closing_lines", lambda *_: [])
    run_recipe(recipe)
    # By the names under which the file of costs has their pace.
    names = [step.name for step in steps_of(recipe, apart=False)]
    assert finished == [names[:count] for count in range(len(names))]
