import re

import pytest

from echox_cli import info


@pytest.fixture
def ask(toy_workspace, capsys):
    """Runs echox-info and returns its exit code and what it printed."""

    def run(*words):
        code = info.main(list(words))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_overview_lists_everything(ask, write):
    from echox.pipeline.plugins import discover

    write("plugins/lost.py", "import nowhere")
    discover()
    code, text = ask()
    assert code == 0
    for line in (
        "python 3.",
        "torch 2.",
        "cpu: ",
        "[echox.encoders.whisper]",
        "[plugins/toy.py]",
        "plugins/lost.py: ModuleNotFoundError",
        "A toy recipe.",
        "whisper_base",
    ):
        assert line in text


def test_a_kind_lists_its_names_and_presets(ask):
    code, text = ask("encoder")
    assert code == 0
    assert all(name in text for name in ("toy_ear", "whisper", "presets: ", "wide_ear"))


@pytest.mark.parametrize("words", [("encoder", "toy_ear"), ("encoder=toy_ear",)])
def test_a_name_is_explained(ask, words):
    code, text = ask(*words)
    assert code == 0 and "from plugins/toy.py" in text
    assert "width=4   (an integer)\n      Channels." in text
    assert "mood=calm   (calm or lively)" in text


def test_a_preset_is_explained(ask):
    code, text = ask("encoder", "wide_ear")
    assert code == 0
    assert "a preset of encoder toy_ear, recipes/encoder/wide_ear.yaml" in text
    assert "width: 9" in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("defaults: [toy_eer, _self_]", "no encoder named 'toy_eer'; did you mean 'toy_ear'?"),
        (
            "defaults: [toy_ear, _self_]\nwidht: 9",
            "no field 'widht' in encoder; did you mean 'width'?",
        ),
        ("defaults: [toy_ear, _self_]\nwidth: wide", "encoder.width"),
        ("defaults: [toy_ear", "not valid YAML at line"),
    ],
)
def test_a_preset_that_does_not_fit_is_one_sentence(ask, write, text, sentence):
    write("recipes/encoder/odd_ear.yaml", text)
    code, answer = ask("encoder", "odd_ear")
    assert code == 2
    assert answer.startswith("echox-info: encoder 'odd_ear': ") and answer.count("\n") == 1
    assert sentence in answer


def test_a_recipe_is_shown_in_full(ask):
    code, text = ask("recipe", "toy")
    assert code == 0 and "run_dir: runs/toy" in text and "steps: 7" in text


def test_an_asset_is_explained(ask):
    code, text = ask("asset", "whisper_base")
    assert code == 0 and "licence" in text and "wheel" in text
    assert re.search(r"hub id +openai/whisper-base at [0-9a-f]{40}$", text, re.M)
    # Where the choice between the two is made.
    assert "assets.packages=true" in text and "ECHOX_ASSET_SOURCE=hub" in text


def test_a_processors_rates_and_the_chosen_number_format_are_shown(ask):
    code, text = ask("device")
    assert code == 0
    assert re.search(r"^float32 +\d+ GFLOP/s on one thread of ", text, re.M)
    assert re.search(r"^bfloat16 +\d+ GFLOP/s", text, re.M)
    assert re.search(r"^chosen for new runs on the cpu: (float32|bfloat16), by ", text, re.M)


