import enum
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from echox.core.config import field_docs, from_plain, near, to_plain
from echox.core.errors import ConfigError, PluginError
from echox.core.registry import Registry


class Mood(enum.Enum):
    calm = "calm"
    lively = "lively"


@dataclass(kw_only=True, slots=True)
class AnimalConfig:
    legs: int = 4
    """Legs on the ground."""


@dataclass(kw_only=True, slots=True)
class DogConfig(AnimalConfig):
    mood: Mood = Mood.calm
    """How it is, a sentence
    of two lines."""
    friend: AnimalConfig | None = None


@dataclass(kw_only=True, slots=True)
class ZooConfig:
    star: AnimalConfig
    others: list[AnimalConfig] = field(default_factory=list)
    by_place: dict[str, AnimalConfig] = field(default_factory=dict)
    gate: Path = Path("gate")
    keepers: list[str] | None = None


ANIMALS = Registry("animal", AnimalConfig)
ANIMALS.register("dog", DogConfig)(object)


def test_docs_are_read_from_the_class_and_its_bases():
    assert field_docs(DogConfig) == {
        "legs": "Legs on the ground.",
        "mood": "How it is, a sentence of two lines.",
    }


def test_docs_of_a_class_without_source_are_empty():
    namespace = {"dataclass": dataclass}
    exec("@dataclass\nclass Bare:\n    x: int = 1\n", namespace)
    assert field_docs(namespace["Bare"]) == {}


def test_a_nested_part_keeps_its_name_through_plain_data():
    zoo = ZooConfig(
        star=DogConfig(mood=Mood.lively, friend=DogConfig(legs=3)),
        others=[DogConfig()],
        by_place={"den": DogConfig(legs=2)},
    )
    plain = to_plain(zoo)
    assert plain["star"] == {
        "name": "dog",
        "legs": 4,
        "mood": "lively",
        "friend": {"name": "dog", "legs": 3, "mood": "calm", "friend": None},
    }
    assert plain["gate"] == "gate"
    assert from_plain(ZooConfig, plain) == zoo


def test_an_unknown_field_names_the_near_match():
    with pytest.raises(ConfigError, match="DogConfig has no field 'leggs'; did you mean 'legs'"):
        from_plain(DogConfig, {"leggs": 3})


def test_an_unknown_enum_value_names_the_near_match():
    with pytest.raises(ConfigError, match="Mood has no value 'livly'; did you mean 'lively'"):
        from_plain(DogConfig, {"mood": "livly"})


def test_an_unknown_part_is_a_plugin_error():
    with pytest.raises(PluginError, match="no animal named 'dgo'; did you mean 'dog'"):
        from_plain(ZooConfig, {"star": {"name": "dgo"}})


def test_near_is_empty_without_a_near_match():
    assert near("zebra", ["dog"]) == ""
