"""The published layout of unit vocoders: reading, writing, and refusals in one sentence."""

import json

import pytest
import torch

from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.core.errors import CheckpointError
from echox.vocoders.layout import (
    CONFIG,
    TINY,
    WEIGHTS,
    build_generator,
    normed,
    weights_path,
    write_vocoder,
)

DURATIONS = TINY["dur_predictor_params"]


def write_random(folder, *, step=7, **settings):
    """A vocoder of random weights in the published layout."""
    torch.manual_seed(0)
    settings = TINY | settings
    write_vocoder(folder, normed(build_generator(settings, folder / CONFIG)), settings, step)
    return folder


def test_a_written_vocoder_is_read_back(tmp_path):
    torch.manual_seed(0)
    net = normed(build_generator(TINY, tmp_path / CONFIG)).eval()
    path = write_vocoder(tmp_path, net, TINY, 4000)
    assert path.name == "g_00004000"
    codec = UnitHifiGan(UnitHifiGanConfig(folder=str(tmp_path)))
    units = torch.tensor([3, 700, 12, 999])
    frames = net.durations(units)[1]
    with torch.no_grad():
        expected = net(units.repeat_interleave(frames)[None], torch.zeros(1, dtype=torch.int64))[0]
    assert torch.equal(codec.sound(units), expected)


def test_names_and_weight_norm_are_those_of_the_release(tmp_path):
    tensors = torch.load(weights_path(write_random(tmp_path)), weights_only=True)["generator"]
    assert {
        "dict.weight",
        "conv_pre.weight_g",
        "conv_pre.weight_v",
        "conv_pre.bias",
        "ups.4.weight_g",
        "conv_post.weight_v",
    } <= tensors.keys()
    assert {
        "resblocks.0.convs1.1.weight_v",
        "dur_predictor.conv1.0.weight",
        "dur_predictor.ln2.bias",
        "dur_predictor.proj.weight",
    } <= tensors.keys()
    assert tensors["conv_pre.weight_g"].shape == (32, 1, 1) and not any(
        "parametrizations" in name for name in tensors
    )


def test_weights_without_weight_norm_are_read_too(tmp_path):
    write_random(tmp_path)
    units = torch.arange(5)
    before = UnitHifiGan(UnitHifiGanConfig(folder=str(tmp_path))).sound(units)
    content = torch.load(weights_path(tmp_path), weights_only=True)["generator"]
    plain = {name: tensor for name, tensor in content.items() if not name.endswith(("_g", "_v"))}
    for name in [name for name in content if name.endswith("_v")]:
        plain[name.removesuffix("_v")] = torch._weight_norm(
            content[name], content[name.removesuffix("_v") + "_g"], 0
        )
    torch.save({"generator": plain}, weights_path(tmp_path))
    assert torch.equal(UnitHifiGan(UnitHifiGanConfig(folder=str(tmp_path))).sound(units), before)


def test_the_published_file_is_preferred_to_other_steps(tmp_path):
    assert weights_path(tmp_path).name == WEIGHTS
    (tmp_path / "g_00009000").touch()
    (tmp_path / "g_00010000").touch()
    assert weights_path(tmp_path).name == "g_00010000"
    (tmp_path / WEIGHTS).touch()
    assert weights_path(tmp_path).name == WEIGHTS


@pytest.mark.parametrize(
    ("settings", "speakers"),
    [
        ({"multispkr": None}, None),
        ({"multispkr": "_", "model_in_dim": 8}, 200),
        ({"multispkr": "_", "model_in_dim": 8, "num_speakers": 3}, 3),
    ],
)
def test_one_speaker_or_several(tmp_path, settings, speakers):
    codec = UnitHifiGan(UnitHifiGanConfig(folder=str(write_random(tmp_path, **settings))))
    assert (codec.net.speakers and codec.net.speakers.num_embeddings) == speakers
    units = torch.arange(4)
    different = not torch.equal(codec.sound(units, 0), codec.sound(units, 2))
    assert different == (speakers is not None)


def test_without_a_duration_predictor_a_unit_is_a_frame(tmp_path):
    codec = UnitHifiGan(
        UnitHifiGanConfig(folder=str(write_random(tmp_path, dur_predictor_params=None)))
    )
    assert len(codec.sound(torch.tensor([1, 1, 2]))) == 3 * 320


REFUSED = [
    ({"f0": True}, "pitch as input"),
    ({"f0": True, "embedder_params": {"n": 1}}, "pitch and speaker vectors as input"),
    ({"embedder_params": {"n": 1}}, "speaker vectors as input"),
    ({"code_hop_size": 640}, "make 320 samples of a unit, code_hop_size says 640"),
    ({"model_in_dim": 9}, "model_in_dim is 9, but units of 4 channels make 4"),
    (
        {"multispkr": "_"},
        "model_in_dim is 4, but units of 4 channels beside a speaker's of as many make 8",
    ),
    (
        {"dur_predictor_params": DURATIONS | {"var_pred_kernel_size": 5}},
        "kernel is 5, fairseq pads for 3 alone",
    ),
    (
        {"dur_predictor_params": DURATIONS | {"encoder_embed_dim": 8}},
        "reads 8 channels, units have 4",
    ),
    (
        {"upsample_kernel_sizes": [10, 8, 8, 4, 4]},
        "upsampling by 5 needs a kernel larger by an even number, not 10",
    ),
    ({"upsample_rates": None}, "no vocoder config of fairseq"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_unsupported_settings_are_refused_in_one_sentence(tmp_path, settings, message):
    write_random(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(TINY | settings))
    with pytest.raises(CheckpointError) as error:
        UnitHifiGan(UnitHifiGanConfig(folder=str(tmp_path)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_of_other_sizes_are_refused(tmp_path):
    write_random(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(TINY | {"num_embeddings": 1001}))
    with pytest.raises(
        CheckpointError,
        match=r"tensor units.weight .* has shape \[1000, 4\], .* asks for \[1001, 4\]",
    ):
        UnitHifiGan(UnitHifiGanConfig(folder=str(tmp_path)))


def test_sizes_of_the_release_are_the_default():
    from echox.tasks.base import Parts, StageContext
    from echox.tasks.vocoder.task import GeneratorSizes, VocoderTask, VocoderTaskConfig

    task = VocoderTask(
        VocoderTaskConfig(units=1000),
        StageContext(parts=Parts(None, None, None), seed=0, cache_dir=None),
    )
    with torch.device("meta"):
        task.speakers = []
        net = normed(build_generator(task._settings(1000), "config"))
    size = sum(parameter.numel() for parameter in net.parameters())
    # 54.1 MB in float32, which is what g_00500000 takes.
    assert 13.4e6 < size < 13.7e6 and GeneratorSizes().upsample_initial_channel == 512
