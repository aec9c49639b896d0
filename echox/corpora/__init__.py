"""Corpora: synthesized spoken data, and the encoding of manifests into units."""
