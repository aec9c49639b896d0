"""Voices that read questions and answers aloud: one file per engine, one name per speaker.

    voice("hibari_male").speak("Where is the station?", seed=7)

Test and validation voices never train: each voice declares its role and `available_voices(Role.TRAIN)` leaves the others out.
"""

from difflib import get_close_matches
from functools import lru_cache

from echox.corpora.voices import espeak
from echox.corpora.voices.base import Role, Voice
from echox.corpora.voices.hibari import TEST_SPEAKERS, TRAINING_SPEAKERS, VALID_SPEAKERS, HibariSpeaker, HibariVoice
from echox.corpora.voices.piper import LENGTHS, JoeVoice
from echox.corpora.voices.programs import ProgramVoice, installed_programs
from echox.corpora.voices.silence import NoVoice
from echox.corpora.voices.vocoder import Speaker
from echox.errors import ConfigError

__all__ = ["HibariSpeaker", "HibariVoice", "JoeVoice", "ProgramVoice", "Role", "Speaker", "Voice", "available_voices", "voice"]


@lru_cache(maxsize=1)
def every_voice() -> dict[str, Voice]:
    """Name to voice; none is loaded before it speaks."""
    voices = [HibariVoice()]
    voices += [HibariSpeaker(name, Role.TRAIN, speaker) for name, speaker in TRAINING_SPEAKERS.items()]
    voices += [HibariSpeaker(name, Role.VALID, speaker) for name, speaker in VALID_SPEAKERS.items()]
    voices += [HibariSpeaker(name, Role.TEST, speaker) for name, speaker in TEST_SPEAKERS.items()]
    if espeak.is_installed():
        voices += [espeak.EspeakVoice(name, Role.TRAIN, speaker) for name, speaker in espeak.TRAINING_SPEAKERS.items()]
        voices += [espeak.EspeakVoice(name, Role.VALID, speaker) for name, speaker in espeak.VALID_SPEAKERS.items()]
    voices += [JoeVoice(name) for name in LENGTHS]
    voices += [ProgramVoice(name) for name in installed_programs()]
    voices.append(NoVoice())
    return {one.name: one for one in voices}


def available_voices(role: Role | str | None = None) -> tuple[str, ...]:
    """Names of the voices this machine can speak with.

    Args:
        role: "answer", "train", "valid", "test" or "silence"; None for all.
    Returns:
        names in a fixed order; programs that are not installed are left out, `joe` is fetched when it first speaks.
    Raises:
        ConfigError: the role is none of these.
    """
    if role is not None and role not in set(Role):
        raise ConfigError(f"a voice's role is one of {', '.join(one.value for one in Role)}, not '{role}'; choose one of them")
    return tuple(name for name, one in every_voice().items() if role in (None, one.role))


def voice(name: str) -> Voice:
    """Find a voice.

    Raises:
        ConfigError: no such voice here; the text names the nearest ones and all that exist.
    """
    voices = every_voice()
    if name in voices:
        return voices[name]
    near = get_close_matches(name, voices, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise ConfigError(f"no voice named '{name}' on this machine{hint} known: {', '.join(voices)}")
