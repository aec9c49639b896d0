"""Neural codecs: K codebooks of a residual quantiser, by the models that the transformers library has."""

import transformers
from packaging.version import Version

from echox.errors import PluginError

# Before, WavTokenizer was not there, the others were cut into other parts, and their caches had another name.
if Version(transformers.__version__) < Version("5.24"):
    raise PluginError(f"neural codecs need transformers 5.24 or newer, and {transformers.__version__} is installed: pip install -U transformers")

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
