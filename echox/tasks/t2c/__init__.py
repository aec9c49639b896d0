"""The T2C stage: text in, units of its speech out."""

from echox.tasks.t2c.task import TextUnitsTask, TextUnitsTaskConfig

__all__ = ["TextUnitsTask", "TextUnitsTaskConfig"]
