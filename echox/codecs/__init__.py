"""Codecs: waveform <-> discrete units."""
