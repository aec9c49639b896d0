"""The vocoder stage: units in, a waveform out."""

from echox.tasks.vocoder.task import VocoderTask, VocoderTaskConfig

__all__ = ["VocoderTask", "VocoderTaskConfig"]
