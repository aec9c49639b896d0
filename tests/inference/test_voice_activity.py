"""The detector finds where speech begins and ends, to within its windows, whatever the chunks."""

import pytest
import torch

from echox.core.errors import ConfigError
from echox.inference.voice_activity import VoiceActivity, VoiceActivityConfig

pytest.importorskip("silero_vad")
RATE_HZ = 16_000


class Probabilities:
    """Stands for the network: loud windows are speech."""

    def reset_states(self):
        pass

    def __call__(self, samples, rate_hz):
        assert samples.shape == (512,) and rate_hz == RATE_HZ
        return samples.abs().mean()


def detector(monkeypatch, **settings):
    found = VoiceActivity(VoiceActivityConfig(**settings))
    monkeypatch.setattr(found, "_model", Probabilities())
    return found


def speech(*seconds_and_levels):
    return torch.cat([torch.full((int(s * RATE_HZ),), level) for s, level in seconds_and_levels])


@pytest.mark.parametrize("size", [100, 512, 5_000])
def test_borders_are_those_of_the_sound(monkeypatch, size):
    found = detector(monkeypatch, silence_ms=320, padding_ms=100)
    stream = speech((1.024, 0.0), (1.024, 0.9), (0.16, 0.0), (0.512, 0.9), (1.024, 0.0))
    borders = [each for chunk in stream.split(size) for each in found.push(chunk)]
    assert [each.begins for each in borders] == [True, False]
    begin, end = (each.sample / RATE_HZ for each in borders)
    # The short pause ends nothing; the padding lies before the beginning.
    assert begin == pytest.approx(1.024 - 0.1, abs=0.001) and end == pytest.approx(2.72, abs=0.001)
    assert borders[1].known_at / RATE_HZ == pytest.approx(2.72 + 0.32, abs=0.033)


def test_a_level_between_the_two_thresholds_keeps_what_is(monkeypatch):
    found = detector(monkeypatch, silence_ms=100)
    assert found.push(speech((1.0, 0.4))) == []
    (begun,) = found.push(speech((0.5, 0.9), (1.0, 0.4)))
    assert begun.begins
    (ended,) = found.push(speech((0.5, 0.1)))
    assert not ended.begins


def test_the_network_tells_speech_from_silence_and_leaves_the_threads(tmp_path):
    threads = torch.get_num_threads()
    found = VoiceActivity(VoiceActivityConfig())
    assert torch.get_num_threads() == threads
    assert found.push(torch.zeros(2 * RATE_HZ)) == []
    found.reset()
    assert found.push(0.001 * torch.randn(RATE_HZ)) == []


def test_settings_have_bounds():
    with pytest.raises(ConfigError, match="threshold must be between 0 and 1, and is 1.5"):
        VoiceActivityConfig(threshold=1.5)
    with pytest.raises(ConfigError, match="silence_ms is -1"):
        VoiceActivityConfig(silence_ms=-1)
