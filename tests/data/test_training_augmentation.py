"""Augmented clips: the same draw gives the same sound, each change does what its name says."""

import numpy as np
import pytest
import soundfile
import torch

from echox.core.errors import ConfigError
from echox.core.signals import Features
from echox.data.audio import load_audio
from echox.data.audio_ref import audio_ref
from echox.data.augmentation import Augmentation, AugmentationConfig, DrawnClip

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE_HZ) / RATE_HZ), RATE_HZ)
    return path


def augment(clip, draw: str = "1 0 0 row", **settings) -> torch.Tensor:
    return Augmentation(AugmentationConfig(**settings)).load(DrawnClip(clip, draw), RATE_HZ)


ALL = {"speed_share": 1.0, "room_share": 1.0, "noise_share": 1.0}


def test_draws_are_repeatable_and_differ_by_seed_epoch_row_and_clip(clip):
    augmentation = Augmentation(AugmentationConfig(**ALL))
    rows = [
        augmentation.drawn("a", [clip, clip], 0),
        augmentation.drawn("a", [clip, clip], 1),
        augmentation.drawn("b", [clip, clip], 0),
    ]
    rows += [Augmentation(AugmentationConfig(seed=2, **ALL)).drawn("a", [clip], 0)]
    sounds = [augmentation.load(drawn, RATE_HZ) for row in rows for drawn in row]
    assert len({sound.numpy().tobytes() for sound in sounds}) == 7
    repeat = augmentation.load(
        Augmentation(AugmentationConfig(**ALL)).drawn("a", [clip, clip], 0)[1], RATE_HZ
    )
    assert torch.equal(repeat, sounds[1])
    assert all(sound.abs().max() <= 1 and torch.isfinite(sound).all() for sound in sounds)


def test_the_defaults_change_nothing(clip):
    assert torch.equal(augment(clip), load_audio(clip, RATE_HZ))
    assert not AugmentationConfig().changes_sound and not AugmentationConfig().hides_features


def test_faster_clips_are_shorter_and_higher(clip):
    fast = augment(clip, speed_share=1.0, speed=[1.25, 1.25])
    assert len(fast) == round(RATE_HZ / 1.25)
    assert torch.fft.rfft(fast).abs().argmax().item() * RATE_HZ / len(fast) == pytest.approx(
        625, abs=2
    )


@pytest.mark.parametrize("folder", [False, True])
def test_noise_has_the_configured_level(clip, tmp_path, folder):
    soundfile.write(
        tmp_path / "hum.flac", np.random.default_rng(0).standard_normal(3 * RATE_HZ) * 0.01, RATE_HZ
    )
    noisy = augment(
        clip, noise_share=1.0, snr_db=[10.0, 10.0], noise_folder=str(tmp_path) if folder else None
    )
    clean = load_audio(clip, RATE_HZ)
    assert 10 * torch.log10(
        clean.square().mean() / (noisy - clean).square().mean()
    ) == pytest.approx(10, abs=0.2)


def test_long_noises_are_cut_at_random_and_short_ones_repeated(clip, tmp_path):
    soundfile.write(tmp_path / "ramp.wav", np.linspace(0.01, 0.9, 10 * RATE_HZ), RATE_HZ)
    noises = [
        augment(clip, draw, noise_share=1.0, noise_folder=str(tmp_path)) - load_audio(clip, RATE_HZ)
        for draw in ("1", "2")
    ]
    assert not torch.allclose(noises[0] / noises[0].mean(), noises[1] / noises[1].mean(), rtol=0.05)
    soundfile.write(tmp_path / "ramp.wav", np.tile([0.5, -0.5], RATE_HZ // 8), RATE_HZ)
    noise = augment(clip, noise_share=1.0, noise_folder=str(tmp_path)) - load_audio(clip, RATE_HZ)
    assert noise[-100:].abs().min() > 0


def test_a_recorded_room_keeps_the_direct_sound_and_adds_its_echo(clip, tmp_path):
    response = np.zeros(800)
    response[100], response[500] = 0.5, 0.25
    soundfile.write(tmp_path / "room.wav", response, RATE_HZ, subtype="FLOAT")
    wet, dry = augment(clip, room_share=1.0, room_folder=str(tmp_path)), load_audio(clip, RATE_HZ)
    expected = dry.clone()
    expected[400:] += 0.5 * dry[:-400]
    torch.testing.assert_close(wet, expected, atol=1e-4, rtol=0)
    random_room = augment(clip, room_share=1.0)
    assert len(random_room) == len(dry) and not torch.allclose(random_room, dry, atol=0.01)


def test_parts_of_recordings_are_augmented(clip):
    part = audio_ref(clip).between(0.25, 0.75)
    assert len(augment(part, noise_share=1.0)) == RATE_HZ // 2


def test_shares_are_kept(clip):
    config = AugmentationConfig(noise_share=0.3)
    augmentation, clean = Augmentation(config), load_audio(clip, RATE_HZ)
    noisy = sum(
        not torch.equal(augmentation.load(drawn, RATE_HZ), clean)
        for epoch in range(100)
        for drawn in augmentation.drawn("row", [clip], epoch)
    )
    assert 15 <= noisy <= 45


def test_masks_stay_within_each_clip_and_leave_the_rest(clip):
    augmentation = Augmentation(
        AugmentationConfig(time_masks=2, time_mask_s=0.2, channel_masks=1, channel_mask_share=0.25)
    )
    torch.manual_seed(0)
    features = Features(torch.randn(2, 100, 16), torch.tensor([100, 40]), 50.0)
    features.values[1, 40:] = 0
    clips = [augmentation.drawn(name, [clip], 0)[0] for name in ("a", "b")]
    hidden = augmentation.hidden(features, clips)
    assert torch.equal(hidden.values, augmentation.hidden(features, clips).values)
    assert torch.equal(hidden.values[1, 40:], torch.zeros(60, 16))
    mean = features.values[0].mean(0)
    frames = torch.isclose(hidden.values[0], mean).all(1)
    bands = torch.isclose(hidden.values[0], mean).all(0)
    assert 0 < frames.sum() <= 22 and bands.sum() <= 5
    unmasked = ~frames[:, None] & ~bands[None]
    assert torch.equal(hidden.values[0][unmasked], features.values[0][unmasked])
    # Masks follow from the clip's own draw, whatever it is batched with.
    alone = augmentation.hidden(
        Features(features.values[1:, :40], torch.tensor([40]), 50.0), clips[1:]
    )
    assert torch.equal(alone.values[0], hidden.values[1, :40])


@pytest.mark.parametrize("settings, reason", [
    ({"noise_share": 1.5}, "noise_share=1.5"),
    ({"speed": [1.1, 0.9]}, "no range"),
    ({"speed": [0.0, 1.0]}, "above 0"),
    ({"time_masks": -1}, "below 0"),
])  # fmt: skip
def test_invalid_settings_are_named(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        AugmentationConfig(**settings)


def test_a_folder_without_sounds_is_named(tmp_path):
    with pytest.raises(ConfigError, match="noise_folder.*holds no .wav"):
        Augmentation(AugmentationConfig(noise_folder=str(tmp_path)))
