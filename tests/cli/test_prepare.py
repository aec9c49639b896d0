import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echox.core.registry import KINDS
from echox.evaluation.report import EvaluateConfig
from echox.pipeline.plugins import REGISTRIES, discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.scaffold import USES, template_kinds
from echox.pipeline.subjects import Subject
from echox_cli import bench, evaluate, prepare
from echox_cli.fields import summary

ROOT = Path(__file__).parent.parent.parent


def test_plugin_skeletons_of_every_kind_keep_their_contracts(workspace, capsys):
    assert template_kinds() == sorted(KINDS) == sorted(USES)
    for kind in KINDS:
        assert prepare.main(["plugin", f"sharp_{kind}", f"kind={kind}"]) == 0
        test = f"plugins/test_sharp_{kind}_{kind}.py"
        printed = capsys.readouterr().out
        assert f"python -m pytest {test}" in printed
        # Not the default recipe, which takes a quarter of an hour.
        assert f"recipe={'sharp_task' if kind == 'task' else 'echo_tiny'} " in printed
    # One process for all, since each would take seconds to import PyTorch.
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "plugins"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    discover()
    recipe = load_recipe("sharp_task", ["encoder=sharp_encoder"])
    assert type(recipe.plan("sharp_task").task) is REGISTRIES["task"]["sharp_task"].config_type


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plugim"], "echox-prepare: no command 'plugim'; did you mean 'plugin'?"),
        (["plugin"], "echox-prepare plugin: name has no value; set name=..."),
        (["plugin", "3x"], "'3x' cannot be a plugin's name"),
        (["plugin", "Ear"], "'Ear' cannot be a plugin's name"),
        (
            ["plugin", "ear", "kind=encodr"],
            "no template for a plugin of kind 'encodr'; did you mean 'encoder'?",
        ),
        (
            ["plugin", "s2t", "kind=task"],
            "task 's2t' is already registered by echox.tasks.s2t",
        ),
        (
            ["plugin", "dpo", "kind=task"],
            "criterion 'dpo' is already registered by entry point preference",
        ),
        (
            ["plugin", "whisper"],
            "encoder 'whisper' is already registered by echox.encoders.whisper",
        ),
        (["plugin", "a", "b"], "one name is taken, not 2: a b"),
        (["assets", "whisper_bas"], "no asset named 'whisper_bas'; did you mean"),
        (["units", "nowhere.jsonl"], "codec has no value; set codec=NAME, one of "),
        (
            ["units", "nowhere.jsonl", "codec=kmens"],
            "no codec named 'kmens'; did you mean 'kmeans'?",
        ),
        (["units", "nowhere.jsonl", "codec=kmeans", "codec.folder=random"], "nowhere.jsonl"),
        (["units", "a.jsonl", "codec=kmeans", "codec.folder=gone"], "gone"),
        (["units", "a.jsonl", "codec=kmeans", "device=tpu"], "device 'tpu' is unknown"),
        (["corpus", "share=0"], "share"),
        (["manifest"], "echox-prepare manifest: no source was named"),
        (["manifest", "nowhere"], "the source nowhere does not exist"),
        (["manifest", "x", "speaker=usr"], "speaker"),
        (["validate"], "echox-prepare validate: no manifest was named"),
        (["validate", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (
            ["validate", "path=x", "chek_audio=false"],
            "no field 'chek_audio' in ValidateConfig; did you mean 'check_audio'?",
        ),
        (["stats"], "no manifest was named"),
        (["stats", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["index", "data.json"], "data.json cannot be indexed"),
        (["split", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["split", "x.jsonl", "test=0"], "test 0"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(workspace, capsys, words, sentence):
    assert prepare.main(words) == 2
    text = capsys.readouterr().err
    assert sentence in text and text.count("\n") == 1


def test_an_existing_file_is_not_overwritten(workspace, write, capsys):
    path = write("plugins/ear_encoder.py", "mine = True")
    assert prepare.main(["plugin", "ear"]) == 2
    assert path.read_text() == "mine = True" and "is already there" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert prepare.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in prepare.COMMANDS)


def test_what_commands_and_subjects_do_is_a_whole_sentence(workspace, capsys):
    commands = [command for command in prepare.COMMANDS.values() if isinstance(command, Subject)]
    configs = [command.config_type for command in (*commands, *evaluate.SUBJECTS.values())]
    configs += [config for config, _, _ in bench.SUBJECTS.values()]
    for config in (*configs, EvaluateConfig):
        assert summary(config.__doc__).endswith("."), config
    for main in (prepare.main, evaluate.main, bench.main):
        assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for config in (*configs, EvaluateConfig):
        assert f" {summary(config.__doc__)} " in f" {printed} "


@pytest.mark.parametrize("command", prepare.COMMANDS)
def test_every_command_explains_itself(workspace, capsys, command):
    assert prepare.main([command, "--help"]) == 0
    assert f"usage: echox-prepare {command}" in capsys.readouterr().out


def test_units_are_written_beside_a_manifest(workspace, capsys):
    folder = workspace / "clips"
    folder.mkdir()
    soundfile.write(
        folder / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000
    )
    turns = [
        {"from": "user", "value": "Speak."},
        {"from": "assistant", "value": "Yes.", "audio": "a.wav"},
    ]
    (folder / "speech.jsonl").write_text(
        json.dumps({"id": "row", "conversations": turns}) + "\n", encoding="utf-8"
    )
    assert prepare.main(["units", "clips/speech.jsonl", "codec=kmeans", "codec.folder=random"]) == 0
    assert capsys.readouterr().out == "clips/speech.units.jsonl\n"
    assert json.loads((folder / "speech.units.jsonl").read_text(encoding="utf-8"))["codec"]


def test_a_codec_that_needs_no_fitting_is_left_alone(workspace, capsys):
    assert prepare.main(["codec", "codec=kmeans", "codec.folder=random"]) == 0
    assert "nothing was done" in capsys.readouterr().out


def test_the_commands_of_the_readme_turn_a_folder_into_split_manifests(workspace, capsys):
    """The commands one after the other, as the README has them."""
    tones = np.sin(np.arange(16_000) / 9) * np.linspace(0.01, 0.5, 16_000)
    for speaker in range(8):
        (workspace / "clips" / f"s{speaker}").mkdir(parents=True)
        for number in range(2):
            soundfile.write(workspace / f"clips/s{speaker}/{number}.flac", tones, 16_000)
            (workspace / f"clips/s{speaker}/{number}.txt").write_text(
                f"these are words {speaker} {number}"
            )
    page = (ROOT / "echox/data/README.md").read_text(encoding="utf-8")
    lines = [
        line.split() for line in page.partition("```bash\n")[2].partition("```")[0].splitlines()
    ]
    printed = []
    for command, *words in lines:
        assert command == "echox-prepare" and prepare.main(words) == 0
        printed.append(capsys.readouterr().out)
    assert [words[1] for words in lines] == ["manifest", "validate", "stats", "split", "index"]
    assert "clips/manifest.jsonl: 16 rows, 16.0 s; 0 entries left out" in printed[0]
    assert "16 good rows, 0 broken" in printed[1]
    assert (workspace / "clips/manifest.report.html").is_file()
    assert "80 words" in printed[2] and "in two parts: 0 speakers, 0 texts" in printed[3]
    assert "clips/kept.train.jsonl.idx" in printed[4]
