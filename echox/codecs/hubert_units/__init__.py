"""HuBERT units as in EchoX: k-means of encoder states, words over units, and a unit vocoder."""

from echox.codecs.hubert_units.codec import HubertUnits, HubertUnitsConfig
from echox.codecs.hubert_units.fit_config import UnitFitConfig

__all__ = ["HubertUnits", "HubertUnitsConfig", "UnitFitConfig"]
