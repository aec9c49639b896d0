import inspect
import textwrap
from pathlib import Path

import echox_recipes
import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from echox import recipe as recipe_module
from echox.errors import EchoxError
from echox.recipe import find_recipe, freeze, list_recipes, load_recipe, plugin_dirs_of, recipe_doc, restore

pytestmark = pytest.mark.usefixtures("toy_house")


def message(name, *overrides):
    """What a person is told; one line, whatever went wrong."""
    with pytest.raises(EchoxError) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_example_of_its_page_composes(write):
    example = inspect.getdoc(recipe_module).partition("differs from the dataclasses' defaults:")[2]
    write("recipes/my_run.yaml", textwrap.dedent(example.strip("\n")))
    recipe = load_recipe("my_run")
    assert (recipe.s2t.train.steps, recipe.encoder.weights, recipe.codec.folder) == (400, "whisper_base", "runs/my_run/codec")


def test_a_program_that_uses_hydra_itself_keeps_its_state():
    GlobalHydra.instance().clear()
    with hydra.initialize(version_base="1.3", config_path=None):
        host = GlobalHydra.instance().hydra
        load_recipe("toy")
        assert GlobalHydra.instance().hydra is host is not None
    load_recipe("toy")
    assert not GlobalHydra.instance().is_initialized()


def test_a_recipe_is_its_file_over_the_defaults():
    recipe = load_recipe("toy")
    assert (recipe.name, recipe.run_dir, recipe.seed) == ("toy", "runs/toy", 1)
    assert (recipe.encoder.width, recipe.s2t.train.steps, recipe.s2t.task.rows) == (9, 7, 3)
    assert recipe.planned == ["s2t"] and recipe.plan("s2t") is recipe.s2t


def test_it_survives_a_checkpoint():
    recipe = load_recipe("toy", ["encoder.mood=lively", "s2t.task=other_work", "codec.gains.low=0.5"])
    frozen = freeze(recipe)
    assert frozen["encoder"] == {"name": "toy_ear", "width": 9, "mood": "lively"}
    assert frozen["codec"]["encoder"]["name"] == "toy_ear"
    assert restore(frozen) == recipe


