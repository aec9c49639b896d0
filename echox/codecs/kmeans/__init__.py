"""The k-means codec: k-means units, a unit language, an acoustic model and a mel vocoder."""

from echox.codecs.kmeans.codec import KMeansCodec, KMeansCodecConfig
from echox.codecs.kmeans.fit import fit_codec
from echox.codecs.kmeans.fit_config import CodecFitConfig
from echox.codecs.quantization.language import LanguageConfig

__all__ = ["CodecFitConfig", "KMeansCodec", "KMeansCodecConfig", "LanguageConfig", "fit_codec"]
