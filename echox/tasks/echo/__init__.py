"""The Echo stage: hidden states of the language model in, units of its speech out."""

from echox.tasks.echo.task import EchoTask, EchoTaskConfig

__all__ = ["EchoTask", "EchoTaskConfig"]