@pytest.mark.parametrize(
    ("overrides", "read", "expected"),
    [
        (["seed=4"], lambda r: r.seed, 4),
        (["+seed=4"], lambda r: r.seed, 4),
        (["encoder=other_ear"], lambda r: r.encoder.bins, 8),
        (["encoder.bins=3", "encoder=other_ear"], lambda r: r.encoder.bins, 3),
        (["encoder=toy_ear"], lambda r: r.encoder.width, 4),
        (["encoder.mood=lively"], lambda r: r.encoder.mood.name, "lively"),
        (["codec.encoder=other_ear", "codec.encoder.bins=2"], lambda r: r.codec.encoder.bins, 2),
        (["codec.gains.low=0.5", "codec.gains.high=2"], lambda r: r.codec.gains, {"low": 0.5, "high": 2.0}),
        (["s2t.task=other_work"], lambda r: r.s2t.task.lines, 3),
        (["task@s2t.task=other_work"], lambda r: r.s2t.task.lines, 3),
        (["s2t.train={steps: 9, lr: 0.1}"], lambda r: (r.s2t.train.steps, r.s2t.train.lr), (9, 0.1)),
        (["echo.task=toy_work", "echo.criterion=toy_aim", "echo.train.steps=2", "stage=echo"], lambda r: (r.planned, r.echo.train.steps), (["echo"], 2)),
        (["corpus.seed=7"], lambda r: r.corpus.seed, 7),
        (["run_dir=my runs (1), new"], lambda r: r.run_dir, "my runs (1), new"),
        (["run_dir='my runs'"], lambda r: r.run_dir, "my runs"),
        (["run_dir=${cache_dir}/${name}"], lambda r: r.run_dir, "runs/cache/toy"),
        (["name=1e3"], lambda r: r.name, "1e3"),
        (["backbone.weights=org/model"], lambda r: r.backbone.weights, "org/model"),
        (["backbone.weights=null"], lambda r: r.backbone.weights, None),
        (["stage=null", "seed=1", "seed=2"], lambda r: r.seed, 2),
    ],
)
def test_overrides(overrides, read, expected):
    assert read(load_recipe("toy", overrides)) == expected


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("s2t.train.stepz=3", "override 's2t.train.stepz=3': no field 'stepz' in s2t.train; did you mean 'steps'?"),
        ("steps=3", "no field 'steps' in Recipe; did you mean s2t.train.steps?"),
        ("foo=1", "no field 'foo' in Recipe; its fields are name, doc"),
        ("+foo=1", "no field 'foo' in Recipe"),
        ("encoder.bins=3", "no field 'bins' in encoder; its fields are width, mood"),
        ("hydra.run.dir=x", "no field 'hydra' in Recipe"),
        ("seed.x=3", "seed takes an integer, not {}"),
        ("encoder=other_eer", "no encoder named 'other_eer'; did you mean 'other_ear'?; known: mel, other_ear, ssl, toy_ear, whisper, wide_ear"),
        ("encoder=", "no encoder named ''; known:"),
        ("encoder=3", "encoder takes the name of an encoder or null, not 3"),
        ("encoder=[mel]", "encoder takes the name of an encoder"),
        ("encoder=toy_mind", "no encoder named 'toy_mind'"),
        ("s2t.task=toy_wrok", "no task named 'toy_wrok'; did you mean 'toy_work'?"),
        ("seed=abc", "seed takes an integer, not 'abc'"),
        ("seed=1.5", "seed takes an integer, not 1.5"),
        ("seed=null", "seed takes an integer, not null"),
        ("seed=-1", "seed must not be negative, and is -1"),
        ("cpu_threads=0", "cpu_threads must be at least 1 or null, and is 0"),
        ("s2t.cpu_processes=0", "cpu_processes must be at least 1, and is 0"),
        ("s2t.cpu_processes=2", "s2t.cpu_processes is 2, which needs own_processes=true"),
        ("encoder.mood=livly", "encoder.mood takes calm or lively, not 'livly'"),
        ("codec.gains.low=loud", "codec.gains.low takes a number, not 'loud'"),
        ("stages=s2t", "stages takes a list, each a text, not 's2t'"),
        ("stages=[]", "stages is empty; name at least one of vocoder, align, s2t, t2c, echo"),
        ("stages=[s3t]", "no stage named 's3t'; did you mean 's2t'?"),
        ("stage=ecko", "no stage named 'ecko'; did you mean 'echo'?"),
        ("stage=echo", "the recipe runs stage 'echo' but has no plan for it"),
        ("s2t=3", "s2t takes StagePlan or null, not 3"),
        ("device=tpu", "device 'tpu' is unknown; use auto, cpu, cuda or cuda:N"),
        ("device=cuda:x", "device 'cuda:x' is unknown"),
        ("encoder.width=0", "encoder: width must be at least 1, not 0"),
        ("s2t.train.steps=0", "s2t.train: training config: steps must be at least 1, not 0"),
        ("run_dir=${nam}", "run_dir refers to a field that does not exist (Interpolation key 'nam' not found)"),
        ("seed=[1", "override 'seed=[1': the value cannot be read"),
        ("seed=1,2", "override 'seed=1,2': it gives several values; a list is written seed=[a,b]"),
        ("~seed", "override '~seed' deletes a field, which configs do not allow"),
        ("seed", "'seed' is not an override; write key=value"),
        ("=3", "'=3' is not an override; write key=value"),
        ("a..b=3", "'a..b' is not a field name"),
        ("s2t.train.lr=fast", "s2t.train.lr takes a number, not 'fast'"),
        ("echo.train.steps=3", "echo.task has no value; set echo.task=NAME, one of "),
    ],
)
def test_a_wrong_override_is_one_sentence(override, sentence):
    assert sentence in message("toy", override)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("seed: [", "not valid YAML at line 1"),
        ("seed: 1\nseed: 2", "not valid YAML at line 2, column 1: found duplicate key seed"),
        ("seed: abc", "bad.yaml: seed takes an integer, not 'abc'"),
        ("sed: 3", "bad.yaml: no field 'sed' in Recipe; did you mean 'seed'?"),
        ("s2t: {train: {stepz: 3}}", "bad.yaml: no field 'stepz' in s2t.train; did you mean 'steps'?"),
        ("defaults:\n  - toyy\n", "bad.yaml: the defaults list names 'toyy', which is in none of"),
        ("defaults:\n  - toyy\n", "did you mean 'toy'?"),
        ("defaults:\n  - encoder: wide_eer\n", "bad.yaml: no encoder named 'wide_eer'; did you mean 'wide_ear'?"),
        ("defaults:\n  - toy\n  - override encoder: toy_eer\n", "bad.yaml: no encoder named 'toy_eer'; did you mean 'toy_ear'?"),
        ("defaults:\n  - toy\n  - encoder: mel\n", "Multiple values for encoder. To override a value use 'override encoder: mel'"),
        ("defaults: 3", "defaults must be a list"),
        ("defaults:\n  - toy\nencoder: mel\n", "write '- encoder: mel' in its defaults list"),
        ("defaults:\n  - toy\n  - _self_\nencoder:\n  widht: 3\n", "bad.yaml: no field 'widht' in encoder; did you mean 'width'?"),
        ("- a list", "is not a recipe; it must hold `key: value` lines"),
        ("seed: 3", "the recipe runs stage 'align' but has no plan for it"),
        ("defaults:\n  - toy\n  - _self_\nplugin_dirs: 3\n", "plugin_dirs takes a list"),
    ],
)
def test_a_wrong_file_is_one_sentence(write, body, sentence):
    write("recipes/bad.yaml", body)
    assert sentence in message("bad")


