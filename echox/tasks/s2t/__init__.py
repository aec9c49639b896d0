"""The S2T stage: a spoken question in, the text of the answer out."""

from echox.tasks.s2t.task import SpeechTextTask, SpeechTextTaskConfig

__all__ = ["SpeechTextTask", "SpeechTextTaskConfig"]
