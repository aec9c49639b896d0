"""What a finished run says at its end."""

import pytest
import torch
from tiny_run import write_questions

from echox.data.audio import save_audio
from echox.pipeline.next_steps import closing_lines
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.steps import StepKind, steps_of


@pytest.fixture
def recipe(tmp_path):
    discover()
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    (run / "echo" / "final").mkdir(parents=True)
    (run / "report").mkdir()
    (run / "report" / "report.md").write_text("# Report\n")
    for name in ("codec/a.wav", "questions/z.wav", "t2c/b.wav"):
        save_audio(run / "report" / "wavs" / name, torch.zeros(1600), 16_000)
    write_questions(corpus, "questions.test", 1)
    return load_recipe("echo_mini", [f"run_dir={run}", f"corpus.folder={corpus}"])


def test_an_answer_is_to_be_heard_and_a_known_question_to_be_asked(recipe):
    first, read, listen, ask = closing_lines(recipe, 65)
    assert first == f"echo_mini: done in 1 min 5 s; all of it is in {recipe.run_dir}"
    assert read.endswith("report/report.md") and listen.endswith("wavs/questions/z.wav")
    assert (
        "echox-generate input=" in ask
        and f"checkpoint={recipe.run_dir}/echo/final" in ask
        and ask.endswith("# What is 0?")
    )


def test_without_answers_aloud_another_sound_of_the_report_is_named(recipe, tmp_path):
    (tmp_path / "run/report/wavs/questions/z.wav").unlink()
    assert closing_lines(recipe, 1)[2].endswith("wavs/codec/a.wav")


def test_a_model_without_speech_for_the_example_has_its_report_already():
    discover()
    recipe = load_recipe("echo_mini", ["example=questions.jsonl"])
    kinds = [step.kind for step in steps_of(recipe, apart=False)]
    assert kinds[-2:] == [StepKind.report, StepKind.example]
    assert kinds.count(StepKind.stage) == 4
