"""Released models made ready to be trained, and their trained weights merged back into a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from echox.assets.shapes import UNTRAINED
from echox.assets.tensors import LazyTensors, Spec, specs_of
from echox.backbones.base import LoraConfig, add_lora
from echox.core.errors import ConfigError
from echox.models.compatibility import Compatibility, with_form
from echox.models.release.folder import build, outline, read_release
from echox.models.release.model import PublishedEchoX
from echox.models.release.names import DENOISER, their_name
from echox.models.release.translator import UnitTranslator, denoising_adapter
from echox.models.release.untrained import TINY, shape_of, untrained_model

RANDOM = "random"  # a tiny untrained model, for tests
# Peft's names of the two factors of an adapter, within the names of parameters.
LORA_A, LORA_B = "lora_A.default.", "lora_B.default."


class TrainableEchoX(nn.Module):
    """The unit translator by itself: T2C needs no language model."""

    def __init__(self, translator: UnitTranslator) -> None:
        super().__init__()
        self.translator = translator


def is_untrained(checkpoint: str) -> bool:
    """Whether a task's field `checkpoint` asks for untrained weights."""
    return checkpoint == RANDOM or checkpoint.startswith(UNTRAINED)


def config_of(checkpoint: str, feature_dim: int | None = None) -> dict[str, Any]:
    """The config.json of the model that training starts from.

    Args:
        checkpoint: a released folder, "random", or "random:NAME".
        feature_dim: channels of the encoder, which the adapter of the tiny model is built for.

    Raises:
        CheckpointError: the folder is incomplete, or no released model.
        ConfigError: its config.json describes another model.
        AssetError: no shape of that name is known.
    """
    if checkpoint == RANDOM:
        return dict(TINY) | ({"adapter_size": feature_dim} if feature_dim else {})
    if checkpoint.startswith(UNTRAINED):
        return shape_of(checkpoint.removeprefix(UNTRAINED))
    return read_release(checkpoint).config


def starting_model(
    checkpoint: str,
    compatibility: Compatibility,
    feature_dim: int | None = None,
    *,
    meta: bool = False,
) -> PublishedEchoX:
    """Build the model that training starts from, its weights as they are stored.

    A unit translator without a denoising adapter gets an untrained one.

    Args:
        checkpoint: as in `config_of`.
        compatibility: the form to compute in.
        feature_dim: as in `config_of`.
        meta: read no weights; to be called under `torch.device("meta")`.

    Raises:
        CheckpointError, ConfigError, AssetError: as `config_of`; or a tensor is missing or has
            another shape than config.json asks for.
    """
    if is_untrained(checkpoint):
        return untrained_model(config_of(checkpoint, feature_dim), compatibility)
    release = read_release(checkpoint)
    if meta:
        model = outline(release, compatibility=compatibility)
    else:
        # As stored: `cast_parameters` rounds each weight once it is known whether it is trained.
        model = build(release, compatibility=compatibility, dtype=None)
    if model.translator is not None and model.translator.denoiser is None:
        config = model.language.body.config
        model.translator.denoiser = denoising_adapter(config.hidden_size, config.intermediate_size)
    return model


def select_trained(
    model: PublishedEchoX, modules: Iterable[str], lora: LoraConfig | None = None
) -> None:
    """Freeze a model except for some modules and for LoRA on its language model.

    Args:
        model: changed in place.
        modules: names of the release ("mm_projector1", "unit_translator.adapter"), with or
            without "model." before them.
        lora: adapters to add to the language model; None adds none.

    Raises:
        ConfigError: the model has no such module, or LoRA names no layer.
    """
    # Before LoRA is added, whose new parameters require gradients.
    model.requires_grad_(False)
    if lora is not None:
        add_lora(model.language.body, lora)
    for module in modules:
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if _is_below(their_name(name), module) and "lora_" not in name
        ]
        if not parameters:
            raise ConfigError(
                f"modules names {module!r}, which this model lacks; "
                "names are such as mm_projector1 or unit_translator.adapter"
            )
        for parameter in parameters:
            parameter.requires_grad_(True)


def cast_parameters(model: nn.Module, *, half: bool) -> None:
    """Store trained parameters in float32, and frozen ones in bfloat16 where `half` is set.

    Buffers stay as they are: rounding those of rotary positions changes the generated tokens.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(
            torch.bfloat16 if half and not parameter.requires_grad else torch.float32
        )


def _is_below(name: str, module: str) -> bool:
    # With dots at the end, so that no module is taken for another whose name it begins.
    return any(f"{name}.".startswith(f"{prefix}{module}.") for prefix in ("", "model."))


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters of a model, by their names in it."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


class Merged(LazyTensors):
    """Tensors of a released folder with trained ones in their place, LoRA added to its weights.

    Each is merged when it is asked for, in the dtype that the folder stores.

    Args:
        stored: tensors of the folder, by the release's names.
        trained: trained tensors, by their names in `PublishedEchoX`.
        lora: config of the adapters among them.
    """

    def __init__(
        self, stored: Mapping[str, Tensor], trained: Mapping[str, Tensor], lora: LoraConfig
    ) -> None:
        self.stored = stored
        self.scale = lora.alpha / max(1, lora.rank)  # rank 0 stands for no adapters
        # Peft moves an adapted layer below `base_layer`.
        self.replaced = {
            their_name(name).replace(".base_layer.", "."): tensor
            for name, tensor in trained.items()
            if "lora_" not in name
        }
        self.adapters = {name: tensor for name, tensor in trained.items() if "lora_" in name}
        # The release's name of each adapted weight -> name of the first factor of its update.
        self.adapted = {
            their_name(name.replace(f".{LORA_A}", ".")): name
            for name in self.adapters
            if f".{LORA_A}" in name
        }
        specs = specs_of(stored)
        stored_dtype = next(iter(specs.values())).dtype
        # A denoising adapter may be new: the folder of a model after T2C alone has none.
        self.specs = specs | {
            name: Spec(stored_dtype, tuple(tensor.shape))
            for name, tensor in self.replaced.items()
            if name not in specs
        }

    def __getitem__(self, name: str) -> Tensor:
        dtype = self.specs[name].dtype
        tensor = self.replaced[name] if name in self.replaced else self.stored[name]
        if name not in self.adapted:
            return tensor.to(dtype)
        down = self.adapted[name]
        up = down.replace(LORA_A, LORA_B)
        # In float32: a small update would be lost in the rounding of half precision.
        update = self.adapters[up].float() @ self.adapters[down].float()
        return (tensor.float() + self.scale * update).to(dtype)


def exported_config(
    config: Mapping[str, Any], compatibility: Compatibility, tensors: Iterable[str]
) -> dict[str, Any]:
    """The config.json of a folder with trained tensors.

    It records the form, and a task for which the release builds the denoising adapter where there
    is one.

    Args:
        config: of the folder that training started from.
        compatibility: the form of the trained weights.
        tensors: names of the tensors, as the release has them.

    Raises:
        ConfigError: the config names a setting that does not exist.
    """
    changed = with_form(config, compatibility)
    has_denoiser = any(name.startswith(DENOISER) for name in tensors)
    # The release builds the adapter for the tasks that are called finetune.
    if has_denoiser and not str(config.get("unit_output")).startswith("finetune"):
        changed["unit_output"] = "finetune_kd"
    return changed
