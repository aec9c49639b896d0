"""Kernels: GPU code, each beside its plain reference."""
