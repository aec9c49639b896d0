"""Mel vocoders of the k-means codec: a pretrained HiFi-GAN, or Griffin-Lim without weights."""

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
from echox.core.errors import AssetError, ConfigError
from echox.encoders.base import Encoder
from echox.vocoders.hifigan import HifiGan
from echox.vocoders.mel import MelRecipe, mel_filters

# Mel frames on either side that a HiFi-GAN sample depends on, rounded up: 3 of the first
# convolution and 7.5 + 1.5 + 0.75 + 0.4 of the four stages' widest blocks.
REACH_FRAMES = 16
GRIFFIN_LIM_PASSES = 32
GRIFFIN_LIM_MOMENTUM = 0.99  # torchaudio's default, of the fast variant


class Vocoder(nn.Module):
    """Mel spectrogram -> samples. `recipe` describes the mel spectrograms it takes."""

    recipe: MelRecipe
    streams: bool = True  # False: a sample depends on frames beyond `REACH_FRAMES`

    def forward(self, mel: Tensor) -> Tensor:
        """Generate samples [B, F * hop] in [-1, 1] from log mel [B, F, M].

        Where it streams, a row's samples depend on mel frames at most `REACH_FRAMES` away.
        """
        raise NotImplementedError


def build_vocoder(name: str) -> Vocoder:
    """Build the vocoder of a name.

    Args:
        name: "griffin_lim", "random" (a small untrained HiFi-GAN, for tests), or a catalogue name
            or folder of HiFi-GAN weights.

    Raises:
        AssetError: the weights are missing, or of another shape than their config says.
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
        raise AssetError(
            f"the vocoder {name!r} in {folder} does not fit its config.json; delete the folder so "
            "that it is made again"
        ) from error
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
    # The same weights in every process, without a change of the caller's random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MelHifiGan(config, MelRecipe())


class MelHifiGan(Vocoder):
    """HiFi-GAN that was trained on the mel spectrograms of its recipe."""

    def __init__(self, config: Mapping[str, Any], recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.generator = HifiGan(config)

    def forward(self, mel: Tensor) -> Tensor:
        """Generate samples [B, F * hop] in [-1, 1] from log mel [B, F, M]."""
        return self.generator(mel)


class GriffinLim(Vocoder):
    """Phase reconstruction by iteration: of low quality, but without weights.

    A sample depends on frames further away than `REACH_FRAMES`, so a batch is processed row by
    row.

    Source: Griffin and Lim 1984; Perraudin et al. 2013 (fast variant), through torchaudio.
    """

    streams = False
    window: Tensor
    inverse: Tensor

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        # Neither is a parameter of the codec, so neither is stored with it.
        self.register_buffer("window", torch.hann_window(recipe.n_fft), persistent=False)
        inverse = torch.linalg.pinv(mel_filters(recipe))  # [M, n_fft / 2 + 1]
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Generate samples [B, F * hop] in [-1, 1] from log mel [B, F, M]."""
        # Answers are generated under autocast, but there is no Fourier transform in bfloat16.
        with torch.autocast(mel.device.type, enabled=False):
            return torch.stack([self._reconstruct(row) for row in mel.float()])

    def _reconstruct(self, mel: Tensor) -> Tensor:
        """Log mel [F, M] -> samples [F * hop]."""
        # The pseudo-inverse of the filters has negative entries, a magnitude has none.
        magnitude = (mel.exp() @ self.inverse).clamp(min=0).T  # [n_fft / 2 + 1, F]
        # The iteration centres its frames and takes one more of them than there are hops.
        magnitude = F.pad(magnitude, (0, 1))
        samples = torchaudio.functional.griffinlim(
            magnitude,
            window=self.window,
            n_fft=self.recipe.n_fft,
            hop_length=self.recipe.hop_length,
            win_length=self.recipe.n_fft,
            power=1.0,
            n_iter=GRIFFIN_LIM_PASSES,
            momentum=GRIFFIN_LIM_MOMENTUM,
            length=None,
            rand_init=False,  # repeatable
        )
        T = mel.shape[0] * self.recipe.hop_length
        return F.pad(samples, (0, max(0, T - len(samples))))[:T].clamp(-1, 1)


def frames_ratio(encoder: Encoder, vocoder: Vocoder) -> int:
    """Return the number of mel frames per encoder frame.

    Raises:
        ConfigError: the two rates do not fit each other.
    """
    recipe = vocoder.recipe
    ratio = recipe.sampling_rate / recipe.hop_length / encoder.frame_rate_hz
    if encoder.rate_hz != recipe.sampling_rate or ratio != int(ratio):
        raise ConfigError(
            f"the encoder gives {encoder.frame_rate_hz} frames/s from {encoder.rate_hz} Hz, the "
            f"vocoder takes {recipe.sampling_rate / recipe.hop_length} mel frames/s at "
            f"{recipe.sampling_rate} Hz; the rates must be multiples, so choose another pair"
        )
    return int(ratio)