def test_every_registered_name_can_be_explained(ask):
    from echox.pipeline.plugins import REGISTRIES

    for kind, registry in REGISTRIES.items():
        for name in registry:
            assert ask(kind, name)[0] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["encoder", "wisper"], "no encoder named 'wisper'; did you mean 'whisper'?"),
        (["encoder=wisper"], "no encoder named 'wisper'; did you mean 'whisper'?"),
        (
            ["encodr"],
            "no topic or field 'encodr'; did you mean 'encoder'?; topics are encoder, backbone, "
            "codec, task, criterion, metric, recipe, asset, device, variables, and the fields",
        ),
        (["recipe", "tyo"], "no recipe named 'tyo'; did you mean 'toy'?"),
        (["asset", "whisper_bas"], "no asset named 'whisper_bas'; did you mean 'whisper_base'?"),
        (["encoder", "whisper", "large"], "cannot explain 'encoder whisper large'"),
        (["seed=3"], "cannot explain 'seed=3'"),
        (["s2t.trian"], "s2t has no 'trian'; did you mean 'train'?; its fields are task, "),
        (["codec.fit.unit"], "codec.fit has no 'unit'; did you mean 'units'?"),
        (["train.steps.more"], "no field 'train.steps.more': align.train.steps has no 'more'"),
        (["train", "recipe=echo_min"], "no recipe named 'echo_min'; did you mean 'echo_mini'?"),
        (["variables", "all"], "variables is explained as a whole, and 'all' is one word too"),
        (
            ["plugin_dirs=[nowhere]"],
            "plugin_dirs names the plugin folder 'nowhere', which does not exist",
        ),
        (["plugin_dirs=x"], "cannot explain 'plugin_dirs=x'"),
    ],
)
def test_a_wrong_word_is_one_line(ask, words, sentence):
    code, text = ask(*words)
    assert code == 2
    assert text.startswith("echox-info: ") and text.count("\n") == 1 and sentence in text


def test_fields_of_stages_and_parts_are_explained(ask):
    code, text = ask("train")
    assert code == 0 and text.startswith("align.train={...}   (TrainConfig)\n")
    assert "fields of TrainConfig: Settings of the training of one stage.\n" in text
    # The default, and the recipe's value where it is another.
    assert re.search(r"^  steps=1000, here \d+   \(an integer\)\n      Optimizer steps", text, re.M)
    code, text = ask("s2t.task.adapter", "recipe=echo_tiny")
    assert code == 0 and "fields of SpeechAdapterConfig: " in text
    assert "Encoder frames joined into one adapter frame" in text and "recipe echo_tiny;" in text
    # Of the first stage that has one.
    assert ask("task.decoder")[1].startswith("t2c.task.decoder={...}   (UnitDecoderConfig)")
    assert "fields of CodecFitConfig: " in ask("codec.fit")[1]
    code, text = ask("s2t.train.lr_schedule")
    assert text.startswith("s2t.train.lr_schedule=cosine   (constant or linear or cosine")
    assert ask("s2t.after")[1].startswith("s2t.after={}   (a mapping, each value a text)\n")
    assert "  task=<required>, here s2t   (the name of a task)\n" in ask("s2t")[1]


def test_variables_are_explained_and_those_that_are_set_shown(ask, monkeypatch):
    monkeypatch.setenv("ECHOX_CACHE", "/elsewhere")
    monkeypatch.delenv("ECHOX_ASSETS", raising=False)
    monkeypatch.setenv("ECHOX_API_KEY", "secret")
    code, text = ask("variables")
    assert "  ECHOX_API_KEY is set\n" in text and "secret" not in text
    assert code == 0 and "  ECHOX_CACHE=/elsewhere\n      Folder of what can be downloaded" in text
    assert "  ECHOX_ASSETS is unset\n" in text and "  ECHOX_CACHE=/elsewhere\n" in ask()[1]


def test_every_entry_of_a_list_is_a_whole_sentence(ask):
    from echox.pipeline.plugins import REGISTRIES

    for kind, registry in REGISTRIES.items():
        text = " ".join(ask(kind)[1].split())
        for name in registry:
            entry = registry[name]
            (first,) = re.findall(
                rf"(?:^|\] ){name} (.*?) ?\[{re.escape(entry.origin)}\]", f"] {text}"
            )
            # Those of the test itself have no docstrings.
            assert first.endswith(".") or entry.origin == "plugins/toy.py", f"{name}: {first}"


def test_help_and_version(ask):
    assert "usage: echox-info [KIND [NAME]]" in ask("--help")[1]
    assert ask("--version")[1].startswith("echox-info 0.")
