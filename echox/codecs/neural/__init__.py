"""Neural codecs: K codebooks of a residual quantiser, by the models that the transformers library has."""

from echox.codecs.neural.dac import DacCodec, DacCodecConfig
from echox.codecs.neural.encodec import EncodecCodec, EncodecCodecConfig
from echox.codecs.neural.mimi import MimiCodec, MimiCodecConfig
from echox.codecs.neural.xcodec import XcodecCodec, XcodecCodecConfig

__all__ = [
    "DacCodec",
    "DacCodecConfig",
    "EncodecCodec",
    "EncodecCodecConfig",
    "MimiCodec",
    "MimiCodecConfig",
    "XcodecCodec",
    "XcodecCodecConfig",
]
