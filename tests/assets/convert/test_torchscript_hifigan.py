import pickle
import zipfile

import pytest
import torch

from echox.assets.convert.torchscript_hifigan import convert, fold_weight_norm, read_torchscript
from echox.core.errors import AssetError


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pre = torch.nn.Conv1d(3, 4, 5)
        self.ups = torch.nn.ModuleList(
            [torch.nn.ConvTranspose1d(4, 2, 4), torch.nn.Conv1d(2, 1, 3)]
        )

    def forward(self, values):
        return self.ups[1](self.ups[0](self.pre(values)))


def test_the_archive_is_read_as_data(tmp_path):
    module = Small()
    torch.jit.trace(module, torch.randn(1, 3, 20)).save(tmp_path / "small.ts")
    weights = read_torchscript(tmp_path / "small.ts")
    torch.testing.assert_close(weights, dict(module.state_dict()), rtol=0, atol=0)


def test_a_network_of_another_shape_is_refused(tmp_path):
    torch.jit.trace(Small(), torch.randn(1, 3, 20)).save(tmp_path / "small.ts")
    with pytest.raises(AssetError, match="not the expected HiFi-GAN"):
        convert(tmp_path, tmp_path)


def test_an_archive_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with zipfile.ZipFile(tmp_path / "evil.ts", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(AssetError, match="neither a module nor a float tensor"):
        read_torchscript(tmp_path / "evil.ts")
    assert not (tmp_path / "ran").exists()


def test_weight_norm_is_folded():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.7)
    pair = {
        "pre.weight_g": conv.parametrizations.weight.original0.detach(),
        "pre.weight_v": conv.parametrizations.weight.original1.detach(),
        "pre.bias": conv.bias.detach(),
    }
    folded = fold_weight_norm(pair)
    assert folded.keys() == {"pre.weight", "pre.bias"}
    torch.testing.assert_close(folded["pre.weight"], conv.weight.detach())
