"""Neural codecs against the library's own models: codes, samples, streams, and refusals."""

import dataclasses
import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, EncodecModel

from echox.codecs import neural
from echox.codecs.base import CODECS
from echox.codecs.neural import (
    DacCodecConfig,
    EncodecCodecConfig,
    HiggsCodecConfig,
    MimiCodecConfig,
    WavTokenizerCodecConfig,
    XcodecCodecConfig,
)
from echox.codecs.neural.codec import Shape
from echox.core.errors import AssetError, ConfigError, PluginError, SignalError
from echox.core.signals import Units, Waveform
from echox.pipeline.plugins import discover

discover()
CONFIGS = {
    "wavtokenizer": WavTokenizerCodecConfig,
    "mimi": MimiCodecConfig,
    "encodec": EncodecCodecConfig,
    "dac": DacCodecConfig,
    "xcodec": XcodecCodecConfig,
    "higgs_audio": HiggsCodecConfig,
}
K = 3


def build(name, **settings):
    return CODECS.build(
        CONFIGS[name](
            **{"weights": "random", "codebooks": 1 if name == "wavtokenizer" else K} | settings
        )
    )


@pytest.fixture(scope="module")
def codecs():
    return {name: build(name) for name in CONFIGS}


def noise(codec, frames, seed=0):
    samples = 0.3 * torch.randn(
        1, frames * codec.hop_samples, generator=torch.Generator().manual_seed(seed)
    )
    return Waveform(samples, torch.tensor([samples.shape[1]]), codec.rate_hz)


def random_codes(codec, frames):
    return torch.randint(
        codec.vocab_size, (1, codec.codebooks, frames), generator=torch.Generator().manual_seed(1)
    )


