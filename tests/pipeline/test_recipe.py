import dataclasses
import inspect
import textwrap
from pathlib import Path

import echox_recipes
import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from echox.core.errors import EchoxError
from echox.pipeline import recipe as recipe_module
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import from_dict, load_recipe, to_dict
from echox.pipeline.recipe_files import (
    find_recipe,
    list_recipes,
    plugin_dirs_of,
    recipe_doc,
)

pytestmark = pytest.mark.usefixtures("toy_workspace")


def message(name, *overrides):
    """The error of a recipe; one line, whatever the fault."""
    with pytest.raises(EchoxError) as error:
        load_recipe(name, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_example_of_the_docstring_composes(write):
    example = inspect.getdoc(recipe_module).partition("differs from the dataclasses' defaults:")[2]
    write("recipes/my_run.yaml", textwrap.dedent(example.strip("\n")))
    recipe = load_recipe("my_run")
    assert (recipe.stages["s2t"].train.steps, recipe.encoder.weights, recipe.codec.folder) == (
        400,
        "whisper_base",
        "runs/my_run/codec",
    )


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
    assert (
        recipe.encoder.width,
        recipe.stages["s2t"].train.steps,
        recipe.stages["s2t"].task.rows,
    ) == (9, 7, 3)
    assert recipe.planned == ["s2t"] and recipe.plan("s2t") is recipe.stages["s2t"]


def test_it_survives_a_checkpoint():
    recipe = load_recipe(
        "toy", ["encoder.mood=lively", "s2t.task=other_work", "codec.gains.low=0.5"]
    )
    data = to_dict(recipe)
    assert data["encoder"] == {"name": "toy_ear", "width": 9, "mood": "lively"}
    assert data["codec"]["encoder"]["name"] == "toy_ear"
    assert from_dict(data) == recipe


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
        (
            ["codec.gains.low=0.5", "codec.gains.high=2"],
            lambda r: r.codec.gains,
            {"low": 0.5, "high": 2.0},
        ),
        (["s2t.task=other_work"], lambda r: r.stages["s2t"].task.lines, 3),
        (["task@s2t.task=other_work"], lambda r: r.stages["s2t"].task.lines, 3),
        (
            ["s2t.train={steps: 9, lr: 0.1}"],
            lambda r: (r.stages["s2t"].train.steps, r.stages["s2t"].train.lr),
            (9, 0.1),
        ),
        (
            [
                "stages.echo.task=toy_work",
                "echo.criterion=toy_aim",
                "echo.train.steps=2",
                "stage=echo",
            ],
            lambda r: (r.planned, r.stages["echo"].train.steps),
            (["echo"], 2),
        ),
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
        (
            "s2t.train.stepz=3",
            "override 's2t.train.stepz=3': no field 'stepz' in stages.s2t.train; "
            "did you mean 'steps'?",
        ),
        ("steps=3", "no field 'steps' in Recipe; did you mean stages.s2t.train.steps?"),
        ("foo=1", "no field 'foo' in Recipe; its fields are name, doc"),
        ("+foo=1", "no field 'foo' in Recipe"),
        (
            "encoder.bins=3",
            "no field 'bins' in encoder; its fields are train, lr_scale, width, mood",
        ),
        ("hydra.run.dir=x", "no field 'hydra' in Recipe"),
        ("seed.x=3", "seed takes an integer, not {}"),
        (
            "encoder=other_eer",
            "no encoder named 'other_eer'; did you mean 'other_ear'?; "
            "known: mel, other_ear, ssl, toy_ear, whisper, wide_ear",
        ),
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
        ("only=s2t", "only takes a list, each a text, not 's2t'"),
        ("only=[s3t]", "no stage named 's3t'; did you mean 's2t'?; the recipe has s2t"),
        (
            "stages=[s2t]",
            "stages holds the plans of the stages; only=[NAME, ...] trains some of them",
        ),
        ("stage=s3t", "no stage named 's3t'; did you mean 's2t'?; the recipe has s2t"),
        ("stages.s2t=null", "the recipe has no stage; add '- _stages' to its defaults list"),
        ("stages.s2t=3", "stages.s2t takes StagePlan or null, not 3"),
        ("s3t.train.steps=3", "no field or stage named 's3t'; did you mean 's2t'?"),
        (
            "turns.train.steps=3",
            "no stage named 'turns'; the recipe has s2t, and a new stage begins with "
            "stages.turns.task=NAME",
        ),
        ("stages.echo.train.steps=3", "a new stage begins with stages.echo.task=NAME"),
        (
            "stages.echo.task=toy_work",
            "stages.echo.criterion has no value; set stages.echo.criterion=NAME, one of ",
        ),
        ("device=tpu", "device 'tpu' is unknown; use auto, cpu, cuda or cuda:N"),
        ("device=cuda:x", "device 'cuda:x' is unknown"),
        ("encoder.width=0", "encoder: width must be at least 1, not 0"),
        ("s2t.train.steps=0", "stages.s2t.train: training config: steps must be at least 1, not 0"),
        (
            "run_dir=${nam}",
            "run_dir refers to a field that does not exist (Interpolation key 'nam' not found)",
        ),
        ("seed=[1", "override 'seed=[1': the value cannot be read"),
        ("seed=1,2", "override 'seed=1,2': it gives several values; a list is written seed=[a,b]"),
        ("~seed", "override '~seed' deletes a field, which configs do not allow"),
        ("seed", "'seed' is not an override; write key=value"),
        ("=3", "'=3' is not an override; write key=value"),
        ("a..b=3", "'a..b' is not a field name"),
        ("s2t.train.lr=fast", "s2t.train.lr takes a number, not 'fast'"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, sentence):
    assert sentence in message("toy", override)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("seed: [", "not valid YAML at line"),
        ("seed: 1\nseed: 2", "not valid YAML at line 2, column 1: found duplicate key seed"),
        ("seed: abc", "bad.yaml: seed takes an integer, not 'abc'"),
        ("sed: 3", "bad.yaml: no field 'sed' in Recipe; did you mean 'seed'?"),
        (
            "stages: {s2t: {train: {stepz: 3}}}",
            "bad.yaml: no field 'stepz' in stages.s2t.train; did you mean 'steps'?",
        ),
        ("defaults:\n  - toyy\n", "bad.yaml: the defaults list names 'toyy', which is in none of"),
        ("defaults:\n  - toyy\n", "did you mean 'toy'?"),
        (
            "defaults:\n  - encoder: wide_eer\n",
            "bad.yaml: no encoder named 'wide_eer'; did you mean 'wide_ear'?",
        ),
        (
            "defaults:\n  - toy\n  - override encoder: toy_eer\n",
            "bad.yaml: no encoder named 'toy_eer'; did you mean 'toy_ear'?",
        ),
        (
            "defaults:\n  - toy\n  - encoder: mel\n",
            "Multiple values for encoder. To override a value use 'override encoder: mel'",
        ),
        ("defaults: 3", "defaults must be a list"),
        ("defaults:\n  - toy\nencoder: mel\n", "write '- encoder: mel' in its defaults list"),
        (
            "defaults:\n  - toy\n  - _self_\nencoder:\n  widht: 3\n",
            "bad.yaml: no field 'widht' in encoder; did you mean 'width'?",
        ),
        (
            "s2t: {train: {steps: 3}}",
            "says 's2t:' beside its fields; plans of stages stand below 'stages:'",
        ),
        (
            "defaults:\n  - toy\n  - _self_\nturns: {after: {s2t: s2t}, train: {steps: 3}}\n",
            "says 'turns:' beside its fields; plans of stages stand below 'stages:', "
            "as stages: {turns: {...}}",
        ),
        ("- a list", "is not a recipe; it must hold `key: value` lines"),
        (
            "seed: 3",
            "the recipe has no stage; add '- _stages' to its defaults list, "
            "or set stages.NAME.task",
        ),
        ("defaults:\n  - toy\n  - _self_\nplugin_dirs: 3\n", "plugin_dirs takes a list"),
    ],
)
def test_a_wrong_file_is_one_sentence(write, body, sentence):
    write("recipes/bad.yaml", body)
    assert sentence in message("bad")


