"""Benchmarks against what people use today, one module per subject."""
