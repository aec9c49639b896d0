"""Streams of samples: their rates, their encodings, and where speech is in them."""

import audioop_reference
import pytest
import torch
import torchaudio

from echox.core.errors import SignalError
from echox.inference.audio_input import Encoding, StreamResampler, decoded, encoded


@pytest.mark.parametrize(
    ("source_hz", "rate_hz"),
    [(24_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 24_000)],
)
@pytest.mark.parametrize("size", [1, 37, 480, 5_000])
def test_chunks_are_resampled_as_the_whole(source_hz, rate_hz, size):
    samples = torch.randn(3_000, generator=torch.Generator().manual_seed(0))
    resampler = StreamResampler(source_hz, rate_hz)
    parts = [resampler.push(chunk) for chunk in samples.split(size)] + [resampler.finish()]
    whole = torchaudio.functional.resample(samples, source_hz, rate_hz)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    # Ready for the next stream.
    again = torch.cat([resampler.push(samples), resampler.finish()])
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=0)


def test_a_stream_is_resampled_without_keeping_it():
    resampler = StreamResampler(24_000, 16_000)
    for _ in range(50):
        resampler.push(torch.zeros(4_800))
    assert len(resampler._kept) < 200


def test_sixteen_bits_come_back():
    samples = torch.tensor([0.0, 0.5, -0.5, 0.999, -1.0, 2.0])
    again = decoded(encoded(samples, Encoding.pcm16), Encoding.pcm16)
    torch.testing.assert_close(again, samples.clamp(-1, 1), atol=1e-4, rtol=0)
    with pytest.raises(SignalError, match="3 bytes of 16-bit samples came, an odd number"):
        decoded(b"abc", Encoding.pcm16)


@pytest.mark.parametrize("encoding", [Encoding.mu_law, Encoding.a_law])
def test_g711_is_that_of_the_standard(encoding):
    codes = bytes(range(256))
    levels = (decoded(codes, encoding).numpy() * 32768).round().astype(int)
    assert levels.tolist() == audioop_reference.LEVELS[encoding.value]
    again = encoded(decoded(codes, encoding), encoding)
    # Mu-law has two codes for zero, of which one comes back.
    changed = [code for code in range(256) if codes[code] != again[code]]
    assert changed in ([], [0x7F], [0xFF])
    speech = torch.linspace(-0.9, 0.9, 999)
    error = (decoded(encoded(speech, encoding), encoding) - speech).abs()
    assert bool((error <= 0.035 * speech.abs() + 0.001).all())
