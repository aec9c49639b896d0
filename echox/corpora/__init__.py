"""Corpora: spoken data made on the spot."""
