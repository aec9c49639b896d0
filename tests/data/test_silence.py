"""Levels of frames, and the windows of a clip in which nothing sounds."""

import pytest
import torch

from echox.data.silence import (
    frame_levels,
    is_silent,
    why_not_speech,
    without_silent_windows,
)

RATE_HZ = 100  # two samples a frame


def test_levels_are_those_of_frames():
    samples = torch.tensor([1.0, -1.0, 0.1, 0.1, 0.0, 0.0, 1.0])
    # The last sample fills no frame.
    assert frame_levels(samples, RATE_HZ).tolist() == pytest.approx([0.0, -20.0, -100.0])
    assert frame_levels(torch.tensor([0.5]), RATE_HZ).tolist() == pytest.approx([-6.02], abs=0.01)


def test_a_clip_is_silent_where_no_frame_sounds():
    quiet = torch.full((200,), 0.9e-3)  # -60.9 dBFS
    assert is_silent(torch.zeros(1), RATE_HZ) and is_silent(quiet, RATE_HZ)
    quiet[100:102] = 2e-3
    assert not is_silent(quiet, RATE_HZ)


def test_speech_is_told_from_what_cannot_be_speech():
    rate_hz = 16_000
    white = 0.1 * torch.randn(rate_hz, generator=torch.Generator().manual_seed(0))
    times_s = torch.arange(rate_hz) / rate_hz
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * times_s)
    # Ten decibels of swell, four times a second.
    speech = white * 10 ** (0.25 * torch.sin(2 * torch.pi * 4 * times_s))
    padding = torch.zeros(rate_hz)
    assert why_not_speech(speech, rate_hz) is None
    assert why_not_speech(torch.cat([padding, speech, padding]), rate_hz) is None
    steady = "the clip is a steady sound without syllables"
    for sound in (white, tone, 0.01 * white, torch.cat([padding, white])):
        assert why_not_speech(sound, rate_hz) == steady
    assert why_not_speech(padding, rate_hz) == "the clip is silent"
    for clip in (speech[:1600], torch.cat([padding, speech[:1600], padding])):
        reason = "100 ms of the clip sound, which is less than a word"
        assert why_not_speech(clip, rate_hz) == reason
    assert "10 ms of the clip" in str(why_not_speech(speech[:160], rate_hz))


def test_silent_windows_are_left_out_and_the_others_keep_their_samples():
    silence, first, last = torch.zeros(100), torch.rand(100), torch.rand(30)
    clip = torch.cat([silence, first, silence, silence, last])
    assert torch.equal(without_silent_windows(clip, RATE_HZ, 1.0), torch.cat([first, last]))
    # Something has to be encoded, and a clip of one window is left as it is.
    assert torch.equal(without_silent_windows(torch.zeros(250), RATE_HZ, 1.0), torch.zeros(250))
    assert torch.equal(without_silent_windows(clip, RATE_HZ, 30.0), clip)
