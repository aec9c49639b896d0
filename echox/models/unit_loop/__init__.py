"""The decode loop of unit generation: many requests, each in a seat of its own, stepped together from prompt to last unit."""

from echox.models.unit_loop.loop import Impl, Spoken, UnitLoop
from echox.models.unit_loop.steps import Ask, Rows, Steps

__all__ = ["Ask", "Impl", "Rows", "Spoken", "Steps", "UnitLoop"]
