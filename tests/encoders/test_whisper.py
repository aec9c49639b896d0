"""Whisper's encoder: equal to the original on its window, independent of padding elsewhere."""

import pytest
import torch
from transformers import WhisperConfig as HubConfig
from transformers import WhisperFeatureExtractor, WhisperModel

from echox.core.errors import ConfigError, SignalError
from echox.core.signals import Waveform
from echox.encoders.whisper import WhisperConfig, WhisperEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Whisper saved as the library saves it."""
    path = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    shape = HubConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(shape).eval().save_pretrained(path)
    WhisperFeatureExtractor().save_pretrained(path)
    return path


def speech(*lengths):
    torch.manual_seed(1)
    samples = 0.1 * torch.randn(len(lengths), max(lengths))
    for clip, length in zip(samples, lengths):
        clip[length:] = 0
    return Waveform(samples, torch.tensor(lengths), 16_000)


def test_equals_the_library_on_the_window(folder):
    wave = speech(40_000, 23_456)
    ours = WhisperEncoder(WhisperConfig(weights=str(folder), pad_to_window=True))(wave)
    clips = [row[:length].numpy() for row, length in zip(wave.samples, wave.lengths)]
    mel = WhisperFeatureExtractor.from_pretrained(folder)(
        clips, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        theirs = WhisperModel.from_pretrained(folder).eval().encoder(mel).last_hidden_state
    for row, length in enumerate(ours.lengths.tolist()):
        assert torch.allclose(ours.values[row, :length], theirs[row, :length], atol=1e-4)


def test_long_audio_is_windowed_not_cut(folder):
    encoder = WhisperEncoder(WhisperConfig(weights=str(folder)))
    wave = speech(33 * 16_000)
    joined = encoder(wave)
    assert joined.lengths.tolist() == [33 * 50]
    tail = encoder(Waveform(wave.samples[:, 30 * 16_000 :], torch.tensor([3 * 16_000]), 16_000))
    # The second window is independent but for the mel frames across the cut and the loudness of
    # the clip.
    assert (
        torch.nn.functional.cosine_similarity(
            joined.values[0, 1510:], tail.values[0, 10:], dim=-1
        ).min()
        > 0.9
    )


def test_a_layer_s_states_are_those_before_the_next_layer(folder):
    wave = speech(8_000)
    assert (
        WhisperEncoder(WhisperConfig(weights=str(folder), layers=2))(wave).values.shape
        == WhisperEncoder(WhisperConfig(weights=str(folder)))(wave).values.shape
    )
    with pytest.raises(ConfigError, match="has 3 layers"):
        WhisperEncoder(WhisperConfig(weights=str(folder), layers=4))


def test_middle_layers_are_appended_to_the_last(folder):
    wave = speech(40_000, 23_456)
    encoder = WhisperEncoder(WhisperConfig(weights=str(folder), also_layers=[1, 2]))
    assert encoder.dim == 96
    features = encoder(wave)
    last, first, second = (
        WhisperEncoder(WhisperConfig(weights=str(folder), layers=layers))(wave).values
        for layers in (None, 1, 2)
    )
    for row, length in enumerate(features.lengths.tolist()):
        expected = torch.cat(
            [
                last[row, :length],
                *(
                    torch.nn.functional.layer_norm(states[row, :length], (32,))
                    for states in (first, second)
                ),
            ],
            dim=-1,
        )
        assert torch.allclose(features.values[row, :length], expected, atol=1e-5)
        assert not features.values[row, length:].any()


@pytest.mark.parametrize(
    ("also_layers", "message"),
    [([0], "from 1 on"), ([2, 1], "ascending"), ([1, 1], "once"), ([3], "last of 3 layers")],
)
def test_invalid_middle_layers_are_refused(folder, also_layers, message):
    with pytest.raises(ConfigError, match=message):
        WhisperEncoder(WhisperConfig(weights=str(folder), also_layers=also_layers))


def test_a_tail_is_encoded_but_leaves_no_frames(folder):
    wave = speech(40_000, 23_456)
    plain, tailed = (
        WhisperEncoder(WhisperConfig(weights=str(folder), tail_s=tail_s))(wave)
        for tail_s in (0.0, 0.5)
    )
    padded = WhisperEncoder(WhisperConfig(weights=str(folder)))(
        Waveform(torch.nn.functional.pad(wave.samples, (0, 8_000)), wave.lengths + 8_000, 16_000)
    )
    assert torch.equal(tailed.lengths, plain.lengths) and tailed.values.shape == plain.values.shape
    for row, length in enumerate(plain.lengths.tolist()):
        assert torch.allclose(tailed.values[row, :length], padded.values[row, :length], atol=1e-5)
        assert not tailed.values[row, length:].any()
    with pytest.raises(ConfigError, match="tail_s is -1"):
        WhisperConfig(tail_s=-1)


def test_another_rate_is_refused():
    with pytest.raises(SignalError, match="8000 Hz; resample"):
        WhisperEncoder(WhisperConfig(weights="random"))(
            Waveform(torch.zeros(1, 800), torch.tensor([800]), 8_000)
        )


def test_the_fingerprint_depends_on_weights_and_settings(folder):
    settings = [{}, {"layers": 2}, {"also_layers": [1]}, {"also_layers": [2]}]
    fingerprints = {
        WhisperEncoder(WhisperConfig(weights=str(folder), **fields)).fingerprint()
        for fields in settings
    }
    fingerprints.add(WhisperEncoder(WhisperConfig(weights="random")).fingerprint())
    assert len(fingerprints) == 5


def test_random_states_depend_more_on_the_sound_than_on_the_position():
    pitches_hz = torch.tensor([110.0, 220.0, 440.0, 880.0, 1760.0, 3520.0])
    samples = 0.3 * torch.sin(2 * torch.pi * pitches_hz[:, None] * torch.arange(16_000) / 16_000)
    states = WhisperEncoder(WhisperConfig(weights="random"))(
        Waveform(samples, torch.full((6,), 16_000), 16_000)
    ).values
    by_position = states.mean(0)
    share = (by_position - by_position.mean(0)).square().sum() / (
        states - states.mean((0, 1))
    ).square().sum(-1).mean(0).sum()
    assert share < 0.5
