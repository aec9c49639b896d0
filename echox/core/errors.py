"""Errors that a user can mend, as exceptions whose text is one sentence.

The sentence states the rule, the value and the way out. The commands print an `EchoxError` as
one line and exit with 2; any other exception is a bug of echox and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class EchoxError(Exception):
    """Base of every error a user can mend."""


class ConfigError(EchoxError):
    """A recipe or an override asks for something that does not exist or does not fit."""


class PluginError(EchoxError):
    """A plugin is unknown, registered twice, or failed to load."""


class PackageError(EchoxError):
    """A package that echox imports is not installed, or does not import."""


class SignalError(EchoxError):
    """Audio, features or units have a rate, length or value that the receiving part rejects."""


class ManifestError(EchoxError):
    """A manifest or one of its rows is broken."""


class AssetError(EchoxError):
    """Weights, voices or other files could not be obtained; the text lists what was tried."""


class CheckpointError(EchoxError):
    """A checkpoint is missing, damaged, or does not fit the model or its parents."""


class CapacityError(EchoxError):
    """The memory of the machine or of a GPU does not hold what was asked of it."""


class DiskError(EchoxError, OSError):
    """A disk is full or cannot be written; the text says where, what is needed and the way out.

    It is the operating system's error too, so that who catches that can say what is kept.
    """

    def __init__(self, number: int, reason: str, path: str, way_out: str) -> None:
        super().__init__(number, reason, path)
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.filename} could not be written: {self.strerror}; {self.way_out}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A step in a process of its own sends its error; OSError would leave the way out.
        return type(self), (self.errno, self.strerror, self.filename, self.way_out)


class TrainingError(EchoxError):
    """Training cannot go on, for instance because the loss is not finite."""
