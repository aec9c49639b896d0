"""What a user can get wrong, as exceptions whose text is one sentence: the rule, the value, the way out.

The doors print an `EchoxError` as one line and exit with 2; any other exception is a bug of ours and keeps its traceback.
"""


class EchoxError(Exception):
    """Base of every error a user can mend."""


class ConfigError(EchoxError):
    """A recipe or an override asks for something that does not exist or does not fit."""


class PluginError(EchoxError):
    """A plugin is unknown, registered twice, or failed to load."""


class PackageError(EchoxError):
    """A package that echox imports is not installed, or does not import."""


class SignalError(EchoxError):
    """Audio, features or units are not what the receiving part takes (rate, length, values)."""


class ManifestError(EchoxError):
    """A manifest or one of its rows is broken."""


class AssetError(EchoxError):
    """Weights, voices or other files could not be had; the text says what was tried."""


class CheckpointError(EchoxError):
    """A checkpoint is missing, damaged, or does not fit the model or its parents."""


class TrainingError(EchoxError):
    """Training cannot go on (for instance a loss that is not finite)."""
