"""HuBERT, wav2vec 2.0 and WavLM: equal to the library on single clips, alone or in a batch."""

import json
from fractions import Fraction

import pytest
import torch
from transformers import (
    AutoModel,
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from echox.core.errors import AssetError, ConfigError, SignalError
from echox.core.signals import Waveform
from echox.encoders.ssl import SslConfig, SslEncoder
from echox.encoders.whisper import WhisperConfig, WhisperEncoder

SMALL = dict(
    conv_dim=(16,) * 7,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)
STABLE = dict(feat_extract_norm="layer", do_stable_layer_norm=True)
SHAPES = {
    "hubert_base": HubertConfig(**SMALL),
    "hubert_large": HubertConfig(**SMALL, **STABLE),
    "hubert_batch_norm": HubertConfig(**SMALL, conv_pos_batch_norm=True),
    "hubert_unprojected_norm": HubertConfig(**SMALL, feat_proj_layer_norm=False, conv_bias=True),
    "wav2vec2_base": Wav2Vec2Config(**SMALL),
    "wav2vec2_large": Wav2Vec2Config(**SMALL, **STABLE),
    "wavlm_base": WavLMConfig(**SMALL),
    "wavlm_large": WavLMConfig(**SMALL, **STABLE),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model of each kind, as the library saves it; every norm has random biases."""
    paths = {}
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        model = AutoModel.from_config(shape).eval()
        for module in model.modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.BatchNorm1d, torch.nn.LayerNorm)):
                torch.nn.init.normal_(module.bias)
        paths[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(paths[name])
        Wav2Vec2FeatureExtractor(do_normalize=name.endswith("large")).save_pretrained(paths[name])
    return paths


def speech(*lengths, fill=float("nan")):
    torch.manual_seed(1)
    samples = 0.1 * torch.randn(len(lengths), max(lengths)) + 0.02
    for clip, length in zip(samples, lengths):
        clip[length:] = fill
    return Waveform(samples, torch.tensor(lengths), 16_000)


def library_states(folder, clip):
    """[F, D] of every layer, and the library's own output last."""
    model, extractor = (
        AutoModel.from_pretrained(folder).eval(),
        Wav2Vec2FeatureExtractor.from_pretrained(folder),
    )
    values = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        output = model(values, output_hidden_states=True)
    return [*output.hidden_states, output.last_hidden_state]


@pytest.mark.parametrize("name", SHAPES)
def test_states_equal_the_library_s_for_each_clip_alone_and_in_a_batch(folders, name):
    wave = speech(9_000, 16_000, 4_321)
    for layer in (None, 1, 2):
        ours = SslEncoder(SslConfig(weights=str(folders[name]), layer=layer))(wave)
        assert ours.rate_hz == 50
        for row, length in enumerate(wave.lengths.tolist()):
            theirs = library_states(folders[name], wave.samples[row, :length])[
                -1 if layer is None else layer
            ][0]
            assert ours.lengths[row] == len(theirs)
            torch.testing.assert_close(
                ours.values[row, : len(theirs)], theirs, atol=2e-5, rtol=1e-4
            )
            assert not ours.values[row, len(theirs) :].any()


def test_states_of_the_library_s_own_batch_depend_on_padding(folders):
    """Why clips are not simply padded: the group norm's mean runs over the padding."""
    wave = speech(9_000, 16_000, fill=0.0)
    model = AutoModel.from_pretrained(folders["hubert_base"]).eval()
    with torch.no_grad():
        together = model(
            wave.samples, attention_mask=(torch.arange(16_000) < wave.lengths[:, None]).long()
        ).last_hidden_state[0, :27]
        alone = model(wave.samples[:1, :9_000]).last_hidden_state[0, :27]
    assert (together - alone).abs().max() > 1e-2


def test_the_last_layer_s_states_precede_the_final_norm(folders):
    """As in fairseq; the model's own output follows the norm."""
    wave = speech(9_000)
    output, last = (
        SslEncoder(SslConfig(weights=str(folders["hubert_large"]), layer=layer))
        for layer in (None, 3)
    )
    normed = AutoModel.from_pretrained(folders["hubert_large"]).encoder.layer_norm(
        last(wave).values
    )
    torch.testing.assert_close(normed, output(wave).values, atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="has 3 layers"):
        SslEncoder(SslConfig(weights=str(folders["hubert_large"]), layer=4))


def test_long_clips_are_windowed_and_joined(folders):
    encoder = SslEncoder(SslConfig(weights=str(folders["hubert_base"]), window_s=1.0))
    wave = speech(40_000, 16_000 + 100)
    joined = encoder(wave)
    assert joined.lengths.tolist() == [
        49 + 49 + 24,
        49,
    ]  # the rest of the second row is shorter than a frame
    second = encoder(Waveform(wave.samples[:1, 16_000:32_000], torch.tensor([16_000]), 16_000))
    torch.testing.assert_close(joined.values[0, 49:98], second.values[0], atol=2e-5, rtol=1e-4)
    unwindowed = SslEncoder(SslConfig(weights=str(folders["hubert_base"])))(wave)
    assert unwindowed.lengths.tolist() == [124, 50]


def test_normalization_follows_the_folder_unless_configured(folders, tmp_path):
    def normalizes(name, **fields):
        return SslEncoder(SslConfig(weights=str(folders[name]), **fields)).normalizes

    assert normalizes("hubert_large") and not normalizes("hubert_base")
    assert normalizes("hubert_base", normalize=True) and not normalizes(
        "hubert_large", normalize=False
    )
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders["wavlm_large"] / file).read_bytes())
    assert SslEncoder(SslConfig(weights=str(tmp_path))).normalizes
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert not SslEncoder(SslConfig(weights=str(tmp_path))).normalizes


