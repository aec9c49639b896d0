"""Codecs: waveform <-> units."""
