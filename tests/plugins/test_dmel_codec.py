"""The worked example of a codec: what it decodes sounds like what it encoded."""

import math

import pytest
import torch

from echox.codecs.base import CODECS
from echox.core.errors import ConfigError
from echox.core.signals import Units, Waveform
from echox.pipeline.plugins import discover

RATE_HZ = 16_000


@pytest.fixture
def codec():
    discover()
    return CODECS.build(CODECS["dmel"].config_type())


def wave_of(*clips):
    lengths = torch.tensor([len(clip) for clip in clips])
    return Waveform(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths, RATE_HZ)


def voice(pitch_hz, seconds):
    """Harmonics of a pitch, louder and softer as syllables are."""
    time = torch.arange(int(seconds * RATE_HZ)) / RATE_HZ
    harmonics = sum((2 * math.pi * pitch_hz * n * time).sin() / n for n in range(1, 20))
    return 0.2 * harmonics * (0.6 + 0.4 * (2 * math.pi * 4 * time).sin())


def test_a_copy_has_the_loudness_of_its_original_in_every_band(codec):
    units = codec.encode(wave_of(voice(120, 1.0), voice(220, 0.6)))
    assert units.ids.shape == (2, 32, 50) and units.lengths.tolist() == [50, 30]
    again = codec.encode(codec.decode(units))
    for ids, copy, length in zip(units.ids, again.ids, units.lengths.tolist()):
        # In levels of 5.3 dB; bands of the original that hold a sound.
        loud = ids[:, 2 : length - 2] > 4
        difference = (ids - copy)[:, 2 : length - 2][loud].abs().float()
        assert loud.float().mean() > 0.5 and difference.mean() < 0.5


def test_a_tone_stays_at_its_frequency(codec):
    time = torch.arange(RATE_HZ) / RATE_HZ
    copy = codec.decode(codec.encode(wave_of(0.3 * (2 * math.pi * 1000 * time).sin())))
    peak_hz = torch.fft.rfft(copy.samples[0]).abs().argmax() / (len(copy.samples[0]) / RATE_HZ)
    assert abs(float(peak_hz) - 1000) < 100


def test_the_lowest_level_is_silence_and_one_unit_is_a_sound(codec):
    silence = codec.decode(Units(torch.zeros(1, 32, 5, dtype=torch.int64), torch.tensor([5]), 50.0))
    assert not silence.samples.any() and silence.lengths.tolist() == [5 * 320]
    one = codec.decode(Units(torch.full((1, 32, 1), 12), torch.tensor([1]), 50.0))
    assert one.samples.shape == (1, 320) and one.samples.abs().max() > 0.01


def test_sizes_without_use_are_refused():
    discover()
    for fields in ({"bands": 1}, {"bands": 200}, {"levels": 1}, {"iterations": 0}):
        with pytest.raises(ConfigError):
            CODECS["dmel"].config_type(**fields)
