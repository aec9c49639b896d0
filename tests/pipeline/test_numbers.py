"""Numbers of configs that are out of range are refused where they stand, in one sentence."""

import dataclasses
import types
import typing

import pytest

from echox.core.config import refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.data.windows import WindowsConfig
from echox.evaluation.codec_copy import CodecCopyConfig
from echox.evaluation.config import EvaluateConfig
from echox.inference.config import GenerateConfig
from echox.pipeline.plugins import REGISTRIES, discover
from echox.pipeline.recipe import Recipe

# Seeds, decibels and scores have a sign; a part that is not trained does not read `lr_scale`.
SIGNED = {"seed", "lr_scale", "threshold"}
ROOTS = (Recipe, GenerateConfig, EvaluateConfig, CodecCopyConfig, WindowsConfig)


def nested(hint):
    """The types that an annotation is made of."""
    arguments = [each for argument in typing.get_args(hint) for each in nested(argument)]
    return [hint, *arguments] if isinstance(hint, type) else arguments


def config_types():
    """Every config of a registered part or a command, and what stands in them."""
    discover()
    found, waiting = {}, list(ROOTS)
    waiting += [entry.config_type for parts in REGISTRIES.values() for _, entry in parts.items()]
    while waiting:
        config_type = waiting.pop()
        if config_type in found or not dataclasses.is_dataclass(config_type):
            continue
        found[config_type] = typing.get_type_hints(config_type)
        waiting += [each for hint in found[config_type].values() for each in nested(hint)]
    return found


def takes(config_type, name, value):
    """Whether a config takes a value, other fields at their defaults."""
    try:
        config_type(**{name: value})
    except ConfigError:
        return False
    return True


def test_no_number_is_below_zero_or_nan():
    wrong = [
        f"{config_type.__name__}.{name}={value}"
        for config_type, hints in config_types().items()
        for name, hint in hints.items()
        for value in (-1, float("nan"))
        if name not in SIGNED
        and ({int} if value == -1 else {float}) & set(nested(hint))
        and typing.get_origin(hint) in (None, typing.Union, types.UnionType)
        and takes(config_type, name, value)
    ]
    assert not wrong, "\n".join(wrong)


@dataclasses.dataclass
class Numbers:
    count: int | None = 1
    share: float = 0.5


def test_the_sentence_says_the_bound():
    refuse_below(Numbers(count=None), 1, "count")
    refuse_below(Numbers(), 1, "count")
    with pytest.raises(ConfigError, match="^count is 0; use 1 or more$"):
        refuse_below(Numbers(count=0), 1, "count")
    with pytest.raises(ConfigError, match="^share is 0.5; use a number above 0.5$"):
        refuse_below(Numbers(), 0.5, "share", above=True)
    with pytest.raises(ConfigError, match="^share is nan; use 0 or more, below 1$"):
        refuse_no_share(Numbers(share=float("nan")), "share")
    with pytest.raises(ConfigError, match="^share is 1; use 0 or more, below 1$"):
        refuse_no_share(Numbers(share=1), "share")
