"""A folder for tests of Echo: finished S2T and T2C, questions of noise, and the recipe of Echo.

All parts are tiny and random.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_run import RATE_HZ, noise, write_run

from echox.core import checkpoint
from echox.data.audio import save_audio
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import Recipe, load_recipe, to_dict

WITHOUT_CORPUS = (
    "corpus=null",
    "codec_speech=[]",
    "example=null",
)  # what else the smoke recipe takes from its corpus
ANSWERS = ("Yes.", "No. It is.", "A dog.", "So it goes. On.")
SHAPES = (
    "encoder.random_dim=32",
    "backbone.lora.rank=4",
    "backbone.lora.targets=[q_proj,k_proj,v_proj,o_proj]",
    "s2t.task.adapter.heads=4",
    *(
        f"t2c.task.decoder.{setting}"
        for setting in (
            "layers=2",
            "width=32",
            "heads=2",
            "feed_forward=64",
            "max_words_per_token=2",
        )
    ),
    "t2c.task.spelling_channels=8",
    "echo.task.denoiser.feed_forward=32",
    "echo.task.rows=null",
)
BRIEF = (
    "echo.train.precision=fp32",
    "echo.train.steps=4",
    "echo.train.batch_size=2",
    "echo.train.save_every=2",
    "echo.train.validate_every=4",
)


def write_home(folder: Path) -> Path:
    """Write a run in which S2T and T2C are finished and Echo is not begun: -> its folder."""
    questions = write_conversations(folder)
    run = write_run(folder / "run")
    shutil.rmtree(run / "echo")
    discover()
    recipe = to_dict(recipe_at(folder))
    for stage in ("s2t", "t2c"):
        finished = checkpoint.load(run / stage / "final")
        meta = {
            key: value for key, value in finished.meta.items() if key not in ("format", "files")
        }
        checkpoint.save(run / stage / "final", finished.tensors, {**meta, "recipe": recipe})
    assert questions.is_file()
    return run


def words_at(folder: Path, *more: str) -> list[str]:
    """Command-line words that train Echo in this folder."""
    places = [
        f"{place}.{split}"
        for place in ("align.task.data", "s2t.task.data", "t2c.task", "echo.task.data")
        for split in ("train", "valid")
    ]
    data = [f"{place}=[{folder / 'questions.jsonl'}]" for place in places]
    own = [
        "device=cpu",
        *WITHOUT_CORPUS,
        "codec.folder=random",
        "vocoder=null",
        "units=[]",
        "stage=echo",
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
    ]
    return [*own, *data, *SHAPES, *BRIEF, *more]


def recipe_at(folder: Path, *more: str) -> Recipe:
    """The same as a recipe."""
    return load_recipe("echo_tiny", words_at(folder, *more))


def write_conversations(folder: Path) -> Path:
    """Spoken questions with answers of several lengths; the last row has two spoken questions."""
    rows = []
    for number, text in enumerate(ANSWERS):
        clips = [folder / "clips" / f"{name}-{number}.wav" for name in ("q", "more", "a")]
        for place, clip in enumerate(clips):
            save_audio(clip, noise(10 * number + place, 0.4 + 0.13 * number), RATE_HZ)
        questions = [
            Item(Role.USER, audio=clips[0]),
            Item(Role.ASSISTANT, "Go on.", transcription="Well?"),
            Item(Role.USER, audio=clips[1]),
        ]
        turns = questions if number == len(ANSWERS) - 1 else questions[:1]
        answer = Item(
            Role.ASSISTANT,
            text,
            audio=clips[2] if number % 2 else None,
            transcription="What is it?",
        )
        rows.append(
            Row(f"row-{number}", (*turns, answer), {"answer": text.split()[-1].rstrip(".")})
        )
    write_manifest(folder / "questions.jsonl", rows)
    return folder / "questions.jsonl"
