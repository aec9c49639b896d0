"""Mel spectrogram -> waveform: a pretrained HiFi-GAN, or Griffin-Lim where no weights are wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import load_file
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.errors import AssetError
from echox.vocoders.hifigan import HifiGan
from echox.vocoders.mel import MelRecipe, mel_filters

# Mel frames a HiFi-GAN sample depends on, one side, rounded up: 3 of the first convolution and 7.5 + 1.5 + 0.75 + 0.4 of the
# four stages' widest blocks.
REACH_FRAMES = 16
GRIFFIN_LIM_PASSES = 32


class Vocoder(nn.Module):
    """Turns mels into samples; `recipe` says which mels."""

    recipe: MelRecipe

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B, F, M] -> samples [B, F * hop] in [-1, 1].

        A row's samples depend on mel frames at most `REACH_FRAMES` away.
        """
        raise NotImplementedError


def build_vocoder(name: str) -> Vocoder:
    """The vocoder of a name.

    Args:
        name: "griffin_lim", "random" (a small untrained HiFi-GAN, for tests), or a catalogue name or folder of HiFi-GAN weights.
    Raises:
        AssetError: the weights cannot be had or are of another shape than their config says.
    """
    if name == "griffin_lim":
        return GriffinLim(MelRecipe())
    if name == "random":
        return _random_hifigan()
    folder = Path(asset_folder(name))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    recipe = MelRecipe(**{key: config["mel"][key] for key in MelRecipe.__dataclass_fields__})
    vocoder = MelHifiGan(config, recipe)
    try:
        vocoder.generator.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise AssetError(f"the vocoder {name!r} in {folder} does not fit its config.json; delete the folder so that it is made again") from error
    return vocoder


def _random_hifigan() -> MelHifiGan:
    config = {
        "model_in_dim": 80,
        "upsample_initial_channel": 16,
        "upsample_rates": [16, 10],
        "upsample_kernel_sizes": [32, 20],
        "upsample_paddings": [8, 5],
        "upsample_output_paddings": [0, 0],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "leaky_relu_slope": 0.1,
        "final_leaky_relu_slope": 0.01,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MelHifiGan(config, MelRecipe())


class MelHifiGan(Vocoder):
    """A HiFi-GAN that was trained on the mels of its recipe."""

    def __init__(self, config: Mapping[str, Any], recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.generator = HifiGan(config)

    def forward(self, mel: Tensor) -> Tensor:
        return self.generator(mel)


class GriffinLim(Vocoder):
    """Phases by iteration. It reaches further than `REACH_FRAMES`, so a batch is done row by row; rough, but needs no weights.

    Source: Griffin and Lim 1984; Perraudin et al. 2013 (fast variant), through torchaudio.
    """

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("window", torch.hann_window(recipe.n_fft), persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(mel_filters(recipe)), persistent=False)  # [M, n_fft / 2 + 1]

    def forward(self, mel: Tensor) -> Tensor:
        # Answers are spoken under autocast, but there is no Fourier transform in bfloat16.
        with torch.autocast(mel.device.type, enabled=False):
            return torch.stack([self._row(row) for row in mel.float()])

    def _row(self, mel: Tensor) -> Tensor:
        """[F, M] -> [F * hop]."""
        recipe = self.recipe
        magnitude = (mel.exp() @ self.inverse).clamp(min=0).T  # [n_fft / 2 + 1, F]
        # The iteration centres its frames and takes one more of them than there are hops.
        magnitude = F.pad(magnitude, (0, 1))
        samples = torchaudio.functional.griffinlim(
            magnitude, self.window, recipe.n_fft, recipe.hop_length, recipe.n_fft, 1.0, GRIFFIN_LIM_PASSES, 0.99, None, rand_init=False
        )
        wanted = mel.shape[0] * recipe.hop_length
        return F.pad(samples, (0, max(0, wanted - len(samples))))[:wanted].clamp(-1, 1)