def test_pickled_weights_are_read_without_running_code(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders["hubert_base"] / "config.json").read_bytes())
    model = AutoModel.from_pretrained(folders["hubert_base"])
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    wave = speech(8_000)
    old, new = (
        SslEncoder(SslConfig(weights=str(folder), normalize=False))
        for folder in (tmp_path, folders["hubert_base"])
    )
    assert torch.equal(old(wave).values, new(wave).values)
    torch.save(
        {**model.state_dict(), "code": Fraction(1, 2)}, tmp_path / "pytorch_model.bin"
    )  # an object of a class
    with pytest.raises(AssetError, match="HuBERT"):
        SslEncoder(SslConfig(weights=str(tmp_path)))


def test_other_models_and_rates_are_refused(tmp_path):
    WhisperEncoder(WhisperConfig(weights="random")).encoder.config.save_pretrained(tmp_path)
    with pytest.raises(AssetError, match="is a whisper"):
        SslEncoder(SslConfig(weights=str(tmp_path)))
    with pytest.raises(SignalError, match="8000 Hz; resample"):
        SslEncoder(SslConfig(weights="random"))(
            Waveform(torch.zeros(1, 800), torch.tensor([800]), 8_000)
        )
    for wrong in ({"layer": 0}, {"window_s": 0.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SslConfig(**wrong)


def test_the_fingerprint_depends_on_values_not_on_their_sums(folders):
    encoder = SslEncoder(SslConfig(weights=str(folders["hubert_batch_norm"])))
    fingerprints = [encoder.fingerprint()]
    with torch.no_grad():
        # Sums stay, which a GPU would round otherwise.
        weight = encoder.model.feature_projection.projection.weight
        weight[0, :2] = weight[0, :2].flip(0).clone()
        fingerprints.append(encoder.fingerprint())
        encoder.model.encoder.pos_conv_embed.batch_norm.norm.running_mean.add_(1)
    assert len({*fingerprints, encoder.fingerprint()}) == 3


def test_the_fingerprint_depends_on_weights_and_settings(folders):
    settings = [
        ("hubert_base", {}),
        ("hubert_base", {"layer": 2}),
        ("hubert_base", {"normalize": True}),
        ("wavlm_base", {}),
    ]
    fingerprints = {
        SslEncoder(SslConfig(weights=str(folders[name]), **fields)).fingerprint()
        for name, fields in settings
    }
    assert len(fingerprints) == 4


def test_outline_has_the_true_shapes_without_weights():
    outline = SslEncoder.outline(SslConfig(weights="facebook/hubert-base-ls960", layer=9))
    assert outline.dim == 768 and len(outline.model.encoder.layers) == 9
    assert {parameter.device.type for parameter in outline.model.encoder.parameters()} == {"meta"}


def test_states_under_bfloat16_autocast_stay_close():
    encoder, wave = SslEncoder(SslConfig(weights="random")), speech(9_000, 16_000)
    exact = encoder(wave)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(wave)
    assert half.lengths.tolist() == exact.lengths.tolist()
    assert (half.values - exact.values).abs().max() < 0.03 * exact.values.abs().max()
