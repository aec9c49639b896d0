"""Settings of the whole test run, and the toy parts many tests are made of.

PyTorch and echox are imported by the fixtures that need them: the process that distributes tests to
workers needs neither.
"""

import copy
import gc
import os

# Before anything imports Triton or the hub client: kernels are interpreted, and no test uses the
# network.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# Before PyTorch is loaded, here and in every process that a test starts: parts this small are
# slower on several threads, and there is a worker for every core already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before PyTorch is loaded too: it sets how threads wait, without which tests beside other processes
# take many times as long.
import textwrap

import pytest

import echox_cli  # noqa: F401


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers(config):
    """How many workers `-n auto` means: one for each core where whole folders are tested.

    None, so that all tests run in this process, for named files and tests, for unbuffered output
    (`-s`), and where kernels are compiled for a GPU, which all workers would share.
    """
    workers = yield
    folder = config.invocation_params.dir
    are_folders = all((folder / argument.split("::")[0]).is_dir() for argument in config.args)
    is_captured = config.option.capture != "no"
    is_interpreted = os.environ["TRITON_INTERPRET"] != "0"
    return workers if are_folders and is_captured and is_interpreted else 0


def pytest_collection_modifyitems(items):
    """Run long files first, since the last worker would be alone with them."""
    # The sort is stable, so the order within a file stays.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    """Let the garbage collector pass over what importing and collecting made, which stays."""
    gc.collect()
    gc.freeze()
    # Parts and recipes are made of many small objects, few of which are in cycles.
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def one_number_format():
    """Choose the number format by the processor's instructions, and not by measuring its speed."""
    from echox.core.device import has_bf16_products
    from echox.core.number_format import VARIABLE

    os.environ.setdefault(VARIABLE, "bf16" if has_bf16_products() else "fp32")


@pytest.fixture(autouse=True, scope="session")
def composed_once():
    """Compose a recipe once for all tests that find the same files and parts.

    Hydra takes a quarter of a second for each, which a command needs once and a test run a thousand
    times. Overrides are applied by echox itself, to a copy.
    """
    from echox.pipeline import compose, plugins

    compose_yaml, composed = compose._compose_yaml, {}

    def compose_once(schema, yaml_name, folders):
        parts = [
            (kind, name, registry[name].config_type)
            for kind, registry in plugins.REGISTRIES.items()
            for name in registry
        ]
        files = [
            (path, path.stat().st_mtime_ns, path.stat().st_size)
            for folder in folders
            for path in sorted(folder.rglob("*.y*ml"))
            if path.is_file()
        ]
        # Defaults of fields may depend on the environment.
        environment = [item for item in os.environ.items() if item[0].startswith("ECHOX_")]
        places = [folder.resolve() for folder in folders]
        key = (schema, yaml_name, *map(tuple, (places, parts, files, environment)))
        if key not in composed:
            composed[key] = compose_yaml(schema, yaml_name, folders)
        return copy.deepcopy(composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_compose_yaml", compose_once)
        yield


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, for this test alone."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def workspace(monkeypatch, tmp_path):
    """An empty working folder, and registries that forget what the test registered."""
    from hydra.core.config_store import ConfigStore

    from echox.core.registry import FAILURES
    from echox.pipeline import plugins

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECHOX_PLUGINS", raising=False)
    monkeypatch.delenv("ECHOX_RECIPES", raising=False)
    plugins.discover()
    for registry in plugins.REGISTRIES.values():
        for attribute in ("_entries", "_by_type", "_contested"):
            monkeypatch.setattr(registry, attribute, dict(getattr(registry, attribute)))
    monkeypatch.setattr(plugins, "_seen", set(plugins._seen))
    monkeypatch.setattr(plugins, "_ran", [])
    monkeypatch.setattr(plugins, "_published", dict(plugins._published))
    store = ConfigStore.instance().repo
    before, groups = (
        list(FAILURES),
        {kind: dict(store.get(kind, {})) for kind in plugins.REGISTRIES},
    )
    yield tmp_path
    FAILURES[:] = before
    store.update(groups)


@pytest.fixture
def write(workspace):
    """Writes a text file below the working folder, with the folders it needs."""

    def write_text(path, text):
        path = workspace / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_text


@pytest.fixture
def toy_workspace(workspace, write):
    """A working folder with a plugin of every kind and the recipe `toy`."""
    from echox.pipeline import plugins

    write("plugins/toy.py", TOY_PLUGIN)
    write("recipes/toy.yaml", TOY_RECIPE)
    write("recipes/encoder/wide_ear.yaml", "defaults:\n  - toy_ear\n  - _self_\nwidth: 9\n")
    plugins.discover()
    return workspace


TOY_PLUGIN = '''
    import enum
    from dataclasses import dataclass, field

    from echox.backbones.base import BACKBONES, BackboneConfig
    from echox.codecs.base import CODECS, CodecConfig
    from echox.criteria.base import CRITERIA, CriterionConfig
    from echox.encoders.base import ENCODERS, EncoderConfig
    from echox.core.errors import ConfigError
    from echox.tasks.base import TASKS, TaskConfig


    class Mood(enum.Enum):
        calm = "calm"
        lively = "lively"


    @dataclass(kw_only=True, slots=True)
    class EarConfig(EncoderConfig):
        """A toy ear."""

        width: int = 4
        """Channels."""
        mood: Mood = Mood.calm
        """How it listens."""

        def __post_init__(self):
            if self.width < 1:
                raise ConfigError(f"width must be at least 1, not {self.width}")


    @dataclass(kw_only=True, slots=True)
    class OtherEarConfig(EncoderConfig):
        bins: int = 8


    @dataclass(kw_only=True, slots=True)
    class MindConfig(BackboneConfig):
        weights: str | None = None


    @dataclass(kw_only=True, slots=True)
    class VoiceConfig(CodecConfig):
        encoder: EncoderConfig = field(default_factory=EarConfig)
        gains: dict[str, float] = field(default_factory=dict)


    @dataclass(kw_only=True, slots=True)
    class WorkConfig(TaskConfig):
        rows: int = 3


    @dataclass(kw_only=True, slots=True)
    class OtherWorkConfig(TaskConfig):
        lines: int = 3


    @dataclass(kw_only=True, slots=True)
    class AimConfig(CriterionConfig):
        weight: float = 1.0


    class Part:
        """A toy part."""

        def __init__(self, config):
            self.config = config


    class Work(Part):
        parents, continues, needs, takes, use = (), (), (), (), None


    for registry, name, config in (
        (ENCODERS, "toy_ear", EarConfig),
        (ENCODERS, "other_ear", OtherEarConfig),
        (BACKBONES, "toy_mind", MindConfig),
        (CODECS, "toy_voice", VoiceConfig),
        (TASKS, "toy_work", WorkConfig),
        (TASKS, "other_work", OtherWorkConfig),
        (CRITERIA, "toy_aim", AimConfig),
    ):
        registry.register(name, config)(Work if registry is TASKS else Part)
'''

TOY_RECIPE = """
    doc: A toy recipe.
    defaults:
      - encoder: wide_ear
      - backbone: toy_mind
      - codec: toy_voice
      - task@stages.s2t.task: toy_work
      - criterion@stages.s2t.criterion: toy_aim
      - _self_
    stages:
      s2t:
        train:
          steps: 7
"""
