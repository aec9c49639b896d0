"""The embedded codec: k-means units, a unit language, and nets that speak units through a vocoder."""

from echox.codecs.quantization.language import LanguageConfig
from echox.codecs.unit_vocoder.codec import KMeansCodec, KMeansCodecConfig
from echox.codecs.unit_vocoder.fit import fit_codec
from echox.codecs.unit_vocoder.fit_config import CodecFitConfig

__all__ = ["CodecFitConfig", "KMeansCodec", "KMeansCodecConfig", "LanguageConfig", "fit_codec"]
