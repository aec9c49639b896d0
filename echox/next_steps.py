"""What a finished run tells its user at the end: what there is to read, what to listen to, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from echox.data.manifest import OnBroken, read_manifest
from echox.errors import EchoxError
from echox.generation.manifest_run import GenerateConfig
from echox.recipe import Recipe
from echox.run_steps import example_files
from echox.step_costs import duration

ANSWERING = ("echo", "s2t")  # stages whose models answer, the last first


def closing_lines(recipe: Recipe, seconds: float) -> list[str]:
    """The last lines of a run, for a terminal."""
    return [f"{recipe.name}: done in {duration(seconds)}; all of it is in {recipe.run_dir}", *_lines(recipe)]


def _lines(recipe: Recipe) -> Iterator[str]:
    run = Path(recipe.run_dir)
    page = run / "report" / "report.md"
    if recipe.report is not None and page.is_file():
        yield f"  read:   {page}"
        if (wav := _answer(page.parent / "wavs")) is not None:
            yield f"  listen: {wav}"
    _, answer = example_files(recipe)
    if recipe.answers_example and answer.is_file():
        yield f"  listen: {answer}"
    stage = next((stage for stage in ANSWERING if (run / stage / "final").exists()), None)
    if stage is not None:
        final = run / stage / "final"
        clip, said = _question(recipe)
        words = ["echox-generate", f"input={clip}", *(["output=answer.wav"] if stage == "echo" else [])]
        words += [] if str(final) == GenerateConfig().checkpoint else [f"checkpoint={final}"]
        yield f"  ask:    {shlex.join(words)}" + (f"  # {said}" if said else "")


def _answer(wavs: Path) -> Path | None:
    """An answer to a question, or where the report has none aloud, whatever it has."""
    return next(iter(sorted((wavs / "questions").glob("*.wav")) or sorted(wavs.rglob("*.wav"))), None)


def _question(recipe: Recipe) -> tuple[str, str]:
    """The example's question, a clip that the run was not trained on, or a name for one; and its words where they are known."""
    question, _ = example_files(recipe)
    if recipe.answers_example and question.is_file():
        return str(question), ""
    corpus = recipe.corpus and Path(recipe.corpus.folder)
    for name in ("questions.test.jsonl", "questions.valid.jsonl"):
        if corpus and (corpus / name).is_file():
            try:
                rows = read_manifest(corpus / name, on_broken=OnBroken.skip).rows
            except EchoxError:  # which is told where the manifest is needed
                continue
            return str(rows[0].turns[0].audio), rows[0].answer.transcription if rows[0].answer else ""
    return "question.wav", ""
