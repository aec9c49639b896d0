"""Speakers of the espeak-ng formant synthesiser.

They sound robotic, but they come from another synthesiser than all other voices: a model trained on
one synthesiser alone learns its artefacts, a second one shows what questions have in common.
"""

from __future__ import annotations

import _ctypes
import ctypes
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echox.core.errors import AssetError, SignalError
from echox.core.packages import ESPEAK
from echox.corpora.voices.base import Role, Voice

AMERICAN, BRITISH, CARIBBEAN = "en-US", "en-GB-x-rp", "en-029"
# Constants of speak_lib.h.
SYNCHRONOUS, UTF8, OK = 2, 1, 0
RATE, PITCH, RANGE = 1, 3, 4
# How far a seed moves a speaker: words per minute by a ratio, pitch and pitch range by points of
# the library's 0 to 100.
PACE_RATIO, PITCH_POINTS, RANGE_POINTS = (0.85, 1.2), (35, 65), (30, 70)


@dataclass(frozen=True, slots=True)
class FormantSpeaker:
    """Parameters of one speaker."""

    pitch_hz: tuple[int, int]
    """Lowest and highest F0 of its plain speech."""
    tract: int
    """Formant frequencies, percent of the library's own man; above 100 is a shorter vocal tract."""
    width: int
    """Formant bandwidths, percent; wider is duller."""
    words_per_minute: int = 165
    accent: str = AMERICAN


TRAINING_SPEAKERS = {
    "espeak_giant": FormantSpeaker((55, 85), 86, 110, 150),
    "espeak_bass": FormantSpeaker((62, 100), 90, 95),
    "espeak_drawl": FormantSpeaker((70, 105), 93, 105, 135),
    "espeak_man": FormantSpeaker((80, 122), 97, 100),
    "espeak_quick_man": FormantSpeaker((85, 130), 99, 95, 195),
    "espeak_dull_man": FormantSpeaker((90, 115), 95, 135),
    "espeak_sharp_man": FormantSpeaker((88, 150), 102, 75, 175),
    "espeak_british_man": FormantSpeaker((78, 120), 98, 100, 165, BRITISH),
    "espeak_island_man": FormantSpeaker((84, 135), 96, 100, 155, CARIBBEAN),
    "espeak_tenor": FormantSpeaker((110, 165), 101, 100),
    "espeak_light_man": FormantSpeaker((120, 170), 105, 110, 180),
    "espeak_low_woman": FormantSpeaker((130, 190), 106, 100, 150),
    "espeak_woman": FormantSpeaker((150, 225), 110, 105),
    "espeak_quick_woman": FormantSpeaker((160, 235), 111, 95, 195),
    "espeak_dull_woman": FormantSpeaker((150, 190), 108, 140, 155),
    "espeak_bright_woman": FormantSpeaker((175, 270), 113, 80, 170),
    "espeak_british_woman": FormantSpeaker((155, 230), 110, 100, 165, BRITISH),
    "espeak_island_woman": FormantSpeaker((165, 250), 109, 105, 160, CARIBBEAN),
    "espeak_girl": FormantSpeaker((210, 300), 118, 100, 165),
    "espeak_child": FormantSpeaker((240, 340), 124, 105, 150),
}


VALID_SPEAKERS = {
    "espeak_valid_man": FormantSpeaker((75, 128), 100, 110, 160),
    "espeak_valid_woman": FormantSpeaker((145, 240), 107, 90, 160, BRITISH),
}


def is_installed() -> bool:
    """Return whether the package that carries the espeak-ng library is installed."""
    return ESPEAK.is_installed()


