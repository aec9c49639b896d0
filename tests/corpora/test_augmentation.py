"""Augmentation: deterministic for a seed, in range, and each effect of the configured size."""

import numpy as np
import pytest

from echox.core.errors import ConfigError
from echox.corpora.augmentation import Augment, AugmentConfig, band_limit
from echox.data.acoustics import NOISES, in_room
from echox.data.resampling import resample

RATE_HZ = 16_000


def tone(hertz: float, duration_s: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (
        0.3 * np.sin(2 * np.pi * hertz * np.arange(round(duration_s * rate_hz)) / rate_hz)
    ).astype(np.float32)


def peak_hz(samples: np.ndarray, rate_hz: int = RATE_HZ) -> float:
    return float(
        np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate_hz / len(samples)
    )


def plain(**changes) -> AugmentConfig:
    """A configuration without any effect but those of `changes`."""
    no_effects = dict(
        speed=(1, 1),
        gain_db=(0, 0),
        noise_share=0,
        room_share=0,
        telephone_share=0,
        lead_s=(0, 0),
        trail_s=(0, 0),
    )
    return AugmentConfig(**{**no_effects, **changes})


def test_the_same_seed_gives_the_same_clip():
    clips = [Augment()(tone(200), RATE_HZ, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert clips[0].shape != clips[2].shape or not np.array_equal(clips[0], clips[2])


@pytest.mark.parametrize("seed", range(12))
def test_clips_stay_in_range_and_near_their_length(seed):
    samples = tone(200) * 3.2
    changed = Augment()(samples, RATE_HZ, np.random.default_rng(seed))
    assert (
        changed.dtype == np.float32
        and np.isfinite(changed).all()
        and np.abs(changed).max() <= 0.9801
    )
    assert 0.9 < len(changed) / RATE_HZ < 1.1 + 0.8 + 0.5


def test_a_config_without_effects_leaves_a_clip_unchanged():
    samples = tone(440)
    np.testing.assert_allclose(
        Augment(plain())(samples, RATE_HZ, np.random.default_rng(0)), samples, atol=2e-4
    )


def test_speed_moves_the_pitch():
    faster = Augment(plain(speed=(1.25, 1.25)))(tone(400), RATE_HZ, np.random.default_rng(0))
    assert len(faster) == pytest.approx(RATE_HZ / 1.25, abs=1)
    assert peak_hz(faster) == pytest.approx(500, abs=3)


@pytest.mark.parametrize("rate_hz", [22_050, 24_000, 8_000])
def test_resampling_keeps_pitch_and_level(rate_hz):
    samples = resample(tone(1000, rate_hz=rate_hz), RATE_HZ / rate_hz)
    assert len(samples) == RATE_HZ
    assert peak_hz(samples) == pytest.approx(1000, abs=2)
    assert samples[2000:-2000].std() == pytest.approx(0.3 / np.sqrt(2), rel=0.01)


def test_resampling_does_not_alias():
    high = resample(tone(11_000, rate_hz=24_000), 2 / 3)
    assert np.abs(high[1000:-1000]).max() < 0.01


@pytest.mark.parametrize("snr_db", [10.0, 35.0])
def test_noise_has_the_configured_ratio(snr_db):
    samples = tone(300, 3.0)
    noisy = Augment(plain(noise_share=1, snr_db=(snr_db, snr_db)))(
        samples, RATE_HZ, np.random.default_rng(0)
    )
    noise = noisy - Augment(plain())(samples, RATE_HZ, np.random.default_rng(0))
    assert 10 * np.log10(np.mean(samples**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.5)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
def test_noises_have_unit_power(noise):
    samples = noise(tone(300), np.random.default_rng(0))
    assert samples.shape == (RATE_HZ,)
    assert np.mean(samples**2) == pytest.approx(1.0, rel=0.03)


def test_a_room_echoes_for_its_time_and_keeps_the_direct_sound():
    click = np.zeros(RATE_HZ // 2, np.float32)
    click[100] = 0.5
    wet = in_room(click, RATE_HZ, 0.3, 6.0, np.random.default_rng(0))
    assert len(wet) == len(click) + round(0.3 * RATE_HZ) - 1
    assert wet[100] == pytest.approx(0.5, abs=1e-4)
    echo = wet[101:]
    assert 10 * np.log10(0.25 / np.sum(echo**2)) == pytest.approx(6.0, abs=0.1)
    start, end = np.mean(echo[800:1280] ** 2), np.mean(echo[3360:3840] ** 2)
    assert 10 * np.log10(start / end) == pytest.approx(60 * 2560 / 4800, abs=4)


def test_a_telephone_keeps_its_band():
    def level(hertz):
        return float(
            band_limit(tone(hertz), RATE_HZ, 300, 3400)[2000:-2000].std() / (0.3 / np.sqrt(2))
        )

    assert level(100) < 0.02 and level(5000) < 0.02
    assert level(1000) == pytest.approx(1.0, abs=0.01)


def test_silence_is_added_around_the_speech():
    clip = Augment(plain(lead_s=(0.2, 0.2), trail_s=(0.1, 0.1)))(
        tone(200), RATE_HZ, np.random.default_rng(0)
    )
    assert len(clip) == round(1.3 * RATE_HZ)
    assert not clip[:3200].any() and not clip[-1600:].any()


def test_silence_stays_silent():
    clip = Augment(plain(noise_share=1))(
        np.zeros(1000, np.float32), RATE_HZ, np.random.default_rng(0)
    )
    assert not clip.any()


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError, match=r"snr_db=\(9, 3\), noise_share=2"):
        AugmentConfig(snr_db=(9, 3), noise_share=2)
    with pytest.raises(ConfigError, match="speed"):
        AugmentConfig(speed=(0.0, 1.0))


def test_the_config_is_read_by_hydra():
    omegaconf = pytest.importorskip("omegaconf")
    node = omegaconf.OmegaConf.structured(AugmentConfig)
    node.snr_db = [5.0, 6.0]
    assert list(omegaconf.OmegaConf.to_object(node).snr_db) == [5.0, 6.0]
