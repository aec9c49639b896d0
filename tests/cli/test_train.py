import pytest

from echox_cli import train


@pytest.fixture
def trained(toy_workspace, monkeypatch):
    """The recipes that the command would train."""
    recipes = []
    monkeypatch.setattr(train, "train", recipes.append)
    return recipes


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=toy", "seed=3"],
        ["--config-name", "toy", "seed=3"],
        ["--config-name=toy", "--seed", "3"],
        ["-cn", "toy", "--seed=3"],
        ["--config", "recipes/toy.yaml", "seed=3"],
        ["recipe=recipes/toy.yaml", "seed=3"],
        ["--config-path", "recipes", "--config-name", "toy", "seed=3"],
        ["seed=3", "recipe=toy", "recipe=toy"],
    ],
)
def test_ways_of_naming_a_recipe(trained, words):
    assert train.main(words) == 0
    assert [(recipe.name, recipe.seed) for recipe in trained] == [("toy", 3)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe=tyo"], "no recipe named 'tyo'; did you mean 'toy'?"),
        (["toy"], "'toy' is not key=value; did you mean recipe=toy?"),
        (
            ["recipe=toy", "--config-name", "other"],
            "the command line names several recipes: other, toy; name one",
        ),
        (["recipe=toy", "sed=3"], "no field 'sed' in Recipe; did you mean 'seed'?"),
        (["recipe=toy", "--sed", "3"], "no field 'sed' in Recipe; did you mean 'seed'?"),
        (["--config-name"], "--config-name needs a value"),
        (["recipe=toy", "-x"], "unknown option '-x'; options are --help"),
        (
            ["recipe=toy", "encoder=other_eer"],
            "no encoder named 'other_eer'; did you mean 'other_ear'?",
        ),
        (
            ["recipe=toy", "plugin_dirs=[nowhere]"],
            "plugin_dirs names the plugin folder 'nowhere', which does not exist",
        ),
        (
            ["recipe=toy", "plugin_dirs=x"],
            "plugin_dirs takes a list of folders, plugin_dirs=[a,b], not 'x'",
        ),
        (["--config", "no/such.yaml"], "no recipe file 'no/such.yaml'"),
        (["--config-path", "nowhere", "recipe=toy"], "the recipe folder 'nowhere' does not exist"),
        (["--completion", "fish"], "no completion for 'fish'; use --completion bash or zsh"),
        (["recipe=toy", "s2t.train.steps=many"], "s2t.train.steps takes an integer, not 'many'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(trained, capsys, words, sentence):
    assert train.main(words) == 2
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("plugins run: ")
    ]
    assert len(lines) == 1 and lines[0].startswith("echox-train: ") and sentence in lines[0]
    assert trained == []


def test_help_shows_the_recipes_and_the_fields(trained, capsys):
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "toy  A toy recipe." in text
    assert "seed=1   (an integer)" in text and "--config-name" in text
    assert trained == []


def test_help_explains_the_fields_of_a_recipe_that_it_is_asked_for(trained, capsys):
    assert train.main(["--help", "s2t.train", "codec.fit", "s2t.train.steps=5"]) == 0
    text = capsys.readouterr().out
    assert "  steps=1000, here 5   (an integer)\n      Optimizer steps" in text
    assert "\n\ncodec.fit={...}   (" in text and "recipes (" not in text
    assert train.main(["--help", "s2t.trian"]) == 2
    assert "s2t has no 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert trained == []


def test_cfg_shows_the_resolved_config(trained, capsys):
    assert train.main(["recipe=toy", "--cfg", "job", "encoder.width=5"]) == 0
    text = capsys.readouterr().out
    assert "- encoder: toy_ear\n" in text and "\nencoder:\n" in text and "  width: 5\n" in text
    assert "run_dir: runs/toy" in text
    assert trained == []


def test_version(capsys):
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("echox-train 0.")


def test_the_command_prints_which_plugins_it_ran(trained, capsys, write):
    write("more/extra.py", "x = 1")
    train.main(["recipe=toy", "plugin_dirs=[more]"])
    assert capsys.readouterr().err == "plugins run: plugins/toy.py, more/extra.py\n"
