"""Cached features follow the encoder's code, and what is not what it states is never stored."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import SignalError
from echox.encoders.base import ENCODERS, build_encoder
from echox.encoders.whisper import WhisperConfig
from echox.pipeline import plugins
from echox.tasks.conversations import SpokenData, SpokenDataConfig

EAR = '''
    """An encoder of 100 frames per second."""
    from dataclasses import dataclass

    import torch

    from echox.core.signals import Features
    from echox.encoders.base import ENCODERS, Encoder, EncoderConfig


    @dataclass(kw_only=True, slots=True)
    class EarConfig(EncoderConfig):
        width: int = 8


    @ENCODERS.register("ear", EarConfig)
    class Ear(Encoder):
        def __init__(self, config):
            super().__init__()
            self.rate_hz, self.frame_rate_hz, self.dim = 16_000, 100.0, config.width

        def forward(self, wave):
            lengths = wave.lengths // 160
            values = torch.ones(len(lengths), int(lengths.max()), self.dim)
            return Features(values, lengths, self.frame_rate_hz)

        def fingerprint(self):
            return f"ear-{self.dim}"
'''
FAULTS = {
    "channels": ("Features(values,", "Features(values[..., :7],", r"values \[2, 100, 7\].*, 8\]"),
    "flat": ("Features(values,", "Features(values[0],", r"values \[100, 8\]"),
    "integers": ("Features(values,", "Features(values.long(),", "no floats"),
    "infinite": ("Features(values,", "Features(values / 0,", "not finite"),
    "rate": ("self.frame_rate_hz)", "50.0)", "50.0 Hz"),
    "lengths": (" lengths, self", " lengths // 2, self", r"frames for 0\.500 s of audio.*make 50"),
    "beyond": (" lengths, self", " lengths + 1, self", "101 of 100 frames"),
    "fractions": (" lengths, self", " lengths / 1, self", "integers are needed"),
    "tensor": (
        "Features(values, lengths, self.frame_rate_hz)",
        "values",
        "a Tensor where Features",
    ),
}


@pytest.fixture
def load(write, monkeypatch):
    """Writes the plugin and returns its encoder, as a new process would read it."""
    seen = frozenset(plugins._seen)

    def encoder(text=EAR):
        write("plugins/ear.py", text)
        ENCODERS.withdraw("plugins/ear.py")
        monkeypatch.setattr(plugins, "_seen", set(seen))
        plugins.discover()
        return build_encoder(ENCODERS["ear"].config_type())

    return encoder


@pytest.fixture
def clips(workspace):
    paths = [workspace / f"{name}.wav" for name in "ab"]
    for path, seconds in zip(paths, (0.5, 1.0)):
        samples = 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))
        soundfile.write(path, samples, 16_000)
    return {"train": paths}


def features_of(encoder, clips, folder):
    data = SpokenData(SpokenDataConfig(), folder / "cache")
    data.cache_features(clips, encoder, bf16=False, label="encoding")
    return data.features(clips["train"]).values


def test_an_edited_encoder_is_computed_anew_with_a_line(load, clips, tmp_path, caplog):
    assert torch.equal(features_of(load(), clips, tmp_path)[1], torch.ones(100, 8))
    assert not caplog.messages
    changed = EAR.replace("torch.ones(", "2 * torch.ones(")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(features_of(load(changed), clips, tmp_path)[1], 2 * torch.ones(100, 8))
    assert len(caplog.messages) == 1 and "code that made the features" in caplog.text
    # The first code again: its features are still there.
    encoder = load()
    encoder.forward = None
    assert torch.equal(features_of(encoder, clips, tmp_path)[1], torch.ones(100, 8))


def test_comments_docstrings_and_layout_are_no_change(load, clips, tmp_path):
    features_of(load(), clips, tmp_path)
    worded = EAR.replace("An encoder of", "Frames at").replace("// 160", "// (160)  # hop")
    encoder = load(worded)
    encoder.forward = None
    features_of(encoder, clips, tmp_path)


def test_a_plugin_that_is_edited_after_it_was_imported_counts_as_imported(
    load, clips, tmp_path, write
):
    encoder = load()
    write("plugins/ear.py", EAR.replace("torch.ones(", "2 * torch.ones("))
    features_of(encoder, clips, tmp_path)
    encoder = load()
    encoder.forward = None
    features_of(encoder, clips, tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_features_that_are_not_what_the_encoder_states_are_not_stored(load, clips, tmp_path, fault):
    right, wrong, message = FAULTS[fault]
    assert right in EAR
    with pytest.raises(SignalError, match=rf"encoder 'ear' \(plugins/ear\.py\).*{message}"):
        features_of(load(EAR.replace(right, wrong)), clips, tmp_path)
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert features_of(load(), clips, tmp_path).shape == (2, 100, 8)


def test_features_of_an_earlier_version_are_used_where_the_code_is_echoxs_own(
    clips, tmp_path, caplog
):
    def whisper():
        return build_encoder(WhisperConfig(weights="random"))

    features = features_of(whisper(), clips, tmp_path)
    (folder,) = (tmp_path / "cache/features").iterdir()
    maker, _, precision = folder.name.split("-")
    folder.rename(folder.with_name(f"{maker}-{precision}"))
    encoder = whisper()
    encoder.forward = None
    assert torch.equal(features_of(encoder, clips, tmp_path), features)
    assert list((tmp_path / "cache/features").iterdir()) == [folder] and not caplog.messages
