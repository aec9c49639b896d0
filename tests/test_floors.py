"""The floors of the house, kept by import-linter's contracts in pyproject.toml."""

from pathlib import Path

from importlinter.cli import lint_imports


def test_no_room_reaches_up_or_sideways(capsys):
    status = lint_imports(config_filename=str(Path(__file__).parent.parent / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out
