import shutil
import subprocess

import pytest

from echox_cli import completion, evaluate, info, prepare, train


@pytest.fixture
def complete(toy_workspace):
    """Returns the completions of a command for an unfinished line."""
    return lambda command, line: completion.complete(line, command.offers)


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("echox-train recipe=to", ["recipe=toy"]),
        ("echox-train --config-name to", ["toy"]),
        ("echox-train --config-n", ["--config-name"]),
        ("echox-train recipe=toy enc", ["encoder=", "encoder."]),
        ("echox-train recipe=toy encoder=other", ["encoder=other_ear"]),
        ("echox-train recipe=toy encoder=wi", ["encoder=wide_ear"]),
        (
            "echox-train recipe=toy encoder=other_ear encoder.",
            ["encoder.train=", "encoder.lr_scale=", "encoder.bins="],
        ),
        ("echox-train recipe=toy encoder.mood=", ["encoder.mood=calm", "encoder.mood=lively"]),
        ("echox-train recipe=toy s2t.train.lr", ["s2t.train.lr=", "s2t.train.lr_schedule="]),
        (
            "echox-train recipe=toy s2t.train.tensorboard=",
            ["s2t.train.tensorboard=true", "s2t.train.tensorboard=false"],
        ),
        ("echox-train recipe=toy s2t.task=other", ["s2t.task=other_work"]),
        ("echox-train recipe=toy nonsense=1 see", ["seed="]),
        ("echox-train recipe=nowhere see", ["seed="]),
        ("echox-train recipe=toy run_dir='a z", []),
    ],
)
def test_a_line_with_a_recipe_is_completed(complete, line, offers):
    assert complete(train, line) == offers


def test_lines_of_other_commands_are_completed(complete):
    assert complete(prepare, "echox-prepare pl") == ["plugin"]
    assert complete(prepare, "echox-prepare plugin ki") == ["kind="]
    assert complete(prepare, "echox-prepare labels recipe=to") == ["recipe=toy"]
    assert complete(evaluate, "echox-evaluate abl") == ["ablation"]
    assert complete(evaluate, "echox-evaluate ablation way") == ["ways."]
    assert complete(info, "echox-info enc") == ["encoder"]
    assert complete(info, "echox-info encoder wh") == ["whisper"]
    assert complete(info, "echox-info recipe to") == ["toy"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_gets_the_part_after_the_equals_sign(toy_workspace, capsys, write):
    assert train.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    write("bin/echox-train", '#!/bin/sh\necho "encoder=other_ear"\n').chmod(0o755)
    shell = f"""
        PATH="$PWD/bin:$PATH"
        {script}
        COMP_LINE="echox-train recipe=toy encoder=ot"; COMP_POINT=${{#COMP_LINE}}
        _echox_train
        echo "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=600)
    assert result.stdout == "other_ear\n", result.stderr


def test_zsh_reads_the_same_script(capsys):
    assert train.main(["--completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert train.main(["--completion", "bash"]) == 0
    preparation, loads, rest = script.partition("autoload -U +X bashcompinit && bashcompinit\n")
    assert "compinit" in preparation and loads and rest == capsys.readouterr().out


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_runs_the_script(toy_workspace, capsys, write):
    assert train.main(["--completion", "zsh"]) == 0
    script = capsys.readouterr().out
    write("bin/echox-train", '#!/bin/sh\necho "encoder=other_ear"\n').chmod(0o755)
    shell = f"""
        PATH="$PWD/bin:$PATH"
        {script}
        COMP_LINE="echox-train recipe=toy encoder=ot"; COMP_POINT=${{#COMP_LINE}}
        _echox_train
        print -r -- "$COMPREPLY"; print -r -- $_comps[echox-train]
    """
    result = subprocess.run(["zsh", "-f", "-c", shell], capture_output=True, text=True, timeout=600)
    assert result.stdout.splitlines()[0] == "encoder=other_ear", result.stderr
    assert "_bash_complete" in result.stdout
