from dataclasses import dataclass

import pytest

from echox.core.errors import ConfigError, PluginError
from echox.core.registry import FAILURES, Failure, Registry, registering_from


@dataclass(kw_only=True, slots=True)
class ToolConfig:
    pass


@dataclass(kw_only=True, slots=True)
class HammerConfig(ToolConfig):
    grams: int = 500


@dataclass(kw_only=True, slots=True)
class SawConfig(ToolConfig):
    teeth: int = 20


class Tool:
    def __init__(self, config, *more):
        self.config, self.more = config, more


@pytest.fixture
def tools():
    registry = Registry("tool", ToolConfig)
    registry.register("hammer", HammerConfig)(Tool)
    return registry


def test_the_type_of_a_config_chooses_the_class(tools):
    tools.register("saw", SawConfig)(Tool)
    built = tools.build(HammerConfig(grams=300), "extra")
    assert (built.config.grams, built.more) == (300, ("extra",))


def test_describe_and_parse_are_a_round_trip(tools):
    described = tools.describe(HammerConfig(grams=300))
    assert described == {"name": "hammer", "grams": 300}
    assert tools.parse(described) == HammerConfig(grams=300)


def test_a_registry_is_a_mapping(tools):
    assert list(tools) == ["hammer"] and len(tools) == 1
    assert "hammer" in tools and "saw" not in tools
    assert tools.get("saw") is None
    assert tools["hammer"].config_type is HammerConfig


def test_a_misspelt_name_lists_the_near_match_the_known_and_the_failed(tools, monkeypatch):
    monkeypatch.setattr(
        "echox.core.registry.FAILURES",
        [Failure("plugins/saw.py", "SyntaxError: invalid syntax (saw.py:3)")],
    )
    with pytest.raises(PluginError) as caught:
        tools["hamer"]
    assert str(caught.value) == (
        "no tool named 'hamer'; did you mean 'hammer'?; known: hammer; "
        "plugin plugins/saw.py failed to load: SyntaxError: invalid syntax (saw.py:3)"
    )


def test_a_name_registered_twice_is_refused_then_and_when_used(tools):
    with (
        pytest.raises(
            PluginError, match=f"tool 'hammer' is registered twice, by {__name__} and by shed.py"
        ),
        registering_from("shed.py"),
    ):
        tools.register("hammer", SawConfig)
    with pytest.raises(PluginError, match="rename one of them"):
        tools.build(HammerConfig())


def test_one_config_class_belongs_to_one_name(tools):
    with pytest.raises(PluginError, match="choose another name and config class"):
        tools.register("mallet", HammerConfig)


@pytest.mark.parametrize("config", [dict, Tool])
def test_the_config_must_be_a_dataclass_below_the_base(tools, config):
    with pytest.raises(PluginError, match="must be a dataclass that inherits ToolConfig"):
        tools.register("odd", config)


def test_a_field_called_name_is_refused(tools):
    @dataclass(kw_only=True, slots=True)
    class NamedConfig(ToolConfig):
        name: str = ""

    with pytest.raises(PluginError, match="may not have a field called 'name'"):
        tools.register("named", NamedConfig)


def test_a_withdrawn_origin_leaves_nothing(tools):
    with registering_from("shed.py"):
        tools.register("saw", SawConfig)(Tool)
    tools.withdraw("shed.py")
    assert list(tools) == ["hammer"]
    tools.register("saw", SawConfig)


def test_a_config_that_is_not_registered_is_refused(tools):
    with pytest.raises(
        PluginError, match="SawConfig is not the config of any registered tool; known: hammer"
    ):
        tools.build(SawConfig())


def test_parse_says_what_is_missing(tools):
    with pytest.raises(PluginError, match="needs the key 'name'; it has grams"):
        tools.parse({"grams": 3})
    with pytest.raises(ConfigError, match="no field 'gramms'; did you mean 'grams'"):
        tools.parse({"name": "hammer", "gramms": 3})


def test_the_list_of_failures_is_shared():
    assert isinstance(FAILURES, list)
