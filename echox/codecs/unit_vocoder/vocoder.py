"""Mel spectrogram -> waveform: a pretrained HiFi-GAN, or Griffin-Lim where no weights are wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import load_file
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.errors import AssetError

# Mel frames a HiFi-GAN sample depends on, one side, rounded up: 3 of the first convolution and 7.5 + 1.5 + 0.75 + 0.4 of the
# four stages' widest blocks.
REACH_FRAMES = 16
GRIFFIN_LIM_PASSES = 32


@dataclass(frozen=True, slots=True)
class MelRecipe:
    """How a waveform becomes the mel spectrogram that a vocoder was trained on."""

    sampling_rate: int = 16_000
    n_fft: int = 640
    hop_length: int = 160
    num_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8_000.0
    clamp_min: float = 1e-5
    padding_samples: int = 240


class MelSpectrogram(nn.Module):
    """Natural logarithm of a magnitude mel spectrogram, frames not centred, Slaney's scale and norm."""

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("window", torch.hann_window(recipe.n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(recipe), persistent=False)  # [n_fft / 2 + 1, M]

    def forward(self, samples: Tensor) -> Tensor:
        """samples [T] in [-1, 1] -> [F, M] with F = T // hop; a clip shorter than the padding gives no frame."""
        recipe = self.recipe
        if len(samples) <= recipe.padding_samples:
            return samples.new_zeros(0, recipe.num_mels)
        padded = F.pad(samples[None], (recipe.padding_samples, recipe.padding_samples), mode="reflect")[0]
        spectrum = torch.stft(padded, recipe.n_fft, recipe.hop_length, window=self.window, center=False, return_complex=True)
        return (spectrum.abs().T @ self.filters).clamp(min=recipe.clamp_min).log()


def mel_filters(recipe: MelRecipe) -> Tensor:
    """[n_fft / 2 + 1, M]."""
    return torchaudio.functional.melscale_fbanks(
        recipe.n_fft // 2 + 1, recipe.fmin, recipe.fmax, recipe.num_mels, recipe.sampling_rate, norm="slaney", mel_scale="slaney"
    )


def mel_centres_hz(recipe: MelRecipe) -> Tensor:
    """Frequency of each mel bin's peak, [M] Hz."""
    bins_hz = torch.linspace(0, recipe.sampling_rate / 2, recipe.n_fft // 2 + 1)
    filters = mel_filters(recipe)
    return (bins_hz[:, None] * filters).sum(0) / filters.sum(0).clamp(min=1e-9)


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
    vocoder = HifiGan(config, recipe)
    try:
        vocoder.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise AssetError(f"the vocoder {name!r} in {folder} does not fit its config.json; delete the folder so that it is made again") from error
    return vocoder


def _random_hifigan() -> HifiGan:
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
        return HifiGan(config, MelRecipe())


class HifiGan(Vocoder):
    """The generator of HiFi-GAN with plain weights (no weight norm).

    Source: Kong et al. 2020, arXiv:2010.05646; names of the weights as in its release.
    """

    def __init__(self, config: dict, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.slope, self.final_slope = config["leaky_relu_slope"], config["final_leaky_relu_slope"]
        channels = config["upsample_initial_channel"]
        self.conv_pre = nn.Conv1d(config["model_in_dim"], channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        stages = zip(
            config["upsample_rates"], config["upsample_kernel_sizes"], config["upsample_paddings"], config["upsample_output_paddings"], strict=True
        )
        for rate, width, padding, output_padding in stages:
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, width, rate, padding=padding, output_padding=output_padding))
            channels //= 2
            for width, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(_ResidualBlock(channels, width, dilations, self.slope))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        states = self.conv_pre(mel.transpose(1, 2))
        per_stage = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            states = up(F.leaky_relu(states, self.slope))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            states = sum(block(states) for block in blocks) / per_stage
        # Eight bits of mantissa in the last convolution would be heard as noise.
        with torch.autocast(mel.device.type, enabled=False):
            return torch.tanh(self.conv_post(F.leaky_relu(states.float(), self.final_slope)))[:, 0]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, dilations: list[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, width, padding=width // 2 * d, dilation=d) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, width, padding=width // 2) for _ in dilations)

    def forward(self, states: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            states = states + plain(F.leaky_relu(dilated(F.leaky_relu(states, self.slope)), self.slope))
        return states


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
        return torch.stack([self._row(row) for row in mel])

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
