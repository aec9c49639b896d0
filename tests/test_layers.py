"""The layers of the package, kept by import-linter's contracts in pyproject.toml."""

from pathlib import Path

import importlinter.cli


def test_no_package_imports_from_above_or_beside(capsys, monkeypatch):
    # It would switch off every logger that is there, and tests after this one read warnings.
    monkeypatch.setattr(importlinter.cli, "_configure_logging", lambda verbose: None)
    status = importlinter.cli.lint_imports(
        config_filename=str(Path(__file__).parent.parent / "pyproject.toml"), no_cache=True
    )
    assert status == 0, capsys.readouterr().out
