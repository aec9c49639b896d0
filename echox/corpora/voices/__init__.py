"""Text-to-speech voices for questions and answers: one file per engine, one name per speaker.

    voice("hibari_male").synthesize("Where is the station?", seed=7)

Test and validation voices are never trained on: each voice declares its role, and
`available_voices(Role.TRAIN)` leaves the others out.
"""

from difflib import get_close_matches
from functools import lru_cache

from echox.core.errors import ConfigError
from echox.corpora.voices import espeak
from echox.corpora.voices.base import Role, Voice
from echox.corpora.voices.hibari import (
    TEST_SPEAKERS,
    TRAINING_SPEAKERS,
    VALID_SPEAKERS,
    HibariSpeaker,
    HibariVoice,
)
from echox.corpora.voices.piper import LENGTHS, JoeVoice
from echox.corpora.voices.programs import ProgramVoice, installed_programs
from echox.corpora.voices.silence import NoVoice
from echox.corpora.voices.vocoder import Speaker

__all__ = [
    "HibariSpeaker",
    "HibariVoice",
    "JoeVoice",
    "ProgramVoice",
    "Role",
    "Speaker",
    "Voice",
    "available_voices",
    "voice",
]

HIBARI_SPEAKERS = {
    Role.TRAIN: TRAINING_SPEAKERS,
    Role.VALID: VALID_SPEAKERS,
    Role.TEST: TEST_SPEAKERS,
}
ESPEAK_SPEAKERS = {Role.TRAIN: espeak.TRAINING_SPEAKERS, Role.VALID: espeak.VALID_SPEAKERS}


@lru_cache(maxsize=1)
def every_voice() -> dict[str, Voice]:
    """Return all voices of this machine by name; none is loaded before its first text."""
    # The order is part of the recorded corpora: `recording.assign_voices` draws from it.
    voices: list[Voice] = [HibariVoice()]
    for role, speakers in HIBARI_SPEAKERS.items():
        voices += [HibariSpeaker(name, role, speaker) for name, speaker in speakers.items()]
    # Without the optional package a corpus has fewer voices, and another fingerprint.
    if espeak.is_installed():
        for role, formants in ESPEAK_SPEAKERS.items():
            voices += [
                espeak.EspeakVoice(name, role, speaker) for name, speaker in formants.items()
            ]
    voices += [JoeVoice(name) for name in LENGTHS]
    voices += [ProgramVoice(name) for name in installed_programs()]
    voices.append(NoVoice())
    return {voice.name: voice for voice in voices}


def available_voices(role: Role | str | None = None) -> tuple[str, ...]:
    """Return the names of the voices that this machine can synthesize.

    Args:
        role: "answer", "train", "valid", "test" or "silence"; None for all.

    Returns:
        names in a fixed order; programs that are not installed are left out, the weights of
        `joe` are fetched with its first text.

    Raises:
        ConfigError: the role is none of these.
    """
    if role is not None and role not in set(Role):
        roles = ", ".join(member.value for member in Role)
        raise ConfigError(f"a voice's role is one of {roles}, not '{role}'; choose one of them")
    return tuple(name for name, voice in every_voice().items() if role in (None, voice.role))


def voice(name: str) -> Voice:
    """Return a voice by its name.

    Raises:
        ConfigError: this machine has no such voice; the sentence names the nearest one and all.
    """
    voices = every_voice()
    if name in voices:
        return voices[name]
    # Voices of programs and packages that are not installed here are unknown as well.
    near = get_close_matches(name, voices, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise ConfigError(f"no voice named '{name}' on this machine{hint} known: {', '.join(voices)}")
