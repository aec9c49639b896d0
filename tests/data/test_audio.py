"""Audio: any rate and channels come as mono, and what cannot be used is named."""

import numpy as np
import pytest
import soundfile
import torch

from echox.data.audio import duration_s, load_audio, pad_waveforms, save_audio
from echox.errors import SignalError


def tone(rate_hz: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize("rate_hz", [8_000, 11_127, 22_050, 44_100, 48_000])
def test_any_rate_is_read_at_the_one_wanted(tmp_path, rate_hz):
    soundfile.write(tmp_path / "x.wav", tone(rate_hz), rate_hz)
    samples = load_audio(tmp_path / "x.wav", 16_000)
    assert samples.dtype == torch.float32 and abs(len(samples) - 8_000) < 40
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    assert abs(spectrum.argmax().item() * 16_000 / len(samples) - 440) < 3
    assert samples[2_000:6_000].abs().max() == pytest.approx(0.5, abs=0.01)


def test_8_khz_stereo_is_the_mean_of_both_channels(tmp_path):
    left = tone(8_000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, np.zeros_like(left)], axis=1), 8_000, subtype="FLOAT")
    halved = load_audio(tmp_path / "x.wav", 8_000)
    np.testing.assert_allclose(halved, left / 2, atol=1e-6)
    assert load_audio(tmp_path / "x.wav", 16_000).shape == (8_000,)


def test_what_cannot_be_used_is_refused_in_one_sentence_that_names_the_file(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "folder.wav").mkdir()
    reasons = {"empty": "zero length", "nan": "NaN", "text": "not readable", "folder": "is a folder", "gone": "does not exist"}
    for name, reason in reasons.items():
        with pytest.raises(SignalError, match=rf"{name}\.wav.*{reason}") as error:
            load_audio(tmp_path / f"{name}.wav", 16_000)
        assert "\n" not in str(error.value)


def test_saved_audio_is_complete_16_bit_and_never_clips(tmp_path):
    loud = torch.tensor([0.0, 2.0, -1.0, 0.5])
    for name in ("a/x.flac", "x.wav"):
        save_audio(tmp_path / name, loud, 16_000)
        assert soundfile.info(tmp_path / name).subtype == "PCM_16"
        torch.testing.assert_close(load_audio(tmp_path / name, 16_000), loud / 2, atol=1e-4, rtol=0)
        assert duration_s(tmp_path / name) == 4 / 16_000
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["x.flac", "x.wav"]


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(1, 5), torch.tensor([1.0, torch.inf])])
def test_samples_that_are_no_clip_are_not_written(tmp_path, samples):
    with pytest.raises(SignalError, match="was not written"):
        save_audio(tmp_path / "x.wav", samples, 16_000)
    with pytest.raises(SignalError, match="change its ending"):
        save_audio(tmp_path / "x.mp3", torch.zeros(4), 16_000)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SignalError, match="could not be written"):
        save_audio(tmp_path / "file" / "x.wav", torch.zeros(4), 16_000)


def test_padding_keeps_lengths():
    wave = pad_waveforms([torch.ones(3), torch.ones(5)], 16_000)
    assert wave.samples.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert wave.lengths.tolist() == [3, 5] and wave.rate_hz == 16_000
