"""Audio files: read as mono from any rate and channels, refused with the reason if unusable."""

import io

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import SignalError
from echox.data.audio import (
    audio_blocks,
    audio_header,
    duration_s,
    load_audio,
    pad_waveforms,
    save_audio,
)


def tone(rate_hz: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate_hz * seconds)) / rate_hz)


def test_a_batch_without_a_clip_is_one_sentence():
    with pytest.raises(SignalError, match="a batch of audio needs a clip; leave out rows"):
        pad_waveforms([], 16_000)


@pytest.mark.parametrize("rate_hz", [8_000, 11_127, 22_050, 44_100, 48_000])
def test_any_rate_is_resampled_to_the_requested_one(tmp_path, rate_hz):
    soundfile.write(tmp_path / "x.wav", tone(rate_hz), rate_hz)
    samples = load_audio(tmp_path / "x.wav", 16_000)
    assert samples.dtype == torch.float32 and abs(len(samples) - 8_000) < 40
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    assert abs(spectrum.argmax().item() * 16_000 / len(samples) - 440) < 3
    assert samples[2_000:6_000].abs().max() == pytest.approx(0.5, abs=0.01)


def test_8_khz_stereo_is_the_mean_of_both_channels(tmp_path):
    left = tone(8_000)
    soundfile.write(
        tmp_path / "x.wav", np.stack([left, np.zeros_like(left)], axis=1), 8_000, subtype="FLOAT"
    )
    halved = load_audio(tmp_path / "x.wav", 8_000)
    np.testing.assert_allclose(halved, left / 2, atol=1e-6)
    assert load_audio(tmp_path / "x.wav", 16_000).shape == (8_000,)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_a_channel_that_is_the_inverse_of_another_does_not_cancel_it(tmp_path, caplog, order):
    left = tone(8_000)
    noise = 0.02 * np.random.default_rng(0).normal(size=len(left))
    channels = np.stack([left, -left + noise, np.zeros_like(left)])[order]
    soundfile.write(tmp_path / "x.wav", channels.T, 8_000, subtype="FLOAT")
    samples = load_audio(tmp_path / "x.wav", 8_000).numpy()
    blocks = np.concatenate(list(audio_blocks(tmp_path / "x.wav", 0.03)))
    # By the sign of the first channel that is not silent.
    sign = 1 if order.index(0) < order.index(1) else -1
    np.testing.assert_allclose(samples, sign * (2 * left - noise) / 3, atol=1e-6)
    np.testing.assert_allclose(blocks, samples, atol=1e-6)
    message = f"files in {tmp_path} have channels that are each other's inverse"
    assert [message in record.message for record in caplog.records] == [True]


def test_independent_channels_are_averaged_as_they_are(tmp_path, caplog):
    noises = np.random.default_rng(0).normal(size=(8_000, 4)).clip(-4, 4) / 4
    soundfile.write(tmp_path / "x.wav", noises, 8_000, subtype="FLOAT")
    np.testing.assert_allclose(
        load_audio(tmp_path / "x.wav", 8_000), noises.mean(axis=1), atol=1e-6
    )
    assert not caplog.records


@pytest.mark.parametrize("rate_hz", [1, 7, 999, 768_001, 2_147_483_647])
def test_rates_of_damaged_headers_are_refused_before_a_resampler_is_built(tmp_path, rate_hz):
    content = bytearray(encoded("WAV", "PCM_16"))
    content[24:28] = rate_hz.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(content)
    for read in (load_audio, lambda clip, rate_hz: audio_header(clip)):
        with pytest.raises(SignalError, match=f"x.wav has {rate_hz} samples per second; 1000 to"):
            read(tmp_path / "x.wav", 16_000)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (0, "does not state its length"),
        ((1 << 36) - 1, "does not state its length"),
        ((1 << 36) - 2, "is not readable|is cut short"),
        (1 << 33, "is not readable|is cut short"),
    ],
)
def test_a_flac_of_any_stated_length_takes_no_more_memory_than_it_has(tmp_path, samples, sentence):
    content = bytearray(encoded("FLAC"))
    # The last 36 bits before the checksum of the first block, RFC 9639, section 8.2.
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    (tmp_path / "x.flac").write_bytes(content)
    with pytest.raises(SignalError, match=f"x.flac ({sentence})"):
        load_audio(tmp_path / "x.flac", 16_000)


