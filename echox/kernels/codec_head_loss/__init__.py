"""The projection to a unit or codec vocabulary and its cross-entropy, as one operation."""

from echox.kernels.codec_head_loss.head import CodecHead
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.terms import Impl, Reduction

__all__ = ["CodecHead", "HeadLoss", "Impl", "Reduction", "codec_head_loss"]
