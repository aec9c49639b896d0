"""A published model made ready to be trained: what is frozen, what learns, and where LoRA goes; and the way back to a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from echox.assets.shapes import UNTRAINED
from echox.assets.tensors import LazyTensors, Spec, specs_of
from echox.backbones.base import LoraConfig, add_lora
from echox.encoders.base import Encoder
from echox.errors import ConfigError
from echox.models.published.compatibility import Compatibility, with_form
from echox.models.published.folder import build, outline, read_release
from echox.models.published.model import PublishedEchoX
from echox.models.published.names import DENOISER, their_name
from echox.models.published.translator import UnitTranslator, denoising_adapter
from echox.models.published.untrained import TINY, shape_named, untrained_model

RANDOM = "random"  # a tiny untrained model, for tests
LORA_A, LORA_B = "lora_A.default.", "lora_B.default."


class HearingStudent(nn.Module):
    """The whole model behind a frozen encoder."""

    def __init__(self, encoder: Encoder, release: PublishedEchoX) -> None:
        super().__init__()
        self.encoder = encoder
        self.release = release


class SpeakingStudent(nn.Module):
    """The unit translator by itself: T2C needs no language model."""

    def __init__(self, translator: UnitTranslator) -> None:
        super().__init__()
        self.translator = translator


def is_untrained(checkpoint: str) -> bool:
    """Whether a field of a checkpoint asks for random weights."""
    return checkpoint == RANDOM or checkpoint.startswith(UNTRAINED)


def config_of(checkpoint: str, feature_dim: int | None = None) -> dict[str, Any]:
    """The config.json of what training starts from.

    Args:
        checkpoint: a published folder, "random", or "random:NAME".
        feature_dim: channels of the encoder, to which the tiny random model adapts itself.
    Raises:
        CheckpointError, ConfigError: the folder is none. AssetError: no shape of that name is known.
    """
    if checkpoint == RANDOM:
        return dict(TINY) | ({"adapter_size": feature_dim} if feature_dim else {})
    if checkpoint.startswith(UNTRAINED):
        return shape_named(checkpoint.removeprefix(UNTRAINED))
    return read_release(checkpoint).config


def starting_model(checkpoint: str, compatibility: Compatibility, feature_dim: int | None = None) -> PublishedEchoX:
    """The model that training starts from, weights as they are stored; one that came without a denoising adapter gets a fresh one.

    Raises:
        CheckpointError, ConfigError, AssetError: as `config_of`; or a tensor is missing or misshapen.
    """
    if is_untrained(checkpoint):
        return untrained_model(config_of(checkpoint, feature_dim), compatibility)
    model = build(read_release(checkpoint), compatibility=compatibility, dtype=None)
    complete(model)
    return model


def complete(model: PublishedEchoX) -> None:
    """Give a unit translator that was only pretrained its denoising adapter."""
    if model.translator is not None and model.translator.denoiser is None:
        config = model.language.body.config
        model.translator.denoiser = denoising_adapter(config.hidden_size, config.intermediate_size)


def outline_of(checkpoint: str, compatibility: Compatibility, feature_dim: int | None = None) -> PublishedEchoX:
    """The same without reading weights; to be called where the default device is meta."""
    if is_untrained(checkpoint):
        return untrained_model(config_of(checkpoint, feature_dim), compatibility)
    model = outline(read_release(checkpoint), compatibility=compatibility)
    complete(model)
    return model


def choose_trained(model: PublishedEchoX, modules: Iterable[str], lora: LoraConfig | None = None) -> None:
    """Freeze a model but for some modules and LoRA on its language model.

    Args:
        modules: names of the release ("mm_projector1", "unit_translator.adapter"), with or without "model." before them.
    Raises:
        ConfigError: the model has no such module.
    """
    model.requires_grad_(False)
    if lora is not None:
        add_lora(model.language.body, lora)
    for module in modules:
        found = [parameter for name, parameter in model.named_parameters() if _is_below(their_name(name), module) and "lora_" not in name]
        if not found:
            raise ConfigError(f"modules names {module!r}, which this model lacks; names are such as mm_projector1 or unit_translator.adapter")
        for parameter in found:
            parameter.requires_grad_(True)


def round_frozen(model: nn.Module, *, half: bool) -> None:
    """What learns in float32, the rest in bfloat16 or float32; buffers stay, for rounding those of rotary positions changes what is said."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if half and not parameter.requires_grad else torch.float32)


def _is_below(name: str, module: str) -> bool:
    return any(f"{name}.".startswith(f"{prefix}{module}.") for prefix in ("", "model."))


def learned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What learns, by its name in `model`."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Merged(LazyTensors):
    """A published folder's tensors with what was learned in their place, LoRA added to the weights it adapts; all others as they are.

    Args:
        learned: by their names in `PublishedEchoX`.
        lora: the adapters' config.
    """

    def __init__(self, stored: Mapping[str, Tensor], learned: Mapping[str, Tensor], lora: LoraConfig) -> None:
        self.stored = stored
        self.scale = lora.alpha / max(1, lora.rank)
        self.whole = {their_name(name).replace(".base_layer.", "."): tensor for name, tensor in learned.items() if "lora_" not in name}
        self.adapters = {name: tensor for name, tensor in learned.items() if "lora_" in name}
        self.adapted = {their_name(name.replace(f".{LORA_A}", ".")): name for name in self.adapters if f".{LORA_A}" in name}
        specs = specs_of(stored)
        half = next(iter(specs.values())).dtype
        self.specs = specs | {name: Spec(half, tuple(tensor.shape)) for name, tensor in self.whole.items() if name not in specs}

    def __getitem__(self, name: str) -> Tensor:
        dtype = self.specs[name].dtype
        tensor = self.whole[name] if name in self.whole else self.stored[name]
        if name not in self.adapted:
            return tensor.to(dtype)
        down = self.adapted[name]
        up = down.replace(LORA_A, LORA_B)
        return (tensor.float() + self.scale * (self.adapters[up].float() @ self.adapters[down].float())).to(dtype)


def exported_config(config: Mapping[str, Any], compatibility: Compatibility, tensors: Iterable[str]) -> dict[str, Any]:
    """The config.json of a folder with these tensors: its form, and a task that builds the denoising adapter where there is one."""
    changed = with_form(config, compatibility)
    # The release builds the adapter for the tasks that are called finetune.
    if any(name.startswith(DENOISER) for name in tensors) and not str(config.get("unit_output")).startswith("finetune"):
        changed["unit_output"] = "finetune_kd"
    return changed
