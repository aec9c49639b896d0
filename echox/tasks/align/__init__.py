"""The align stage: CTC training of the speech adapter over the language model's tokens."""

from echox.tasks.align.task import AlignmentTask, AlignmentTaskConfig

__all__ = ["AlignmentTask", "AlignmentTaskConfig"]
