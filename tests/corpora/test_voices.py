"""Voices: deterministic, in range, and of different speakers."""

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from echox.core.errors import AssetError, ConfigError, SignalError
from echox.corpora import voices
from echox.corpora.voices import Role, Speaker, available_voices, voice
from echox.corpora.voices.base import within_full_scale
from echox.corpora.voices.espeak_alphabet import to_espeak
from echox.corpora.voices.piper import phoneme_ids
from echox.corpora.voices.programs import ProgramVoice
from echox.corpora.voices.vocoder import envelopes, local_mean, minimum_phase, new_f0

TEXT = "Where are you going now?"


@pytest.fixture
def hibari():
    pytest.importorskip(
        "hibari", reason="hibari-tts is not installed, so its voices cannot be used"
    )


def median_f0_hz(samples: np.ndarray, rate_hz: int) -> float:
    """Median F0 of the clearly periodic frames, from the autocorrelation of 50 ms at a time."""
    T = round(0.05 * rate_hz)
    low, high = rate_hz // 450, rate_hz // 65
    f0_hz = []
    for start in range(0, len(samples) - T, T // 2):
        frame = samples[start : start + T] - samples[start : start + T].mean()
        lags = np.fft.irfft(np.abs(np.fft.rfft(frame, 2 * T)) ** 2)[:T] / np.linspace(1, 0.02, T)
        peak = low + int(np.argmax(lags[low:high]))
        if frame.std() > 0.02 and lags[peak] > 0.7 * lags[0]:
            f0_hz.append(rate_hz / peak)
    return float(np.median(f0_hz))


def test_every_voice_declares_a_role_and_test_speakers_are_held_out():
    train, valid, test = (
        available_voices(Role.TRAIN),
        available_voices("valid"),
        available_voices("test"),
    )
    assert available_voices("answer") == ("hibari",)
    assert not set(train) & set(test) and not set(valid) & {*train, *test} and len(valid) >= 2
    assert sum(name.startswith("hibari") for name in train) == 16
    assert {
        "joe",
        "joe_slow",
        "joe_fast",
        "hibari_test_male",
        "hibari_test_female",
        "hibari_test_child",
    } <= set(test)
    assert available_voices("silence") == ("silence",)
    assert len(available_voices()) == len(train) + len(valid) + len(test) + 2


def test_no_two_speakers_of_different_roles_have_the_same_parameters():
    from echox.corpora.voices.hibari import TEST_SPEAKERS, TRAINING_SPEAKERS, VALID_SPEAKERS

    of_role = [
        {(one.pitch, one.formants) for one in speakers.values()}
        for speakers in (TRAINING_SPEAKERS, VALID_SPEAKERS, TEST_SPEAKERS)
    ]
    assert sum(map(len, of_role)) == len(set.union(*of_role))


def test_formant_speakers_are_different_and_deterministic():
    pytest.importorskip(
        "espeakng_loader", reason="espeakng-loader is not installed, so its voices cannot be used"
    )
    from echox.corpora.voices.espeak import TRAINING_SPEAKERS, VALID_SPEAKERS

    speakers = TRAINING_SPEAKERS | VALID_SPEAKERS
    assert set(TRAINING_SPEAKERS) <= set(available_voices(Role.TRAIN)) and len(
        set(speakers.values())
    ) == len(speakers)
    man, woman = voice("espeak_man"), voice("espeak_woman")
    first = man.synthesize(TEXT, 3)
    woman.synthesize("What was said before must leave no trace.", 1)
    assert np.array_equal(first, man.synthesize(TEXT, 3)) and not np.array_equal(
        first, man.synthesize(TEXT, 4)
    )
    assert 0.5 < len(first) / man.rate_hz < 3 and median_f0_hz(
        first, man.rate_hz
    ) < 0.75 * median_f0_hz(woman.synthesize(TEXT, 3), woman.rate_hz)


def test_a_misspelt_voice_names_the_nearest_one():
    with pytest.raises(ConfigError, match="no voice named 'hibari_mail'.*did you mean 'hibari_ma"):
        voice("hibari_mail")
    with pytest.raises(ConfigError, match="answer, train, valid, test"):
        available_voices("exam")


@pytest.mark.parametrize(
    "name", ["hibari", "hibari_low_male", "hibari_child", "hibari_test_female"]
)
def test_a_voice_is_deterministic_and_in_range(hibari, name):
    speaker = voice(name)
    samples = speaker.synthesize(TEXT, seed=3)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 0.5 < len(samples) / speaker.rate_hz < 4.0
    assert 0.01 < samples.std() < 0.3 and np.abs(samples).max() < 1.0
    np.testing.assert_array_equal(samples, speaker.synthesize(TEXT, seed=3))
    assert not np.array_equal(samples, speaker.synthesize(TEXT, seed=4))


@pytest.mark.parametrize("pitch", [0.5, 0.75, 1.3])
def test_pitch_moves_by_the_configured_ratio(hibari, pitch):
    speaker = voices.HibariSpeaker("trial", Role.TRAIN, Speaker(pitch=pitch))
    recorded = median_f0_hz(voice("hibari").synthesize(TEXT, 0), 24_000)
    assert median_f0_hz(speaker.synthesize(TEXT, 0), 24_000) == pytest.approx(
        pitch * recorded, rel=0.06
    )


def test_an_unchanged_speaker_keeps_level_and_length(hibari):
    recorded = voice("hibari").synthesize(TEXT, 0)
    resynthesized = voices.HibariSpeaker("trial", Role.TRAIN, Speaker()).synthesize(TEXT, 0)
    assert len(resynthesized) == len(recorded)
    assert resynthesized.std() == pytest.approx(recorded.std(), rel=0.25)


@pytest.mark.parametrize("text", ["", "  ", "...", "?!"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(SignalError, match="voice 'hibari' found nothing to say"):
        voice("hibari").synthesize(text, 0)


def test_formants_move_without_the_pitch():
    """A resonance at 1,000 Hz over harmonics 200 Hz apart moves to 1,200 Hz by a ratio of 1.2."""
    K, F = 601, 3
    hertz = np.arange(K) * 20.0
    harmonics = np.exp(-(((hertz + 100) % 200 - 100) ** 2) / 800)
    magnitude = np.repeat(
        (harmonics * np.exp(-(((hertz - 1000) / 300) ** 2)) + 1e-4)[:, None], F, axis=1
    )
    harmonic, noise = envelopes(magnitude, np.full(F, 200.0), np.ones(F, bool), 1.2, 24_000)
    assert hertz[harmonic[:, 1].argmax()] == pytest.approx(1200, abs=20)
    assert harmonic.max() == pytest.approx(1.0, rel=0.02)
    assert noise.max() < 0.05


def test_unvoiced_frames_have_noise_alone():
    harmonic, noise = envelopes(
        np.ones((601, 2), np.float32), np.zeros(2), np.zeros(2, bool), 0.9, 24_000
    )
    assert not harmonic.any()
    np.testing.assert_allclose(noise, 1.0, rtol=1e-4)


def test_local_mean_of_a_ramp_is_the_ramp():
    power = np.repeat(np.arange(1.0, 102.0)[:, None], 2, axis=1)
    centre = np.repeat(np.arange(10.0, 90.0)[:, None], 2, axis=1)
    np.testing.assert_allclose(local_mean(power, centre, np.full(2, 5.0)), centre + 1, rtol=1e-5)


def test_minimum_phase_keeps_the_magnitude_and_comes_early():
    magnitude = np.exp(-(((np.arange(601) - 50) / 60.0) ** 2))[:, None] + 0.01
    spectrum = minimum_phase(magnitude, 1200)
    np.testing.assert_allclose(np.abs(spectrum), magnitude, rtol=1e-3)
    power = np.square(np.fft.irfft(spectrum[:, 0]))
    assert power[:600].sum() > 0.95 * power.sum()


def test_a_monotone_speaker_has_one_pitch():
    f0_hz = np.array([0.0, 180.0, 200.0, 260.0], np.float32)
    flat = new_f0(f0_hz, f0_hz > 40, Speaker(pitch=0.5, intonation=0.0))
    np.testing.assert_allclose(flat, [0, 100, 100, 100])
    assert not new_f0(np.zeros(3), np.zeros(3, bool), Speaker()).any()


def test_loud_samples_are_scaled_not_clipped():
    loud = np.array([0.5, -2.0], np.float32)
    np.testing.assert_allclose(within_full_scale(loud), [0.245, -0.98])
    np.testing.assert_array_equal(within_full_scale(loud / 4), loud / 4)


@pytest.mark.parametrize(
    "misaki, espeak",
    [
        ("ðə kwˈɪk bɹˈWn fˈɑks ʤˈʌmps ˈOvəɹ", "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˈoʊvɚ"),
        ("bˈɜɹd, wˈɔTəɹ.", "bˈɜːd, wˈɔːɾɚ."),
        ("mˈɛməɹi əɹˈWnd", "mˈɛmɚɹi əɹˈaʊnd"),
        ("ʃi hˈæpi bˈiʧ", "ʃiː hˈæpi bˈiːtʃ"),
        ("bˈYz ˈikwᵊlz", "bˈɔɪz ˈiːkwəlz"),
        ("ju, nˈu", "juː, nˈuː"),
    ],
)
def test_misaki_is_converted_to_espeak(misaki, espeak):
    assert to_espeak(misaki) == espeak


def test_phonemes_are_encoded_as_for_piper():
    table = {"^": [1], "_": [0], "$": [2], "a": [14], "b": [15], ",": [8]}
    assert phoneme_ids("ab—?", table) == [1, 0, 14, 0, 15, 0, 8, 0, 2]


def test_a_folder_without_a_network_is_refused(hibari, tmp_path):
    with pytest.raises(AssetError, match="does not hold both"):
        voices.JoeVoice("joe", tmp_path).synthesize(TEXT, 0)


def test_joe_is_low_and_deterministic(hibari):
    from echox.assets import CATALOGUE
    from echox.assets.fetch import cached_folder

    if not cached_folder(CATALOGUE["voice_joe"]).is_dir():
        pytest.skip(
            "the asset voice_joe (58 MB) is not in the cache; "
            "fetch it once with asset_folder('voice_joe')"
        )
    normal, slow = voice("joe").synthesize(TEXT, 0), voice("joe_slow").synthesize(TEXT, 0)
    np.testing.assert_array_equal(normal, voice("joe").synthesize(TEXT, 1))
    assert len(slow) > 1.05 * len(normal)
    assert 80 < median_f0_hz(normal, 22_050) < 160


def put_program(folder: Path, body: str) -> None:
    """Install a Python script as `flite` in a folder."""
    script = folder / "flite"
    script.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)


def test_a_program_synthesizes_through_files(monkeypatch, tmp_path):
    count = "import numpy, soundfile; n = len(open(sys.argv[4]).read())"
    put_program(tmp_path, f"{count}; soundfile.write(sys.argv[6], numpy.full(100 * n, 0.5), 16000)")
    monkeypatch.setenv("PATH", str(tmp_path))
    samples = ProgramVoice("flite_slt").synthesize("abc", 0)
    assert samples.shape == (400,) and samples.dtype == np.float32
    np.testing.assert_allclose(samples, 0.5, atol=1e-4)


def test_a_program_of_another_rate_is_resampled(monkeypatch, tmp_path):
    put_program(
        tmp_path, "import numpy, soundfile; soundfile.write(sys.argv[6], numpy.zeros(4000), 8000)"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ProgramVoice("flite_slt").synthesize("abc", 0).shape == (8000,)


def test_a_program_that_cannot_start_is_one_sentence(monkeypatch, tmp_path):
    put_program(tmp_path, "")
    (tmp_path / "flite").write_text("#!/nowhere/interpreter\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="could not start flite"):
        ProgramVoice("flite_slt").synthesize("abc", 0)


@pytest.mark.parametrize(
    "body, sentence",
    [
        ("sys.exit('no such speaker')", "voice 'flite_slt' failed: no such speaker"),
        ("sys.exit(0)", "wrote no audio"),
    ],
)
def test_a_failing_program_is_one_sentence(monkeypatch, tmp_path, body, sentence):
    put_program(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SignalError, match=sentence):
        ProgramVoice("flite_slt").synthesize("abc", 0)


def test_a_missing_program_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="needs the program flite"):
        ProgramVoice("flite_rms").synthesize("abc", 0)
