"""Voices of speech programs on this machine: flite and festival.

Each is listed only where its program is installed.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echox.core.errors import AssetError, SignalError
from echox.corpora.voices.base import Role, Voice
from echox.data.resampling import resample

TIMEOUT_S = 60.0  # for one text
TEXT, OUTPUT = "{text}", "{output}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The command line of one voice of a program."""

    command: tuple[str, ...]
    """Program and arguments, with `{text}` (a file holding the text) and `{output}` (the wav to
    write) in their places."""
    role: Role
    """What the voice may be used for."""
    rate_hz: int
    """Samples per second of its speech; a wav of another rate is resampled."""


def flite(speaker: str, role: Role, rate_hz: int = 16_000) -> Program:
    """Return the command line of a speaker that is built into flite.

    Args:
        speaker: its name in flite.
        role: what the voice may be used for.
        rate_hz: samples per second of its speech.
    """
    return Program(
        command=("flite", "-voice", speaker, "-f", TEXT, "-o", OUTPUT), role=role, rate_hz=rate_hz
    )


PROGRAMS = {
    "flite_slt": flite("slt", Role.TEST),
    "flite_rms": flite("rms", Role.TEST),
    "flite_awb": flite("awb", Role.TRAIN),
    "flite_kal16": flite("kal16", Role.TRAIN),
    # The same woman as flite_slt, so she is held out here too.
    "festival_slt": Program(
        command=("text2wave", "-eval", "(voice_cmu_us_slt_arctic_hts)", TEXT, "-o", OUTPUT),
        role=Role.TEST,
        rate_hz=16_000,
    ),
}


def installed_programs() -> tuple[str, ...]:
    """Return the names of the voices whose program is on the search path."""
    return tuple(name for name, program in PROGRAMS.items() if shutil.which(program.command[0]))


class ProgramVoice(Voice):
    """A voice of a program that is run once per text.

    Clips are samples [T] at the program's rate. The programs use no randomness, so the seed changes
    nothing.

    Args:
        name: one of `PROGRAMS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.program = PROGRAMS[name]
        self.role = self.program.role
        self.rate_hz = self.program.rate_hz

    def _render(self, text: str, seed: int) -> np.ndarray:
        # Imported here: no other voice needs it.
        import soundfile

        executable = self.program.command[0]
        if shutil.which(executable) is None:
            raise AssetError(
                f"voice '{self.name}' needs the program {executable}; "
                "install it or choose another voice"
            )
        # Through files: a text on the command line could be taken for an option.
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "text.txt"), Path(folder, "speech.wav")
            source.write_text(text + "\n", encoding="utf-8")
            self._run([part.format(text=source, output=target) for part in self.program.command])
            if not target.is_file():
                raise SignalError(
                    f"voice '{self.name}' wrote no audio for {text!r}; "
                    f"run {executable} by hand to see why"
                )
            samples, rate_hz = soundfile.read(target, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)  # [T] of [T, channels]
        # Releases of a program differ in the rate they write.
        return mono if rate_hz == self.rate_hz else resample(mono, self.rate_hz / rate_hz)

    def _run(self, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise SignalError(
                f"voice '{self.name}' did not finish within {TIMEOUT_S:.0f} s; "
                "give it a shorter text"
            ) from error
        except OSError as error:
            raise AssetError(
                f"voice '{self.name}' could not start {command[0]} ({error.strerror}); reinstall it"
            ) from error
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            # One line alone, for this becomes one sentence of the build's report.
            reason = lines[-1] if lines else f"exit status {error.returncode}"
            raise SignalError(f"voice '{self.name}' failed: {reason}") from error
