"""Neural codecs: K codebooks of a residual quantiser, by the models that the transformers library has."""

from echox.codecs.neural.dac import DacCodec, DacCodecConfig
from echox.codecs.neural.encodec import EncodecCodec, EncodecCodecConfig
from echox.codecs.neural.mimi import MimiCodec, MimiCodecConfig
from echox.codecs.neural.wavtokenizer import WavTokenizerCodec, WavTokenizerCodecConfig
from echox.codecs.neural.xcodec import HiggsCodec, HiggsCodecConfig, XcodecCodec, XcodecCodecConfig

__all__ = [
    "DacCodec",
    "DacCodecConfig",
    "EncodecCodec",
    "EncodecCodecConfig",
    "HiggsCodec",
    "HiggsCodecConfig",
    "MimiCodec",
    "MimiCodecConfig",
    "WavTokenizerCodec",
    "WavTokenizerCodecConfig",
    "XcodecCodec",
    "XcodecCodecConfig",
]
