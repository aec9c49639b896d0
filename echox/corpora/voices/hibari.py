"""The hibari voice and speakers derived from it.

The derived speakers differ in pitch, vocal tract, pace, spectral tilt and breath.
"""

from functools import lru_cache

import numpy as np

from echox.core.packages import HIBARI
from echox.corpora.voices.base import Role, Voice
from echox.corpora.voices.vocoder import Speaker, polar, resynthesize

TRAINING_SPEAKERS = {
    "hibari_bass": Speaker(pitch=0.50, formants=0.82, speed=0.95, tilt_db=-1.0),
    "hibari_low_male": Speaker(pitch=0.55, formants=0.85),
    "hibari_slow_male": Speaker(
        pitch=0.57, formants=0.86, speed=0.85, intonation=0.8, tilt_db=-1.5
    ),
    "hibari_male": Speaker(pitch=0.60, formants=0.87, intonation=1.1),
    "hibari_brisk_male": Speaker(
        pitch=0.62, formants=0.88, speed=1.15, intonation=1.2, tilt_db=1.0
    ),
    "hibari_flat_male": Speaker(pitch=0.65, formants=0.90, intonation=0.5),
    "hibari_old_male": Speaker(
        pitch=0.68, formants=0.88, speed=0.82, intonation=1.3, tilt_db=-1.0, breath_db=5.0
    ),
    "hibari_young_male": Speaker(pitch=0.72, formants=0.93, speed=1.08, intonation=1.2),
    "hibari_low_female": Speaker(pitch=0.82, formants=0.95, speed=0.95),
    "hibari_alto": Speaker(pitch=0.90, formants=0.98, speed=1.05, intonation=0.8, tilt_db=-1.0),
    "hibari_breathy_female": Speaker(
        pitch=1.00, formants=1.00, speed=0.92, tilt_db=-1.0, breath_db=7.0
    ),
    "hibari_bright_female": Speaker(
        pitch=1.05, formants=1.03, speed=1.05, intonation=1.2, tilt_db=1.5
    ),
    "hibari_brisk_female": Speaker(pitch=1.10, formants=1.05, speed=1.20),
    "hibari_high_female": Speaker(pitch=1.20, formants=1.08, intonation=1.2),
    "hibari_child": Speaker(pitch=1.30, formants=1.20, intonation=1.2),
    "hibari_small_child": Speaker(pitch=1.38, formants=1.22, speed=0.90, breath_db=2.0),
}

# Combinations that no other speaker has: validation chooses settings, so it must not meet the
# speakers of the test.
VALID_SPEAKERS = {
    "hibari_valid_male": Speaker(
        pitch=0.64, formants=0.85, speed=1.05, intonation=0.8, tilt_db=0.5, breath_db=1.0
    ),
    "hibari_valid_female": Speaker(
        pitch=1.08, formants=0.98, speed=0.95, intonation=0.9, tilt_db=-0.5
    ),
}

# Combinations that no training speaker has: a short tract on a low voice, a slow bright woman, a
# flat quick child.
TEST_SPEAKERS = {
    "hibari_test_male": Speaker(
        pitch=0.59, formants=0.93, speed=1.10, intonation=0.9, tilt_db=-0.5, breath_db=2.0
    ),
    "hibari_test_female": Speaker(
        pitch=0.95, formants=1.07, speed=0.88, intonation=1.3, tilt_db=1.0
    ),
    "hibari_test_child": Speaker(
        pitch=1.25, formants=1.14, speed=1.10, intonation=0.7, tilt_db=-1.0, breath_db=3.0
    ),
}


@lru_cache(maxsize=1)
def engine():
    """Load the hibari network and its pronunciation rules, once per process.

    Raises:
        PackageError: the package is not installed.
    """
    # One thread: clips are synthesized by one process per core.
    return HIBARI.load().Hibari(threads=1)


def has_pronunciation(word: str) -> bool:
    """Tell whether the package's dictionary has a word, or the stem of an inflected one.

    Raises:
        PackageError: the package is not installed.
    """
    tag = "NN" if word.islower() else "NNP"
    context = HIBARI.load("g2p").Context()
    phonemes, _ = engine().g2p.lexicon.get_word(word, tag, None, context)
    return phonemes is not None


class HibariVoice(Voice):
    """The recorded speaker as the package renders it, samples [T] at 24 kHz: the answers' voice."""

    rate_hz = 24_000
    packages = (HIBARI,)

    def __init__(self) -> None:
        self.name = "hibari"
        self.role = Role.ANSWER

    def _render(self, text: str, seed: int) -> np.ndarray:
        return engine()(text, seed=seed)


class HibariSpeaker(Voice):
    """A speaker derived from the same network's spectrum [K, F] and F0 [F], at 24 kHz.

    Args:
        name: the name under which `voice` finds it.
        role: what the voice may be used for.
        speaker: differences from the recorded speaker.
    """

    rate_hz = 24_000
    packages = (HIBARI,)

    def __init__(self, name: str, role: Role, speaker: Speaker) -> None:
        self.name = name
        self.role = role
        self.speaker = speaker

    def _render(self, text: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        # One generator over all sentences: the same sentence twice has different noise.
        parts = [
            resynthesize(*frames(phonemes, self.speaker.speed), self.speaker, rng)
            for phonemes in engine().phonemize(text)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def frames(phonemes: str, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Run the network on one sentence.

    Args:
        phonemes: one string of the package's alphabet.
        speed: ratio to the recorded speaking rate.

    Returns:
        spectrum: complex64 [601, F] of the recorded speaker, without the package's small noise
            branch.
        f0_hz: [F], one value per frame of 12.5 ms.

    Raises:
        PackageError: the package is not installed.
    """
    dsp = HIBARI.load("dsp")
    network = engine()
    inputs = {
        "ids": np.asarray([network.ids(phonemes)], np.int64),
        "speed": np.asarray([speed], np.float32),
    }
    level, phase, _, free_level, free_phase, f0_hz = (
        output[0]
        for output in network.sess.run(None, inputs)  # each without its batch of one
    )
    # The harmonic part: a pulse train at F0, shaped by the network's level and phase [601, F].
    spectrum = dsp.stft(dsp.pulses(f0_hz), level.shape[1])
    spectrum *= polar(dsp.ex(level), np.float32(np.pi) * np.tanh(phase))
    # The part that does not depend on the pulses.
    spectrum += polar(dsp.ex(free_level), free_phase)
    return spectrum, f0_hz
