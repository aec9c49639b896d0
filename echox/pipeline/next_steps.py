"""Last lines of a run: what to read, what to listen to, and the command that asks the model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from echox.core.errors import EchoxError
from echox.core.step_costs import duration
from echox.data.manifest import OnBroken, read_manifest
from echox.inference.batch_run import GenerateConfig
from echox.pipeline.recipe import Recipe
from echox.pipeline.steps import example_files
from echox.tasks.base import Use


def closing_lines(recipe: Recipe, seconds: float) -> list[str]:
    """Return the last lines of a run for a terminal.

    Args:
        recipe: the recipe of the run.
        seconds: that the run took.
    """
    done = f"{recipe.name}: done in {duration(seconds)}; all of it is in {recipe.run_dir}"
    return [done, *_outputs(recipe), *_command(recipe)]


def _outputs(recipe: Recipe) -> Iterator[str]:
    page = Path(recipe.run_dir) / "report" / "report.md"
    if recipe.report is not None and page.is_file():
        yield f"  read:   {page}"
        if (wav := _report_clip(page.parent / "wavs")) is not None:
            yield f"  listen: {wav}"
    _, answer = example_files(recipe)
    if recipe.answers_example and answer.is_file():
        yield f"  listen: {answer}"


def _command(recipe: Recipe) -> Iterator[str]:
    """Yield the command that asks the finished model, where a finished stage answers."""
    run = Path(recipe.run_dir)
    # A run of one stage, or a refit, may have finished others before.
    stages = (stage for stage in _answering(recipe) if (run / stage / "final").exists())
    stage = next(stages, None)
    if stage is None:
        return
    clip, text = _question(recipe)
    arguments = ["echox-generate", f"input={clip}"]
    if recipe.task_type(stage).use is Use.answer_aloud:
        arguments.append("output=answer.wav")
    final = str(run / stage / "final")
    # The default needs not be typed.
    if final != GenerateConfig().checkpoint:
        arguments.append(f"checkpoint={final}")
    yield f"  ask:    {shlex.join(arguments)}" + (f"  # {text}" if text else "")


def _answering(recipe: Recipe) -> Iterator[str]:
    """Yield the stages that answer, those that answer aloud first, the last of each first."""
    for use in (Use.answer_aloud, Use.answer):
        yield from (
            stage for stage in reversed(recipe.members) if recipe.task_type(stage).use is use
        )


def _report_clip(wavs: Path) -> Path | None:
    """Return a spoken answer of the report; without any, another clip of it, or None."""
    clips = sorted((wavs / "questions").glob("*.wav")) or sorted(wavs.rglob("*.wav"))
    return next(iter(clips), None)


def _question(recipe: Recipe) -> tuple[str, str]:
    """Return the file of a question to ask, and its text where that is known.

    The file is the example's, else a clip that the run was not trained on, else a placeholder.
    """
    question, _ = example_files(recipe)
    if recipe.answers_example and question.is_file():
        return str(question), ""
    # The test split first; a small corpus may have none.
    corpus = recipe.corpus and Path(recipe.corpus.folder)
    for name in ("questions.test.jsonl", "questions.valid.jsonl"):
        if corpus and (corpus / name).is_file():
            try:
                rows = read_manifest(corpus / name, on_broken=OnBroken.skip).rows
            except EchoxError:
                continue  # a broken manifest is reported by the step that needs it
            row = rows[0]
            return str(row.turns[0].audio), row.answer.transcription if row.answer else ""
    return "question.wav", ""
