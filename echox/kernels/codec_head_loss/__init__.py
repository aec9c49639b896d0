"""Codec-head loss: projection to a unit or codec vocabulary and its cross-entropy in one operation.

Letters of shapes in this package: N rows (tokens of a batch, flattened), R rows of a chunk, D
channels of the hidden states, K codebooks, V entries (of all codebooks, or of one).
"""

from echox.kernels.codec_head_loss.head import CodecHead
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.terms import Impl, Reduction

__all__ = ["CodecHead", "HeadLoss", "Impl", "Reduction", "codec_head_loss"]
