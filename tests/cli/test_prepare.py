import subprocess
import sys

import pytest

from echox_cli import prepare


def test_a_plugin_skeleton_keeps_its_contract(house, capsys):
    assert prepare.main(["plugin", "sharp_ear", "kind=encoder"]) == 0
    assert "python -m pytest plugins/test_sharp_ear_encoder.py" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "plugins/test_sharp_ear_encoder.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plugim"], "echox-prepare: no command 'plugim'; did you mean 'plugin'?"),
        (["plugin"], "echox-prepare plugin: name has no value; set name=..."),
        (["plugin", "3x"], "'3x' cannot be a plugin's name"),
        (["plugin", "Ear"], "'Ear' cannot be a plugin's name"),
        (["plugin", "ear", "kind=encodr"], "no template for a plugin of kind 'encodr'; did you mean 'encoder'?"),
        (["plugin", "whisper"], "encoder 'whisper' is already registered by echox.encoders.whisper"),
        (["plugin", "a", "b"], "one name is taken, not 2: a b"),
        (["assets", "whisper_bas"], "no asset named 'whisper_bas'; did you mean"),
        (["manifest"], "echox-prepare manifest: "),
        (["manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["manifest", "path=x", "chek_audio=false"], "no field 'chek_audio' in ManifestCheckConfig; did you mean 'check_audio'?"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(house, capsys, words, sentence):
    assert prepare.main(words) == 2
    text = capsys.readouterr().err
    assert sentence in text and text.count("\n") == 1


def test_an_existing_file_is_not_overwritten(house, write, capsys):
    path = write("plugins/ear_encoder.py", "mine = True")
    assert prepare.main(["plugin", "ear"]) == 2
    assert path.read_text() == "mine = True" and "is already there" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert prepare.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in prepare.COMMANDS)


@pytest.mark.parametrize("command", prepare.COMMANDS)
def test_every_command_explains_itself(house, capsys, command):
    assert prepare.main([command, "--help"]) == 0
    assert f"usage: echox-prepare {command}" in capsys.readouterr().out