LIBRARY = {
    "mimi": (
        lambda net, wave: net.encode(wave, num_quantizers=K).audio_codes,
        lambda net, codes: net.decode(codes).audio_values[:, 0],
    ),
    "encodec": (
        lambda net, wave: net.encode(wave, bandwidth=net.config.target_bandwidths[0]).audio_codes[
            0
        ],
        lambda net, codes: net.decode(codes[None], [None]).audio_values[:, 0],
    ),
    "wavtokenizer": (
        lambda net, wave: net.encode(wave).audio_codes,
        lambda net, codes: net.decode(codes).audio_values.flatten(1),
    ),
    "dac": (
        lambda net, wave: net.encode(wave, n_quantizers=K).audio_codes,
        lambda net, codes: net.decode(audio_codes=codes).audio_values,
    ),
    "xcodec": (
        lambda net, wave: net.encode(wave, bandwidth=0.75).audio_codes,
        lambda net, codes: net.decode(codes).audio_values[:, 0],
    ),
    "higgs_audio": (
        lambda net, wave: net.encode(wave, bandwidth=0.375).audio_codes,
        lambda net, codes: net.decode(codes).audio_values[:, 0],
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_codes_and_samples_equal_the_library_s(codecs, name):
    codec, (encode, decode) = codecs[name], LIBRARY[name]
    wave = noise(codec, 12)
    units = codec.encode(wave)
    assert (
        units.ids.shape == ((1, 12) if codec.codebooks == 1 else (1, K, 12))
        and units.rate_hz == codec.rate_hz / codec.hop_samples
    )
    assert torch.equal(
        units.ids.view(1, -1, 12), encode(codec.net, wave.samples[:, None])[..., :12]
    )
    assert len(units.ids.unique()) > (1 if codec.codebooks == 1 else 3)
    codes = random_codes(codec, 12)
    decoded = codec.decode(Units(codes, torch.tensor([12]), None))
    expected = decode(codec.net, codes).clamp(-1, 1)
    assert (
        decoded.samples.shape == (1, 12 * codec.hop_samples)
        and 0 <= decoded.samples.shape[1] - expected.shape[1] < codec.hop_samples
    )
    torch.testing.assert_close(decoded.samples[:, : expected.shape[1]], expected)
    assert expected.std() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_last_sample_begins_a_frame(codecs, name):
    codec = codecs[name]
    lengths = torch.tensor([codec.hop_samples, codec.hop_samples + 1, 0])
    units = codec.encode(
        Waveform(torch.full((3, codec.hop_samples + 1), 0.1), lengths, codec.rate_hz)
    )
    assert units.lengths.tolist() == [1, 2, 0]


@pytest.mark.parametrize("name", ["mimi", "encodec", "dac"])
def test_fewer_codebooks_are_the_first_of_more(codecs, name):
    wave = noise(codecs[name], 10)
    first = build(name, codebooks=1)
    first.net = codecs[name].net
    units = first.encode(wave)
    assert units.ids.shape == (1, 10) and torch.equal(
        units.ids, codecs[name].encode(wave).ids[:, 0]
    )
    assert first.fingerprint() != codecs[name].fingerprint()


@pytest.mark.parametrize("sizes", [[1] * 40, [13, 0, 27], [40]], ids=["frames", "uneven", "whole"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_equals_decoding_at_once(codecs, name, sizes):
    codec, codes = codecs[name], random_codes(codecs[name], 40)
    whole = codec.decode(Units(codes, torch.tensor([40]), None)).samples
    state, pieces, at = None, [], 0
    for size in sizes:
        chunk = Units(codes[..., at : at + size], torch.tensor([size]), None)
        at += size
        wave, state = codec.decode_chunk(chunk, state, last=at == 40)
        pieces.append(wave.samples[:, : int(wave.lengths[0])])
    joined = torch.cat(pieces, dim=1)
    assert joined.shape == whole.shape
    assert float((joined - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    if len(sizes) == 40 and name != "wavtokenizer":
        assert (
            sum(piece.shape[1] for piece in pieces[:25]) >= 10 * codec.hop_samples
        )  # it does not wait for the end


@pytest.mark.parametrize("name", ["mimi", "encodec"])
def test_causal_codecs_decode_each_frame_at_once(codecs, name):
    codec, codes = codecs[name], random_codes(codecs[name], 12)
    state = None
    for at in range(12):
        wave, state = codec.decode_chunk(
            Units(codes[..., at : at + 1], torch.tensor([1]), None), state, last=False
        )
        if at >= 8 or name == "mimi":
            assert wave.lengths.tolist() == [codec.hop_samples]


@pytest.mark.parametrize("name", ["mimi", "encodec"])
def test_autocast_changes_no_code(codecs, name):
    wave = noise(codecs[name], 10)
    plain = codecs[name].encode(wave).ids
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codecs[name].encode(wave).ids, plain)
        assert (
            codecs[name].decode(Units(plain, torch.tensor([10]), None)).samples.dtype
            == torch.float32
        )


def test_saved_weights_give_the_same_codec(codecs, tmp_path):
    codec = codecs["mimi"]
    codec.net.save_pretrained(tmp_path / "mimi")
    again = build("mimi", weights=str(tmp_path / "mimi"))
    wave = noise(codec, 6)
    assert (
        torch.equal(again.encode(wave).ids, codec.encode(wave).ids)
        and again.fingerprint() == codec.fingerprint()
    )
    config = again.config
    assert (
        type(again).expected_unit_vocab_size(config) == 32
        and type(again).expected_codebooks(config) == K
        and type(again).missing(config) == []
    )
    with torch.no_grad():
        next(again.net.parameters()).add_(1e-3)
    again._fingerprint = ""
    assert again.fingerprint() != codec.fingerprint()
    with pytest.raises(
        AssetError, match="does not hold a DacModel that can be read .it is of type mimi"
    ):
        build("dac", weights=str(tmp_path / "mimi"))
    with pytest.raises(ConfigError, match="codebooks is 9, but .*mimi has 3"):
        build("mimi", weights=str(tmp_path / "mimi"), codebooks=9)
    tensors = load_file(tmp_path / "mimi" / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "upsample" not in name},
        tmp_path / "mimi" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(AssetError, match="upsample.* missing"):
        build("mimi", weights=str(tmp_path / "mimi"))


def test_published_shapes_are_known_without_weights():
    published = [
        (MimiCodecConfig(), Shape(24_000, 1920, 32, 2048)),
        (EncodecCodecConfig(), Shape(24_000, 320, 32, 1024)),
        (DacCodecConfig(), Shape(16_000, 320, 12, 1024)),
        (DacCodecConfig(weights="descript/dac_24khz"), Shape(24_000, 320, 32, 1024)),
        (DacCodecConfig(weights="descript/dac_44khz"), Shape(44_100, 512, 9, 1024)),
    ]
    for config, shape in published:
        codec = CODECS.entry_of(config).implementation
        assert codec.shape(codec.hub_config(config)) == shape
        assert (
            codec.expected_codebooks(config) == 8
            and codec.expected_unit_vocab_size(config) == shape.entries
        )


def test_wrong_codes_are_refused(codecs):
    codec = codecs["dac"]
    with pytest.raises(SignalError, match="units of 2 codebooks do not fit this codec's 3"):
        codec.decode(Units(torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([4]), None))
    with pytest.raises(SignalError, match="do not fit the codec's 0..31"):
        codec.decode(Units(torch.full((1, 3, 4), 32), torch.tensor([4]), None))
    with pytest.raises(ConfigError, match="codec.codebooks is 0"):
        dataclasses.replace(codec.config, codebooks=0)


def test_an_encodec_of_two_channels_is_refused(tmp_path):
    stereo = EncodecConfig(
        audio_channels=2,
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
        use_causal_conv=False,
        norm_type="time_group_norm",
        hidden_size=8,
        num_filters=2,
        codebook_size=32,
        num_lstm_layers=1,
        target_bandwidths=[3.0],
    )
    EncodecModel(stereo).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use facebook/encodec_24khz"):
        build("encodec", weights=str(tmp_path))


def test_mimi_may_move_after_it_was_used(codecs):
    codec = build("mimi")
    wave = noise(codec, 4)
    codec.encode(wave)
    codec.to(torch.float64).to(torch.float32)
    assert all(
        module._embed is None
        for module in codec.net.quantizer.modules()
        if hasattr(module, "_embed")
    )
    assert torch.equal(codec.encode(wave).ids, codecs["mimi"].encode(wave).ids)


def test_an_older_library_is_refused_by_name(monkeypatch):
    # By name, because the library replaces its own module while it imports a model's code.
    monkeypatch.setattr("transformers.__version__", "5.23.0")
    with pytest.raises(
        PluginError, match="need transformers 5.24 or newer, and 5.23.0 is installed"
    ):
        importlib.reload(neural)
