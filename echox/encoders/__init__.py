"""Encoders: waveform -> features."""
