"""Units as EchoX has them: k-means of a HuBERT's states, words over them, and a unit vocoder where they are to be heard."""

from echox.codecs.hubert_units.codec import HubertUnits, HubertUnitsConfig
from echox.codecs.hubert_units.fit_config import UnitFitConfig

__all__ = ["HubertUnits", "HubertUnitsConfig", "UnitFitConfig"]