def test_unusable_files_are_refused_in_one_sentence_that_names_the_file(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "folder.wav").mkdir()
    reasons = {
        "empty": "zero length",
        "nan": "NaN",
        "text": "not readable",
        "folder": "is a folder",
        "gone": "does not exist",
    }
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


@pytest.mark.parametrize(
    "samples", [torch.zeros(0), torch.zeros(1, 5), torch.tensor([1.0, torch.inf])]
)
def test_invalid_samples_and_endings_are_not_written(tmp_path, samples):
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


def encoded(
    format: str,
    subtype: str | None = None,
    seconds: float = 3.0,
    rate_hz: int = 16_000,
    channels: int = 1,
) -> bytes:
    content = io.BytesIO()
    samples = np.stack([tone(rate_hz, seconds=seconds)] * channels, axis=1)
    soundfile.write(content, samples, rate_hz, format=format, subtype=subtype)
    return content.getvalue()


@pytest.mark.parametrize(
    "ending, format, subtype, rate_hz, channels",
    [
        ("wav", "WAV", "PCM_24", 96_000, 6),
        ("wav", "WAV", "FLOAT", 44_100, 2),
        ("flac", "FLAC", "PCM_16", 96_000, 6),
        ("mp3", "MP3", None, 44_100, 2),
        ("ogg", "OGG", "VORBIS", 22_050, 1),
        ("opus", "OGG", "OPUS", 48_000, 2),
    ],
)
def test_common_formats_are_read_at_any_rate_and_number_of_channels(
    tmp_path, ending, format, subtype, rate_hz, channels
):
    (tmp_path / f"x.{ending}").write_bytes(encoded(format, subtype, 0.5, rate_hz, channels))
    samples = load_audio(tmp_path / f"x.{ending}", 16_000)
    header = audio_header(tmp_path / f"x.{ending}")
    assert (header.rate_hz, header.channels) == (rate_hz, channels) and header.format.startswith(
        format
    )
    assert abs(len(samples) - 8_000) < 1_200
    spectrum = torch.fft.rfft(samples[1_000:7_000] * torch.hann_window(6_000)).abs()
    assert abs(spectrum.argmax().item() * 16_000 / 6_000 - 440) < 4
    assert samples[2_000:6_000].abs().max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.9])
@pytest.mark.parametrize(
    "format, subtype",
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", None),
        ("MP3", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("AIFF", None),
    ],
)
def test_truncated_files_are_refused(tmp_path, format, subtype, share):
    content = encoded(format, subtype)
    (tmp_path / "x").write_bytes(content)
    assert len(load_audio(tmp_path / "x", 16_000)) >= 48_000
    (tmp_path / "x").write_bytes(content[: round(share * len(content))])
    with pytest.raises(SignalError, match="audio .*/x is (cut short|not readable)"):
        load_audio(tmp_path / "x", 16_000)


def test_a_wav_with_unknown_sizes_is_read_whole(tmp_path):
    content = bytearray(encoded("WAV", "PCM_16"))
    # The sizes of the file and of its data.
    size = content.index(b"data") + 4
    content[4:8] = content[size : size + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(content)
    assert len(load_audio(tmp_path / "piped.wav", 16_000)) == 48_000


def test_a_wrong_ending_is_warned_of_once_and_the_content_decides(tmp_path, caplog):
    (tmp_path / "a.wav").write_bytes(encoded("FLAC"))
    (tmp_path / "b.wav").write_bytes(encoded("FLAC"))
    (tmp_path / "c.flac").write_bytes(encoded("FLAC"))
    for name in ("a.wav", "b.wav", "c.flac"):
        assert len(load_audio(tmp_path / name, 16_000)) == 48_000
    (message,) = caplog.messages
    assert "end in .wav and are FLAC" in message


@pytest.mark.parametrize("head, reason", [
    (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(99), "MPEG-4.*ffmpeg"),
    (b"\xff\xf1\x50\x80" + bytes(99), "AAC.*ffmpeg"),
    (b"\x1a\x45\xdf\xa3" + bytes(99), "WebM.*ffmpeg"),
    (b"", "no bytes at all"),
    (b"\0" * 99, "not readable as audio .*; give wav"),
])  # fmt: skip
def test_foreign_formats_are_named_with_the_way_out(tmp_path, head, reason):
    (tmp_path / "x.m4a").write_bytes(head)
    with pytest.raises(SignalError, match=reason):
        audio_header(tmp_path / "x.m4a")
