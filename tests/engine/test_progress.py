"""What a person sees where there is no terminal."""

import pytest

from echox.engine import progress


@pytest.mark.parametrize(("speaks", "lines"), [(True, 2), (False, 0)])
def test_lines_now_and_then_and_none_on_other_ranks(capsys, monkeypatch, speaks, lines):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1e9)
    shown = progress.Progress("toy", step=8, steps=10, speaks=speaks)
    for _ in range(2):
        shown.update(loss=1.5, lr=1e-3, targets_per_s=1200, examples_per_s=3)
    shown.say("a sentence")
    shown.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    if speaks:
        assert said == ["toy 10/10: loss 1.5, lr 1.00e-03, 1,200 targets/s, 3.0 examples/s, 00:00 left", "toy: a sentence"]
