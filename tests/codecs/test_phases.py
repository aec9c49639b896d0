"""Phases of a fit: kept until it is done, and made again where their files were damaged."""

import pytest
import torch

from echox.codecs.quantization.phases import WORK_FOLDER, Phases


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100])
def test_a_damaged_result_is_made_again_with_a_line(tmp_path, capsys, content):
    made = []

    def compute():
        made.append(1)
        return {"values": torch.ones(3)}

    def tensors():
        return Phases(tmp_path, {"seed": 1}).tensors("units", compute)["values"]

    for _ in range(2):
        assert torch.equal(tensors(), torch.ones(3))
    assert len(made) == 1 and "damaged" not in capsys.readouterr().err
    (tmp_path / WORK_FOLDER / "units.safetensors").write_bytes(content)
    assert torch.equal(tensors(), torch.ones(3)) and len(made) == 2
    assert capsys.readouterr().err.count("units.safetensors is damaged") == 1