def test_a_file_that_is_no_text_is_one_sentence(toy_house):
    (toy_house / "recipes/bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "recipes/bad.yaml cannot be read" in message("bad")
    assert "cannot be read" in recipe_doc(toy_house / "recipes/bad.yaml")


def test_a_recipe_builds_on_another(write):
    write("recipes/child.yaml", "defaults:\n  - toy\n  - override encoder: other_ear\n  - override task@s2t.task: other_work\n  - _self_\nseed: 5\n")
    recipe = load_recipe("child")
    assert (recipe.name, recipe.seed, recipe.encoder.bins, recipe.s2t.task.lines, recipe.s2t.train.steps) == ("child", 5, 8, 3, 7)


def test_recipes_are_found_by_name_by_path_and_by_folder(write, toy_house, monkeypatch):
    write("far/away.yaml", "defaults:\n  - toy\n  - _self_\nseed: 8\n")
    assert load_recipe("far/away.yaml").seed == load_recipe("far/away").seed == load_recipe("away", recipe_dirs=["far"]).seed == 8
    monkeypatch.setenv("ECHOX_RECIPES", str(toy_house / "far"))
    assert load_recipe("away").seed == 8
    assert {"away", "toy"} <= set(list_recipes())


def test_presets_of_a_recipe_beside_it_win(write):
    write("far/encoder/wide_ear.yaml", "defaults:\n  - toy_ear\n  - _self_\nwidth: 30\n")
    write("far/away.yaml", "defaults:\n  - toy\n  - _self_\n")
    assert load_recipe("far/away.yaml").encoder.width == 30


def test_a_missing_recipe_lists_those_there_are(monkeypatch):
    assert "no recipe named 'tyo'; did you mean 'toy'?; known: " in message("tyo")
    assert "no recipe file 'nowhere/x.yaml'; give the path of a YAML file, or one of the names" in message("nowhere/x.yaml")
    monkeypatch.setenv("ECHOX_RECIPES", "gone")
    assert "ECHOX_RECIPES 'gone' does not exist" in message("toy")


def test_building_blocks_are_not_listed(write):
    write("recipes/_block.yaml", "seed: 3")
    assert "_block" not in list_recipes() and "_stages" not in list_recipes()


def test_plugin_folders_are_known_before_plugins_are(write):
    write("recipes/with.yaml", "defaults:\n  - toy\n  - _self_\nplugin_dirs: [a]\n")
    assert plugin_dirs_of("with") == ["a"]
    assert plugin_dirs_of("with", ["plugin_dirs=[b,c]"]) == ["b", "c"]
    with pytest.raises(EchoxError, match="plugin_dirs takes a list of folders"):
        plugin_dirs_of("with", ["plugin_dirs=b"])


def test_a_failed_plugin_is_named_where_its_part_is_missed(write):
    from echox.plugins import discover

    write("plugins/lost.py", "import nowhere")
    discover()
    assert "plugin plugins/lost.py failed to load: ModuleNotFoundError: No module named 'nowhere'" in message("toy", "encoder=lost_ear")


def test_every_installed_recipe_composes():
    for path in Path(echox_recipes.__file__).parent.glob("[!_]*.yaml"):
        assert load_recipe(str(path)).doc, f"{path.name} does not say what it is for"


def test_find_recipe_gives_the_file(toy_house):
    assert find_recipe("toy").resolve() == toy_house / "recipes/toy.yaml"
