"""Neural codecs: K codebooks of a residual quantiser, by models of the transformers library."""

import transformers
from packaging.version import Version

from echox.core.errors import PluginError

# Earlier releases lack WavTokenizer, split the other models into other parts, and name their caches
# otherwise.
if Version(transformers.__version__) < Version("5.24"):
    raise PluginError(
        f"neural codecs need transformers 5.24 or newer, and {transformers.__version__} is "
        "installed: pip install -U transformers"
    )

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