def test_a_file_that_is_no_text_is_one_sentence(toy_workspace):
    (toy_workspace / "recipes/bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "recipes/bad.yaml cannot be read" in message("bad")
    assert "cannot be read" in recipe_doc(toy_workspace / "recipes/bad.yaml")


def test_a_recipe_builds_on_another(write):
    write(
        "recipes/child.yaml",
        "defaults:\n  - toy\n  - override encoder: other_ear\n"
        "  - override task@stages.s2t.task: other_work\n  - _self_\nseed: 5\n",
    )
    recipe = load_recipe("child")
    assert (
        recipe.name,
        recipe.seed,
        recipe.encoder.bins,
        recipe.stages["s2t"].task.lines,
        recipe.stages["s2t"].train.steps,
    ) == ("child", 5, 8, 3, 7)


def test_stages_are_trained_in_the_order_in_which_they_build_on_each_other(write):
    write(
        "plugins/staged.py",
        """
        from dataclasses import dataclass
        from echox.tasks.base import TASKS, TaskConfig

        @dataclass(kw_only=True, slots=True)
        class LaterConfig(TaskConfig):
            rows: int = 1

        @TASKS.register("later", LaterConfig)
        class Later:
            parents, continues, needs, takes, use = ("s2t",), ("more",), (), (), None
        """,
    )
    discover()
    later = [
        "stages.a.task=later",
        "a.criterion=toy_aim",
        "stages.b.task=toy_work",
        "b.criterion=toy_aim",
    ]
    recipe = load_recipe("toy", later)
    assert recipe.members == recipe.planned == ["s2t", "a", "b"]
    assert recipe.parents("a") == {"s2t": "s2t"}
    recipe = load_recipe("toy", [*later, "a.after={s2t: b, more: s2t}"])
    assert recipe.members == ["s2t", "b", "a"] and recipe.with_ancestors(["a"]) == ["b", "s2t", "a"]
    assert recipe.parents("a") == {"s2t": "b", "more": "s2t"}
    assert load_recipe("toy", [*later, "only=[a,b]"]).members == ["a", "b"]
    assert "stages build on each other in a circle: a -> a" in message_of_members(
        "toy", *later, "a.after={s2t: a}"
    )


def test_a_role_that_a_task_does_not_have_is_refused():
    recipe = load_recipe("echo_tiny", ["s2t.after={algn: align}"])
    with pytest.raises(EchoxError, match="names the role 'algn'.*did you mean 'align'"):
        recipe.check()
    load_recipe("echo_tiny", ["s2t.after={align: align}"]).check()


def message_of_members(name, *overrides):
    with pytest.raises(EchoxError) as caught:
        list(load_recipe(name, overrides).members)
    return str(caught.value)


def test_a_recipe_with_a_field_for_each_stage_is_read():
    recipe = load_recipe("toy")
    plain = to_dict(recipe)
    former = {**plain, **plain["stages"], "stages": ["s2t"], "align": None}
    del former["only"]
    assert from_dict(former) == dataclasses.replace(recipe, only=["s2t"])


def test_recipes_are_found_by_name_by_path_and_by_folder(write, toy_workspace, monkeypatch):
    write("far/away.yaml", "defaults:\n  - toy\n  - _self_\nseed: 8\n")
    assert (
        load_recipe("far/away.yaml").seed
        == load_recipe("far/away").seed
        == load_recipe("away", recipe_dirs=["far"]).seed
        == 8
    )
    monkeypatch.setenv("ECHOX_RECIPES", str(toy_workspace / "far"))
    assert load_recipe("away").seed == 8
    assert {"away", "toy"} <= set(list_recipes())


def test_presets_of_a_recipe_beside_it_win(write):
    write("far/encoder/wide_ear.yaml", "defaults:\n  - toy_ear\n  - _self_\nwidth: 30\n")
    write("far/away.yaml", "defaults:\n  - toy\n  - _self_\n")
    assert load_recipe("far/away.yaml").encoder.width == 30


def test_a_missing_recipe_lists_those_there_are(monkeypatch):
    assert "no recipe named 'tyo'; did you mean 'toy'?; known: " in message("tyo")
    assert (
        "no recipe file 'nowhere/x.yaml'; give the path of a YAML file, or one of the names"
        in message("nowhere/x.yaml")
    )
    monkeypatch.setenv("ECHOX_RECIPES", "gone")
    assert "ECHOX_RECIPES 'gone' does not exist" in message("toy")


def test_building_blocks_are_not_listed(write):
    write("recipes/_block.yaml", "seed: 3")
    assert "_block" not in list_recipes() and "_stages" not in list_recipes()


def test_plugin_folders_are_read_before_plugins_are_loaded(write):
    write("recipes/with.yaml", "defaults:\n  - toy\n  - _self_\nplugin_dirs: [a]\n")
    assert plugin_dirs_of("with") == ["a"]
    assert plugin_dirs_of("with", ["plugin_dirs=[b,c]"]) == ["b", "c"]
    with pytest.raises(EchoxError, match="plugin_dirs takes a list of folders"):
        plugin_dirs_of("with", ["plugin_dirs=b"])


@pytest.mark.parametrize(
    ("defaults", "own", "folders"),
    [
        (["parent", "_self_"], None, ["b"]),
        (["parent"], None, ["b"]),
        (["/parent", "_self_"], ["c"], ["c"]),
        (["_self_", "parent"], ["c"], ["b"]),
        (["parent", "_self_"], [], []),
        (["parent@_global_", "_self_"], None, ["b"]),
        (["toy", "bare", "_self_"], None, []),
    ],
)
def test_plugin_folders_of_inherited_recipes_count(write, defaults, own, folders):
    write("recipes/grandparent.yaml", "defaults: [toy, _self_]\nplugin_dirs: [a]\n")
    write("recipes/parent.yaml", "defaults: [grandparent, _self_]\nplugin_dirs: [b]\n")
    write("recipes/bare.yaml", "seed: 2\n")
    body = {"defaults": defaults} | ({} if own is None else {"plugin_dirs": own})
    write("recipes/child.yaml", yaml.safe_dump(body))
    # What is read before composing is what composing gives.
    assert plugin_dirs_of("child") == folders == load_recipe("child").plugin_dirs


def test_a_command_loads_the_plugins_of_an_inherited_recipe(write, capsys):
    from echox_cli import train

    source = """
        from dataclasses import dataclass
        from echox.encoders.base import ENCODERS, EncoderConfig

        @dataclass(kw_only=True, slots=True)
        class LateConfig(EncoderConfig):
            width: int = 4

        @ENCODERS.register("late_ear", LateConfig)
        class LateEncoder:
            pass
    """
    write("lab/late.py", source)
    parent = "defaults: [toy, {override encoder: late_ear}, _self_]\nplugin_dirs: [lab]\n"
    write("recipes/parent.yaml", parent)
    write("recipes/child.yaml", "defaults: [parent, _self_]\nseed: 5\n")
    assert train.main(["recipe=child", "--cfg"]) == 0
    assert "- encoder: late_ear\n" in capsys.readouterr().out


def test_a_circle_of_recipes_is_refused_in_a_sentence(write):
    write("recipes/one.yaml", "defaults: [two, _self_]\n")
    write("recipes/two.yaml", "defaults: [one, _self_]\n")
    with pytest.raises(EchoxError, match="in a circle: one -> two -> one; break it"):
        plugin_dirs_of("one")
    assert "one.yaml: files inherit from each other in a circle: one -> two -> one" in message(
        "one"
    )


def test_a_failed_plugin_is_named_where_its_part_is_missing(write):
    from echox.pipeline.plugins import discover

    write("plugins/lost.py", "import nowhere")
    discover()
    assert (
        "plugin plugins/lost.py failed to load: ModuleNotFoundError: No module named 'nowhere'"
        in message("toy", "encoder=lost_ear")
    )


def test_every_installed_recipe_composes():
    for path in Path(echox_recipes.__file__).parent.glob("[!_]*.yaml"):
        recipe = load_recipe(str(path))
        assert recipe.doc, f"{path.name} does not say what it is for"
        recipe.check()


def test_find_recipe_gives_the_file(toy_workspace):
    assert find_recipe("toy").resolve() == toy_workspace / "recipes/toy.yaml"
