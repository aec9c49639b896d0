"""Rules that the contracts of several kinds share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from echox.core.registry import Registry

Rule = Callable[[Any], None]
"""Takes a config, builds its part, and raises AssertionError where the contract is broken."""


def survives_a_checkpoint(registry: Registry, config: Any) -> None:
    """Check that a config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    described = registry.describe(config)
    assert registry.parse(described) == config, (
        f"describe and parse do not give the config back: {described}"
    )


def has_a_stable_fingerprint(build: Callable[[], Any]) -> None:
    """Check that two parts of one config have one fingerprint, as caches require.

    Args:
        build: builds the part anew.

    Raises:
        AssertionError: the fingerprint is no text, or differs.
    """
    first, second = build().fingerprint(), build().fingerprint()
    assert first and isinstance(first, str), f"the fingerprint must be a text, not {first!r}"
    assert first == second, f"two parts of one config have the fingerprints {first} and {second}"


def outline_has_the_shapes(registry: Registry, config: Any, attributes: Sequence[str]) -> None:
    """Check that a part's outline has the tensors of the part on the meta device.

    Args:
        registry: of the part's kind.
        config: of the part.
        attributes: names of what the outline must state as the part does.

    Raises:
        AssertionError: it cannot be built, has values, or differs from the part.
    """
    outline, part = registry.entry_of(config).implementation.outline(config), registry.build(config)
    have_values = [name for name, tensor in _shaped(outline).items() if not tensor.is_meta]
    assert not have_values, f"the outline has values in {', '.join(have_values[:3])}"
    shapes, expected = ({name: t.shape for name, t in _shaped(m).items()} for m in (outline, part))
    wrong = [name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name)]
    assert not wrong, (
        f"the outline must have the shapes of what is built, and differs in {', '.join(wrong[:3])}"
    )
    for name in attributes:
        stated, value = getattr(outline, name, None), getattr(part, name)
        assert stated == value, f"the outline states {name} {stated!r}, and what is built {value!r}"


def _shaped(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those that no state dict holds too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the names in `first` whose tensors in `second` have other values or shapes."""
    # Bit for bit: no rule that compares weights allows for rounding.
    return [name for name in first if not torch.equal(first[name], second[name])]


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state dict, which later changes of the module do not reach."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
