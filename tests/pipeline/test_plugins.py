import shutil
from pathlib import Path

import echox_plugins
import pytest

from echox.core.errors import ConfigError, PluginError
from echox.encoders.base import ENCODERS
from echox.pipeline.compose import part
from echox.pipeline.plugins import discover, plugin_code, plugin_origins

ENCODER = """
    from dataclasses import dataclass
    from echox.encoders.base import ENCODERS, EncoderConfig

    @dataclass(kw_only=True, slots=True)
    class ToyConfig(EncoderConfig):
        width: int = 4

    @ENCODERS.register("{name}", ToyConfig)
    class ToyEncoder:
        def __init__(self, config):
            self.config = config
"""


def test_built_in_parts_and_installed_packages_are_registered(workspace):
    discover()
    assert ENCODERS["whisper"].origin == "echox.encoders.whisper"
    assert ENCODERS["mel"].origin == "entry point mel_encoder = echox_plugins.mel_encoder"


def test_the_origin_of_a_plugin_is_its_package_or_its_absolute_file(workspace, write):
    path = write("plugins/ear.py", ENCODER.format(name="ear"))
    discover()
    configs = [("encoder", ENCODERS[name].config_type()) for name in ("whisper", "mel", "ear")]
    origins = plugin_origins(configs)
    assert origins.keys() == {"encoder mel", "encoder ear"}
    assert origins["encoder mel"].startswith("the package echox==")
    assert origins["encoder ear"] == str(path.absolute())


def test_the_code_of_a_plugin_is_that_of_its_file(workspace, write):
    digests = []
    for name, width in (("one", 4), ("two", 4), ("three", 5)):
        # The name of the part comes from the folder, so that the code may be the same.
        text = ENCODER.replace('"{name}"', '__file__.split("/")[-2]')
        text = text.replace("width: int = 4", f"width: int = {width}  # of {name}")
        write(f"{name}/ear.py", text)
        discover([name])
        (digest,) = plugin_code([("encoder", ENCODERS[name].config_type())]).values()
        digests.append(digest)
    assert digests[0] == digests[1] != digests[2]
    assert plugin_code([("encoder", ENCODERS["whisper"].config_type(weights="random"))]) == {}


def test_a_file_in_plugins_is_run_once(workspace, write):
    path = write("plugins/ear.py", ENCODER.format(name="ear"))
    assert discover().files == (Path("plugins/ear.py"),)
    assert discover([path.parent]).files == (Path("plugins/ear.py"),)
    assert ENCODERS["ear"].origin == "plugins/ear.py"
    assert part("encoder", "ear").width == 4


def test_folders_come_from_the_argument_and_the_environment(workspace, write, monkeypatch):
    write("one/ear.py", ENCODER.format(name="first"))
    write("two/ear.py", ENCODER.format(name="second"))
    write("three/ear.py", ENCODER.format(name="third"))
    monkeypatch.setenv("ECHOX_PLUGINS", "two:three")
    discover(["one"])
    assert {"first", "second", "third"} <= set(ENCODERS)


def test_a_package_folder_may_import_its_own_modules(workspace, write):
    write("plugins/big/__init__.py", "from . import ear")
    write("plugins/big/ear.py", ENCODER.format(name="big"))
    discover()
    assert ENCODERS["big"].origin == "plugins/big"


def test_private_files_and_tests_are_left_alone(workspace, write):
    for name in ("_draft.py", "test_ear.py", "conftest.py", ".hidden.py", "notes.txt"):
        write(f"plugins/{name}", "raise RuntimeError('must not run')")
    discovery = discover()
    assert discovery.files == ()
    assert not [failure for failure in discovery.failures if "must not run" in failure.reason]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import nowhere", r"ModuleNotFoundError: No module named 'nowhere' \(.*broken.py:1\)"),
        ("x = 1\ndef f(:\n", r"SyntaxError: .* \(.*broken.py:2\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*broken.py:2\)"),
        ("raise ValueError('two\\nlines')", r"ValueError: two lines \(.*broken.py:1\)"),
        (
            "from echox.encoders.base import ENCODERS\nENCODERS.register('x', dict)",
            r"must be a dataclass that inherits EncoderConfig \(.*broken.py:2\)",
        ),
    ],
)
def test_a_failure_is_recorded_in_one_line(workspace, write, body, reason):
    write("plugins/broken.py", body)
    (failure,) = [
        failure for failure in discover().failures if failure.origin == "plugins/broken.py"
    ]
    assert "\n" not in failure.reason
    with pytest.raises(
        PluginError,
        match=f"no encoder named 'brokn'.*plugin plugins/broken.py failed to load: .*{reason}",
    ):
        ENCODERS["brokn"]


def test_a_plugin_that_fails_registers_nothing(workspace, write):
    write("plugins/half.py", ENCODER.format(name="half") + "\n    raise RuntimeError('half way')\n")
    discover()
    assert "half" not in ENCODERS


def test_a_config_that_hydra_cannot_type_is_a_failure(workspace, write):
    write(
        "plugins/typed.py",
        "from typing import Literal\n"
        + ENCODER.format(name="typed")
        .replace("    ", "", 1)
        .replace("\n    ", "\n")
        .replace("width: int = 4", "width: Literal['a'] = 'a'"),
    )
    (failure,) = [
        failure for failure in discover().failures if failure.origin == "plugins/typed.py"
    ]
    assert "use int, float, str, bool, Path, Enum (not Literal)" in failure.reason
    assert "typed" not in ENCODERS


def test_a_taken_name_is_refused_where_it_is_used(workspace, write):
    write("plugins/thief.py", ENCODER.format(name="whisper"))
    discover()
    with pytest.raises(
        PluginError,
        match="encoder 'whisper' is registered twice, by echox.encoders.whisper and by "
        "plugins/thief.py",
    ):
        ENCODERS.build(ENCODERS["whisper"].config_type(weights="random"))


def test_the_installed_example_in_a_checkout_is_one_plugin(workspace):
    shutil.copytree(
        Path(echox_plugins.__file__).parent,
        "plugins",
        ignore=shutil.ignore_patterns("__pycache__", "test_*"),
    )
    assert discover().files == ()
    assert ENCODERS.contested("mel") is None


def test_a_folder_that_was_asked_for_must_exist(workspace, monkeypatch):
    with pytest.raises(
        ConfigError, match="plugin_dirs names the plugin folder 'nowhere', which does not exist"
    ):
        discover(["nowhere"])
    monkeypatch.setenv("ECHOX_PLUGINS", "gone")
    with pytest.raises(ConfigError, match="ECHOX_PLUGINS names the plugin folder 'gone'"):
        discover()
