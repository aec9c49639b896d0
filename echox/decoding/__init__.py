"""Batched autoregressive decoding: each request holds a slot, and all slots step together."""

from echox.decoding.engine import Completion, DecodeEngine, Impl, Progress
from echox.decoding.steps import Request, Rows, Steps

__all__ = ["Request", "Impl", "Rows", "Completion", "Progress", "Steps", "DecodeEngine"]
