"""A run folder with stages of other settings or data: refused before training, or replaced."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from echox.assets.folder_digest import folder_digest
from echox.core import checkpoint
from echox.core.errors import AssetError, CheckpointError, ConfigError
from echox.data.manifest import Item, Role, Row, manifest_fingerprint, write_manifest
from echox.pipeline import dry_run, rerun
from echox.pipeline import run as pipeline_run
from echox.pipeline.dry_run import check_needs
from echox.pipeline.plugins import discover, plugin_code
from echox.pipeline.recipe import load_recipe, own_parts, to_dict
from echox.pipeline.rerun import FITTED_WITH, note_fit, prepare_rerun, refuse_stale
from echox.pipeline.run import run_recipe
from echox.tasks.recorded import weight_digests
from echox_cli import train

STAGES = ("align", "s2t", "t2c", "echo")
PARENTS = {"align": (), "s2t": ("align",), "t2c": (), "echo": ("s2t", "t2c")}
BEFORE = [
    "codec.folder=random",
    "codec.fit.units=512",
    "codec_speech=[]",
    *(f"{stage}.train.{field}" for stage in STAGES for field in ("steps=12", "lr=0.001")),
]


@pytest.fixture(scope="module", autouse=True)
def _parts():
    discover()


@pytest.fixture
def finished(tmp_path):
    """A function from overrides to a recipe, whose stages are finished without overrides."""

    def recipe(*overrides):
        folders = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", "device=cpu"]
        return load_recipe("echo_tiny", [*folders, *BEFORE, *overrides])

    write_text(tmp_path / "cache/corpora/tiny/questions.train.jsonl", "What is it?")
    plain = recipe()
    for number, stage in enumerate(STAGES):
        write_stage(plain, stage, number)
    return recipe


def write_text(path, text):
    write_manifest(path, [Row("a", (Item(Role.USER, text), Item(Role.ASSISTANT, "It is.")), {})])


def write_stage(recipe, stage, value, place="final", **lineage):
    run = Path(recipe.run_dir)
    manifest = Path(recipe.corpus.folder) / "questions.train.jsonl"
    fingerprints = {"manifest:questions.train.jsonl": manifest_fingerprint(manifest)}
    # T2C is trained on another manifest.
    data = {} if stage == "t2c" else fingerprints
    parents = {parent: checkpoint.fingerprint(run / parent / "final") for parent in PARENTS[stage]}
    meta = {
        "stage": stage,
        "recipe": to_dict(recipe),
        "lineage": {"parents": parents, "data": data} | lineage,
    }
    checkpoint.save(run / stage / place, {"w": torch.full((2,), float(value))}, meta)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["s2t.train.steps=6"], r"^s2t in .* was made otherwise: s2t.train.steps 12 -> 6; "
         r"name another folder with run_dir=, make it and what builds on it "
         r"\(echo\) again with overwrite=true, which moves \S+/run/s2t and \S+/run/echo aside, "
         "or go back to the old settings$"),
        (["stage=echo", "s2t.train.steps=6"], "^s2t in .* s2t.train.steps 12 -> 6"),
        (["encoder=mel"],
         "^align, s2t and echo in .* were made otherwise: encoder whisper -> mel;"),
        (["corpus.share=0.03"], "corpus.share 0.02 -> 0.03"),
        (["seed=2"], "^align, s2t, t2c and echo .* seed 1 -> 2"),
        (["t2c.train.lr=0.5", "t2c.task.decoder.layers=3"],
         "^t2c in .*t2c.task.decoder.layers 2 -> 3, t2c.train.lr 0.001 -> 0.5;"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_before_the_first_step(
    finished, monkeypatch, overrides, sentence
):
    monkeypatch.setattr(pipeline_run, "run_step", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(CheckpointError, match=sentence):
        run_recipe(finished(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["name=other", "doc=other", "report=null", "own_processes=true", "s2t.cpu_processes=2"],
        [
            "align.train.log_every=1",
            "align.train.save_every=3",
            "align.train.keep_checkpoints=9",
            "align.train.tensorboard=true",
        ],
        [
            "s2t.train.validate_every=3",
            "s2t.train.validate_batches=2",
            "t2c.task.scored_rows=1",
            "s2t.task.max_answer_tokens=4",
        ],
        ["corpus.workers=1", "stage=echo", "align.train.num_workers=1"],
    ],
)
def test_neutral_settings_are_not_refused(finished, overrides):
    prepare_rerun(finished(*overrides))


def test_what_only_finished_stages_needed_may_be_gone(finished, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "cache/corpora")
    # As of manifests that no step of the run makes.
    monkeypatch.setattr(dry_run, "_is_made", lambda recipe, path: False)
    check_needs(finished("overwrite=true"))
    sentence = r"missing files: .*/questions.train.jsonl \(manifest\).*; put them there, or set"
    with pytest.raises(AssetError, match=sentence):
        check_needs(finished("overwrite=true", "s2t.train.steps=6"))


def test_a_moved_run_is_not_stale(finished, tmp_path):
    recipe = finished()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    prepare_rerun(finished(f"run_dir={tmp_path / 'elsewhere'}"))
    assert recipe.run_dir != str(tmp_path / "elsewhere")


def test_an_unfinished_stage_is_compared_too(finished, tmp_path):
    (tmp_path / "run/echo/final").rename(tmp_path / "gone")
    write_stage(finished(), "echo", 9, place="checkpoints/step_000000006")
    with pytest.raises(CheckpointError, match="^echo in .* echo.train.lr 0.001 -> 0.5"):
        prepare_rerun(finished("echo.train.lr=0.5"))
    prepare_rerun(finished())


def test_new_settings_are_taken_by_an_unfinished_stage_where_they_are_asked_for(finished, tmp_path):
    final = tmp_path / "run/echo/final"
    write_stage(finished(), "echo", 9, place="checkpoints/step_000000006")
    changed = ["echo.train.lr=0.5", "resume=with_new_settings"]
    go_on = "go on from the last checkpoint with resume=with_new_settings, or go back"
    with pytest.raises(CheckpointError, match=f"aside, delete {final} and {go_on}"):
        prepare_rerun(finished(*changed))
    final.rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"aside, {go_on}"):
        prepare_rerun(finished(changed[0]))
    prepare_rerun(finished(*changed))
    # Other data or parents are no settings.
    write_stage(finished(), "t2c", 77)
    with pytest.raises(CheckpointError, match="t2c was trained again since; (?!.*resume=)"):
        prepare_rerun(finished(*changed))
    with pytest.raises(ConfigError, match="give one of the two"):
        finished("overwrite=true", "resume=with_new_settings")


def test_a_stage_is_resumed_under_the_rule_of_its_recipe(finished, monkeypatch):
    calls = {}
    monkeypatch.setattr(pipeline_run, "refuse_stale", lambda *_: None)
    monkeypatch.setattr(pipeline_run, "stage_task", lambda *_, **__: None)
    monkeypatch.setattr(pipeline_run, "train", lambda *_, **named: calls.update(named))
    recipe = finished("t2c.train.lr=0.5", "resume=with_new_settings")
    pipeline_run.train_stage(recipe, "t2c", torch.device("cpu"))
    assert calls["takes_new_settings"]
    assert calls["lineage"] == {"plugins": {}, "plugin_code": {}}
    (change,) = calls["compare"]({"recipe": to_dict(finished("name=other"))})
    assert (change.name, change.before, change.after) == ("t2c.train.lr", 0.001, 0.5)


def test_a_field_that_an_old_checkpoint_lacks_has_its_default(finished, tmp_path):
    meta = tmp_path / "run/s2t/final/meta.json"
    described = json.loads(meta.read_text())
    del (
        described["recipe"]["stages"]["s2t"]["task"]["adapter_lr_scale"],
        described["recipe"]["seed"],
    )
    described["recipe"]["stages"]["s2t"]["task"]["a_field_of_old"] = 3
    del described["checksum"]
    meta.write_text(json.dumps(described))
    prepare_rerun(finished())
    with pytest.raises(CheckpointError, match="s2t.task.adapter_lr_scale 0.3 -> 0.7"):
        prepare_rerun(finished("s2t.task.adapter_lr_scale=0.7"))


def test_a_retrained_parent_and_changed_data_are_named(finished, tmp_path):
    write_stage(finished(), "t2c", 77)
    with pytest.raises(CheckpointError, match="^echo in .* t2c was trained again since"):
        refuse_stale(finished(), "echo")
    write_text(tmp_path / "cache/corpora/tiny/questions.train.jsonl", "What else?")
    with pytest.raises(
        CheckpointError, match="^align, s2t and echo in .*questions.train.jsonl has changed since"
    ):
        prepare_rerun(finished())


def test_other_parts_end_the_command_with_both_ways_out(finished, tmp_path, capsys):
    finished()
    folders = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", "device=cpu"]
    assert train.main(["recipe=echo_tiny", *folders, *BEFORE, "encoder=mel"]) == 2
    sentence = capsys.readouterr().err
    assert "encoder whisper -> mel" in sentence
    assert "another folder with run_dir=" in sentence and "with overwrite=true" in sentence


def test_a_codec_that_was_fitted_again_with_the_same_settings_is_named(finished, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    recipe = finished(f"codec.folder={folder}")
    write_stage(recipe, "t2c", 5, data={"codec": "first"})
    for fitted, stale in (("first", False), ("second", True), (None, False)):
        (folder / "config.json").write_text(json.dumps({"fingerprint": fitted}))
        if not stale:
            refuse_stale(recipe, "t2c")
            continue
        with pytest.raises(CheckpointError, match=f"the codec in {folder} was fitted again since"):
            refuse_stale(recipe, "t2c")


def test_a_refit_notices_that_its_run_was_trained_again(finished, tmp_path):
    before = tmp_path / "before"
    (tmp_path / "run").rename(before)
    recipe = finished(f"refit={before}", "stage=echo")
    parents = {name: checkpoint.fingerprint(before / name / "final") for name in ("s2t", "t2c")}
    for name in parents:
        shutil.copytree(before / name, tmp_path / "run" / name)
    write_stage(recipe, "echo", 5, parents=parents)
    for name in parents:
        shutil.rmtree(tmp_path / "run" / name)
    prepare_rerun(recipe)
    checkpoint.save(before / "t2c" / "final", {"w": torch.ones(3)}, {})
    with pytest.raises(CheckpointError, match="t2c was trained again since"):
        prepare_rerun(recipe)


def test_a_stage_of_a_plugin_that_was_edited_is_refused_or_kept(finished, tmp_path, monkeypatch):
    mel = ["encoder=mel", "stage=align"]
    code = plugin_code(own_parts(finished(*mel), "align"))
    assert list(code) == ["encoder mel"], "the codec and the later stages are not of this one"
    write_stage(finished(*mel), "align", 5, plugin_code=code)
    prepare_rerun(finished(*mel))
    monkeypatch.setattr(rerun, "plugin_code", lambda parts: {"encoder mel": "edited"})
    sentence = (
        f"^align in .* was made otherwise: code of encoder mel {code['encoder mel']} -> edited; "
        ".* keep what is trained with resume=with_new_settings, or go back"
    )
    with pytest.raises(CheckpointError, match=sentence):
        prepare_rerun(finished(*mel))
    keeping = [*mel, "resume=with_new_settings"]
    prepare_rerun(finished(*keeping))
    with pytest.raises(CheckpointError, match="align.train.lr 0.001 -> 0.5, code of encoder mel"):
        prepare_rerun(finished(*keeping, "align.train.lr=0.5"))


def test_the_code_of_plugins_is_compared_where_a_stage_resumes(finished):
    recipe = finished("encoder=mel")
    meta = {"recipe": to_dict(recipe), "lineage": {"plugin_code": {"encoder mel": "before"}}}
    (change,) = rerun.changed_settings(recipe, "align", meta)
    assert (change.name, change.before) == ("code of encoder mel", "before")
    assert rerun.changed_settings(recipe, "align", {**meta, "lineage": {}}) == []


def test_overwrite_moves_aside_what_is_stale_and_what_builds_on_it(finished, tmp_path, capsys):
    before = {stage: checkpoint.fingerprint(tmp_path / "run" / stage / "final") for stage in STAGES}
    changed = finished("s2t.train.steps=6", "overwrite=true")
    prepare_rerun(changed)
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["align", "replaced", "t2c"]
    assert checkpoint.fingerprint(run / "replaced/s2t-1/final") == before["s2t"]
    assert checkpoint.fingerprint(run / "replaced/echo-1/final") == before["echo"]
    assert "s2t: made otherwise before, and moved to" in capsys.readouterr().err
    write_stage(changed, "s2t", 5)
    prepare_rerun(changed)
    assert (run / "s2t").exists(), (
        "a stage that was trained with these settings stays, however often the run is repeated"
    )


def test_overwrite_does_not_replace_stages_that_this_run_does_not_train(finished, tmp_path):
    with pytest.raises(
        CheckpointError, match="^s2t in .* none of the stages that this run trains .echo."
    ):
        prepare_rerun(finished("s2t.train.steps=6", "stage=echo", "overwrite=true"))
    assert not (tmp_path / "run/replaced").exists()


def fit_with(recipe):
    note_fit(recipe.codec, recipe)


def test_a_codec_fitted_with_other_settings_is_stale(finished, tmp_path):
    speech = tmp_path / "cache/corpora/tiny/questions.train.jsonl"
    inside = [f"codec.folder={tmp_path / 'run' / 'codec'}", f"codec_speech=[{speech}]"]
    (tmp_path / "run/codec").mkdir()
    for stage in STAGES:
        (tmp_path / "run" / stage / "final").rename(tmp_path / f"gone-{stage}")
    fit_with(finished(*inside))
    assert (tmp_path / "run/codec" / FITTED_WITH).is_file()
    prepare_rerun(finished(*inside, "codec.fit.batch_s=9"))
    with pytest.raises(
        CheckpointError, match="^codec in .* was made otherwise: codec.fit.units 512 -> 64"
    ):
        prepare_rerun(finished(*inside, "codec.fit.units=64"))
    prepare_rerun(finished(*inside, "codec.fit.units=64", "stage=align", "overwrite=true"))
    assert (tmp_path / "run/codec").exists(), "align needs no codec"
    prepare_rerun(finished(*inside, "codec.fit.units=64", "overwrite=true"))
    assert (tmp_path / "run/replaced/codec-1" / FITTED_WITH).is_file() and not (
        tmp_path / "run/codec"
    ).exists()


def test_a_codec_outside_the_run_is_not_replaced(finished, tmp_path):
    outside = [f"codec.folder={tmp_path / 'codec'}", "stage=t2c"]
    (tmp_path / "codec").mkdir()
    (tmp_path / "run/t2c/final").rename(tmp_path / "gone")
    fit_with(finished(*outside))
    with pytest.raises(CheckpointError, match="lies outside .* overwrite=true leaves it alone"):
        prepare_rerun(finished(*outside, "codec.fit.units=64", "overwrite=true"))


def test_a_codec_of_another_run_with_the_same_settings_is_used(finished, tmp_path):
    (tmp_path / "run/codec").mkdir()
    for stage in STAGES:
        (tmp_path / "run" / stage / "final").rename(tmp_path / f"gone-{stage}")
    fit_with(finished(f"codec.folder={tmp_path / 'run' / 'codec'}"))
    prepare_rerun(
        finished(f"codec.folder={tmp_path / 'run' / 'codec'}", f"run_dir={tmp_path / 'other'}")
    )


@pytest.mark.parametrize("in_a_run", [True, False])
def test_a_codec_of_a_plugin_that_was_edited_is_refused_or_kept(
    finished, tmp_path, monkeypatch, in_a_run
):
    folder = tmp_path / "run/codec"
    folder.mkdir()
    for stage in STAGES:
        (tmp_path / "run" / stage / "final").rename(tmp_path / f"gone-{stage}")
    words = [f"codec.folder={folder}", "codec.fit.encoder=mel"]
    recipe = finished(*words)
    note_fit(recipe.codec, recipe if in_a_run else None)
    code = json.loads((folder / FITTED_WITH).read_text())["plugin_code"]
    assert list(code) == ["encoder mel"]
    prepare_rerun(recipe)
    monkeypatch.setattr(rerun, "code_of_named", lambda names: dict.fromkeys(names, "edited"))
    sentence = (
        f"^codec in .* was made otherwise: code of encoder mel {code['encoder mel']} -> edited; "
        ".* keep what is trained with resume=with_new_settings, or go back"
    )
    with pytest.raises(CheckpointError, match=sentence):
        prepare_rerun(recipe)
    prepare_rerun(finished(*words, "resume=with_new_settings"))
    prepare_rerun(finished(*words, "stage=align"))
    prepare_rerun(finished(*words, "overwrite=true"))
    assert (tmp_path / "run/replaced/codec-1").is_dir() and not folder.exists()


def test_a_folder_of_weights_that_changed_makes_its_stages_stale(finished, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recipe = finished(f"backbone.weights={folder}")
    digests = weight_digests({"backbone": recipe.backbone})
    assert digests == {"backbone.weights": folder_digest(folder)}
    for number, stage in enumerate(STAGES):
        write_stage(recipe, stage, number, weight_folders=digests)
    prepare_rerun(recipe)
    (folder / "config.json").write_text('{"tie": true}')
    sentence = f"^align, s2t, t2c and echo in .* the weights in {folder} have changed since; name"
    with pytest.raises(CheckpointError, match=sentence):
        prepare_rerun(recipe)
    # Of earlier versions nothing is known.
    for number, stage in enumerate(STAGES):
        write_stage(recipe, stage, number)
    prepare_rerun(recipe)
