"""Levels of frames, and the windows of a clip in which nothing sounds."""

import pytest
import torch

from echox.data.silence import frame_levels, is_silent, without_silent_windows

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


def test_silent_windows_are_left_out_and_the_others_keep_their_samples():
    silence, first, last = torch.zeros(100), torch.rand(100), torch.rand(30)
    clip = torch.cat([silence, first, silence, silence, last])
    assert torch.equal(without_silent_windows(clip, RATE_HZ, 1.0), torch.cat([first, last]))
    # Something has to be encoded, and a clip of one window is left as it is.
    assert torch.equal(without_silent_windows(torch.zeros(250), RATE_HZ, 1.0), torch.zeros(250))
    assert torch.equal(without_silent_windows(clip, RATE_HZ, 30.0), clip)