class EspeakVoice(Voice):
    """A formant speaker; the seed draws pace, pitch and pitch range of each clip.

    Clips are samples [T] at 22,050 Hz.

    Args:
        name: the name under which `voice` finds it.
        role: what the voice may be used for.
        speaker: its parameters.
    """

    rate_hz = 22_050
    packages = (ESPEAK,)

    def __init__(self, name: str, role: Role, speaker: FormantSpeaker) -> None:
        self.name = name
        self.role = role
        self.speaker = speaker

    def _render(self, text: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        # The order of the draws is part of the recorded corpora.
        pace = round(self.speaker.words_per_minute * rng.uniform(*PACE_RATIO))
        settings = {
            RATE: pace,
            PITCH: int(rng.integers(*PITCH_POINTS)),
            RANGE: int(rng.integers(*RANGE_POINTS)),
        }
        with EspeakLibrary() as library:
            return library.synthesize(text, self.speaker, settings)


class EspeakLibrary:
    """Context manager around espeak-ng's C interface, which synthesizes into memory.

    The synthesiser keeps the phase of the last word, and nothing in its interface resets it: only a
    freshly loaded library renders a text the same way each time. Loading takes a few milliseconds.

    Raises:
        PackageError: the package is not installed.
        AssetError: its library does not load here, or has another sampling rate.
    """

    def __init__(self) -> None:
        espeakng_loader = ESPEAK.load()
        self.data = Path(espeakng_loader.get_data_path())
        self.pieces: list[np.ndarray] = []
        try:
            self.c = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise AssetError(
                f"the espeak-ng library does not load here ({error}); "
                "uninstall espeakng-loader to do without it"
            ) from error
        # Kept as an attribute: the library calls it for as long as it lives, and a callback that
        # Python has collected crashes the process.
        self.receive = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )(self._receive)

    def __enter__(self) -> EspeakLibrary:
        rate_hz = self.c.espeak_Initialize(SYNCHRONOUS, 0, str(self.data).encode(), 0)
        if rate_hz != EspeakVoice.rate_hz:
            raise AssetError(
                f"espeak-ng answered {rate_hz} instead of {EspeakVoice.rate_hz} Hz; "
                "reinstall espeakng-loader"
            )
        self.c.espeak_SetSynthCallback(self.receive)
        return self

    def __exit__(self, *_) -> None:
        self.c.espeak_Terminate()
        # `ctypes` itself has no way to unload a library; the name differs on Windows.
        if sys.platform == "win32":
            _ctypes.FreeLibrary(self.c._handle)
        else:
            _ctypes.dlclose(self.c._handle)

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            # Copied, because the library writes its next samples into the same buffer.
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # anything else would stop the synthesis

    def synthesize(
        self, text: str, speaker: FormantSpeaker, settings: dict[int, int]
    ) -> np.ndarray:
        """Synthesize a text.

        Args:
            text: English, any number of sentences.
            speaker: its parameters.
            settings: parameter of speak_lib.h -> value.

        Returns:
            samples [T] float32 at `EspeakVoice.rate_hz`; empty where nothing was spoken.

        Raises:
            SignalError: the library refused the speaker or the text.
        """
        self._select(speaker)
        for setting, value in settings.items():
            self.c.espeak_SetParameter(setting, int(value), 0)
        self.pieces.clear()
        content = text.encode() + b"\0"
        if self.c.espeak_Synth(content, len(content), 0, 1, 0, UTF8, None, None) != OK:
            raise SignalError(f"espeak-ng could not speak {text!r}; give it a shorter text")
        self.c.espeak_Synchronize()
        if not self.pieces:
            return np.zeros(0, np.float32)
        return np.concatenate(self.pieces).astype(np.float32) / 32_768  # from 16-bit integers

    def _select(self, speaker: FormantSpeaker) -> None:
        """Load the speaker by a file, the only way to set formants in the C interface."""
        (accent,) = self.data.glob(f"lang/**/{speaker.accent}")
        with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
            path = Path(folder, "voice")
            path.write_text(voice_file(accent.read_text("utf-8"), speaker), "utf-8")
            if self.c.espeak_SetVoiceByFile(str(path).encode()) != OK:
                raise SignalError(
                    f"espeak-ng refused the speaker {speaker}; reinstall espeakng-loader"
                )


def voice_file(accent: str, speaker: FormantSpeaker) -> str:
    """Return the library's description of a speaker: its accent's own lines, then what differs.

    Flutter, breath and roughness are left out: their randomness cannot be seeded.
    """
    formants = [f"formant {number} {speaker.tract} 100 {speaker.width}" for number in range(9)]
    return "\n".join([accent, "pitch {} {}".format(*speaker.pitch_hz), "flutter 0", *formants, ""])
